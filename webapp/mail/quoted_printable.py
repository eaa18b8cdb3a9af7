"""Bodies in quoted-printable (RFC 2045, 6.7), made once, with places where each recipient's own words are put in.

There is a soft line break on both sides of such a place; a value then starts on a line of its own, is encoded by
itself, and the bytes are joined.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from webapp.mail.template import Placeholder, TemplateParts

# A blank at the end of a line is written as a code, and binascii makes the line up to two longer than 76 by that.
_TRAILING_WHITESPACE = re.compile(rb"(?m)^(.{74,})(=20|=09)$")


@dataclass(frozen=True)
class MergeField:
    """Where a value goes into a body that is quoted-printable already."""

    placeholder: Placeholder
    render: Callable[[Placeholder, str], str]
    ends_line: bool

    def encode_value(self, values: Mapping[str, str]) -> bytes:
        quoted = _encode_text(self.render(self.placeholder, values[self.placeholder.name]))
        return quoted if self.ends_line else _append_soft_break(quoted)


class MergeBody:
    """Pieces of a message, some of them stamps. What stands in several places is written once for each recipient."""

    def __init__(self, pieces: list[bytes | MergeField]) -> None:
        self.fields: list[MergeField] = list(dict.fromkeys(piece for piece in pieces if isinstance(piece, MergeField)))
        self._segments = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
        self._field_positions = [
            (at, self.fields.index(piece)) for at, piece in enumerate(pieces) if isinstance(piece, MergeField)
        ]

    def render(self, values: Mapping[str, str]) -> list[bytes]:
        """The pieces with a recipient's values."""
        written = [stamp.encode_value(values) for stamp in self.fields]
        pieces = self._segments.copy()
        for at, which in self._field_positions:
            pieces[at] = written[which]
        return pieces


def encode_body(parts: TemplateParts, written: Callable[[Placeholder, str], str]) -> list[bytes | MergeField]:
    """A body in quoted-printable; no line gets longer than 76.

    :param written: how a value stands in it; what is empty, by the words for that.
    """
    out: list[bytes | MergeField] = []
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else "\n"
        if isinstance(part, Placeholder):
            ends_line = isinstance(following, str) and following.startswith(("\n", "\r\n"))
            out.append(MergeField(part, written, ends_line))
        else:
            quoted = _encode_text(part)
            starts_line = quoted.endswith(b"\r\n") or isinstance(following, str)
            out.append(quoted if starts_line else _append_soft_break(quoted))
    return out


def _encode_text(text: str) -> bytes:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # The soft breaks it puts in end like the text's own lines, if it has any: so all become CRLF afterwards.
    lines = binascii.b2a_qp(text.encode(), istext=True)
    if b"=20\n" in lines or b"=09\n" in lines:
        lines = _TRAILING_WHITESPACE.sub(rb"\1=\n\2", lines)
    return lines.replace(b"\n", b"\r\n")


def _append_soft_break(quoted: bytes) -> bytes:
    """With a soft line break behind it; no line gets longer than 76."""
    if len(quoted) - quoted.rfind(b"\n") - 1 < 76:
        return quoted + b"=\r\n"
    last = 3 if quoted[-3:-2] == b"=" else 1
    return quoted[:-last] + b"=\r\n" + quoted[-last:] + b"=\r\n"
