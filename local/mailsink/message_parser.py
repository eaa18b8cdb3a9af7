"""Taking a mail apart, whatever it is: without headers, with an unknown charset, cut off, nested a thousand deep.

Nothing here raises for what stands in a file; what can't be read is shown as the bytes that it is.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.parser import BytesHeaderParser, BytesParser
from pathlib import Path

# Bytes of a file that are read; the SMTP side takes no more than 32 MB.
MOST = 40_000_000
# Bytes in which the headers are looked for, and characters of a text that a page shows.
HEAD, SHOWN = 65_536, 200_000

END_OF_HEAD = re.compile(rb"^\r?\n|\r?\n\r?\n")
ATTACHMENT = re.compile(rb"^content-disposition:\s*attachment", re.IGNORECASE | re.MULTILINE)
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
LISTED = ("to", "cc", "bcc", "subject")


@dataclass(frozen=True)
class Summary:
    """What the list shows of a mail, and the words by which it is found."""

    to: str
    subject: str
    size: int
    attachments: int
    words: str


@dataclass(frozen=True)
class Letter:
    """A mail as its page shows it. `problem` says, in a sentence, why it could not be taken apart."""

    headers: list[tuple[str, str]]
    size: int
    text: str | None = None
    html: str | None = None
    attachments: list[str] = field(default_factory=list)
    is_cut: bool = False
    problem: str = ""

    def header(self, name: str) -> str:
        """All values of a header, the empty string for none."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)


def summary(path: Path) -> Summary:
    """Read enough of a file for the list: its headers, its size, how many attachments it has.

    :raises OSError: when the file can't be read, or is gone.
    """
    data, size = _bytes(path)
    listed = [(name.lower(), _words(_as_text(value))) for name, value in _raw_headers(data) if name.lower() in LISTED]
    to = ", ".join(value for name, value in listed if name == "to")
    subject = " ".join(value for name, value in listed if name == "subject")
    recipients = " ".join(value for name, value in listed if name != "subject")
    # Most mails have none, and looking for a word is quicker than for a pattern.
    attachments = len(ATTACHMENT.findall(data)) if b"\ncontent-disposition:" in data.lower() else 0
    return Summary(to, subject, size, attachments, fold(f"{_with_unicode_hosts(recipients)} {subject}"))


def letter(path: Path) -> Letter:
    """Read a whole mail.

    :raises OSError: when the file can't be read, or is gone.
    """
    data, size = _bytes(path)
    headers = _headers(data)
    try:
        return _taken_apart(headers, size, BytesParser().parsebytes(data))
    except Exception:
        # What Python's parser may stumble over is not listed anywhere; nesting without end is one such thing.
        text = decoded(data[: SHOWN * 4], "utf-8")[:SHOWN]
        return Letter(headers, size, text, problem="This mail could not be taken apart; here are its bytes.")


def fold(text: str) -> str:
    """Text as it is compared: neither case nor the way in which Unicode writes a letter counts."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def decoded(data: bytes, charset: str | None) -> str:
    """Bytes as text, with a mark for whatever does not belong there; an unknown charset is taken for UTF-8."""
    try:
        text = data.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):
        text = data.decode("utf-8", "replace")
    # Some charsets can spell half characters, which no answer can carry.
    return CONTROLS.sub("\ufffd", text.encode("utf-8", "replace").decode())


def _bytes(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # Asking for more than there is would make room for all of it first.
        return file.read(min(size, MOST)), size


def _headers(data: bytes) -> list[tuple[str, str]]:
    return [(_as_text(name), _words(_as_text(value))) for name, value in _raw_headers(data)]


def _raw_headers(data: bytes) -> list[tuple[str, str]]:
    head = data[:HEAD]
    end = END_OF_HEAD.search(head)
    return list(BytesHeaderParser().parsebytes(head[: end.start()] if end else head).raw_items())


def _as_text(raw: str) -> str:
    """A header as the parser keeps it; bytes beyond ASCII are UTF-8 as a rule (RFC 6532)."""
    return decoded(raw.encode("utf-8", "surrogateescape"), "utf-8")


def _words(value: str) -> str:
    """A header's value on one line, its encoded words (RFC 2047) as what they mean."""
    value = re.sub(r"\s*[\r\n]\s*", " ", value).strip()
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(
        part if isinstance(part, str) else decoded(part, charset or "raw-unicode-escape") for part, charset in parts
    )


def _with_unicode_hosts(value: str) -> str:
    """With domains also as people write them: for xn--mller-kva.example, müller.example too."""
    shown = re.sub(r"(?i)\bxn--[a-z0-9-]+", lambda m: decoded(m[0][4:].encode(), "punycode"), value)
    return value if shown == value else f"{value} {shown}"


def _taken_apart(headers: list[tuple[str, str]], size: int, message: Message) -> Letter:
    text = html = None
    attachments = []
    for part in message.walk():
        if part.is_multipart():
            continue
        kind, name = part.get_content_type(), part.get_filename()
        if part.get_content_disposition() == "attachment" or kind not in ("text/plain", "text/html"):
            attachments.append(_words(_as_text(str(name))) if name else kind)
        elif kind == "text/html" and html is None:
            html = _content(part)
        elif kind == "text/plain" and text is None:
            text = _content(part)
        else:
            attachments.append(_words(_as_text(str(name))) if name else kind)
    is_cut = text is not None and len(text) > SHOWN
    return Letter(headers, size, text[:SHOWN] if text else text, html, attachments, is_cut)


def _content(part: Message) -> str:
    data = part.get_payload(decode=True)
    return decoded(data if isinstance(data, bytes) else b"", part.get_content_charset())
