"""Quoted-printable bodies (RFC 2045, 6.7), encoded once for all recipients.

They have merge fields for the values of each recipient. A merge field has a soft line break on both sides, so that each
value starts on a new line and can be encoded separately; the encoded bytes are then joined.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from webapp.mail.template import Placeholder, TemplateParts

# binascii encodes white space at the end of a line, which can make the line up to two characters longer than 76.
_TRAILING_WHITESPACE = re.compile(rb"(?m)^(.{74,})(=20|=09)$")


@dataclass(frozen=True)
class MergeField:
    """A position in an encoded body where the value of a placeholder is inserted."""

    placeholder: Placeholder
    render: Callable[[Placeholder, str], str]
    ends_line: bool

    def encode_value(self, values: Mapping[str, str]) -> bytes:
        """Render and encode the value of this field."""
        quoted = _encode_text(self.render(self.placeholder, values[self.placeholder.name]))
        return quoted if self.ends_line else _append_soft_break(quoted)


class MergeBody:
    """The pieces of a body, some of them merge fields.

    A field used several times is encoded once per recipient.
    """

    def __init__(self, pieces: list[bytes | MergeField]) -> None:
        self.fields: list[MergeField] = list(dict.fromkeys(piece for piece in pieces if isinstance(piece, MergeField)))
        self._segments = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
        self._field_positions = [
            (index, self.fields.index(piece)) for index, piece in enumerate(pieces) if isinstance(piece, MergeField)
        ]

    def render(self, values: Mapping[str, str]) -> list[bytes]:
        """Return the pieces with the values of a recipient."""
        encoded = [field.encode_value(values) for field in self.fields]
        pieces = self._segments.copy()
        for index, field_index in self._field_positions:
            pieces[index] = encoded[field_index]
        return pieces


def encode_body(parts: TemplateParts, render: Callable[[Placeholder, str], str]) -> list[bytes | MergeField]:
    """Encode a body as quoted-printable, with lines of at most 76 characters.

    :param render: renders the value of a placeholder, or its fallback for an empty value.
    """
    pieces: list[bytes | MergeField] = []
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else "\n"
        if isinstance(part, Placeholder):
            ends_line = isinstance(following, str) and following.startswith(("\n", "\r\n"))
            pieces.append(MergeField(part, render, ends_line))
        else:
            quoted = _encode_text(part)
            starts_line = quoted.endswith(b"\r\n") or isinstance(following, str)
            pieces.append(quoted if starts_line else _append_soft_break(quoted))
    return pieces


def _encode_text(text: str) -> bytes:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # binascii ends soft breaks like the first line of the text, so all line breaks are converted to CRLF afterwards.
    lines = binascii.b2a_qp(text.encode(), istext=True)
    if b"=20\n" in lines or b"=09\n" in lines:
        lines = _TRAILING_WHITESPACE.sub(rb"\1=\n\2", lines)
    return lines.replace(b"\n", b"\r\n")


def _append_soft_break(quoted: bytes) -> bytes:
    """Append a soft line break, keeping lines at 76 characters or less."""
    if len(quoted) - quoted.rfind(b"\n") - 1 < 76:
        return quoted + b"=\r\n"
    last = 3 if quoted[-3:-2] == b"=" else 1
    return quoted[:-last] + b"=\r\n" + quoted[-last:] + b"=\r\n"
