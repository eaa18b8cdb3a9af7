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
MAX_FILE_BYTES = 40_000_000
# Bytes in which the headers are looked for, and characters of a text that a page shows.
MAX_HEADER_BYTES, MAX_SHOWN_CHARACTERS = 65_536, 200_000

HEADER_END_PATTERN = re.compile(rb"^\r?\n|\r?\n\r?\n")
ATTACHMENT_PATTERN = re.compile(rb"^content-disposition:\s*attachment", re.IGNORECASE | re.MULTILINE)
CONTROL_PATTERN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
INDEXED_HEADERS = ("to", "cc", "bcc", "subject")


@dataclass(frozen=True)
class MessageSummary:
    """What the list shows of a mail, and the words by which it is found."""

    recipient: str
    subject: str
    size_bytes: int
    attachment_count: int
    search_text: str


@dataclass(frozen=True)
class ParsedMessage:
    """A mail as its page shows it. `problem` says, in a sentence, why it could not be taken apart."""

    headers: list[tuple[str, str]]
    size_bytes: int
    text: str | None = None
    html: str | None = None
    attachment_names: list[str] = field(default_factory=list)
    is_truncated: bool = False
    parse_error: str = ""

    def get_header(self, name: str) -> str:
        """All values of a header, the empty string for none."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)


def parse_summary(path: Path) -> MessageSummary:
    """Read enough of a file for the list: its headers, its size, how many attachments it has.

    :raises OSError: when the file can't be read, or is gone.
    """
    data, size = _read_bytes(path)
    listed = [
        (name.lower(), _decode_header_value(_decode_header_bytes(value)))
        for name, value in _parse_raw_headers(data)
        if name.lower() in INDEXED_HEADERS
    ]
    to = ", ".join(value for name, value in listed if name == "to")
    subject = " ".join(value for name, value in listed if name == "subject")
    recipients = " ".join(value for name, value in listed if name != "subject")
    # Most mails have none, and looking for a word is quicker than for a pattern.
    attachments = len(ATTACHMENT_PATTERN.findall(data)) if b"\ncontent-disposition:" in data.lower() else 0
    return MessageSummary(
        to, subject, size, attachments, normalise_search_text(f"{_add_unicode_domains(recipients)} {subject}")
    )


def parse_message(path: Path) -> ParsedMessage:
    """Read a whole mail.

    :raises OSError: when the file can't be read, or is gone.
    """
    data, size = _read_bytes(path)
    headers = _parse_headers(data)
    try:
        return _parse_parts(headers, size, BytesParser().parsebytes(data))
    except Exception:
        # What Python's parser may stumble over is not listed anywhere; nesting without end is one such thing.
        text = decode_text(data[: MAX_SHOWN_CHARACTERS * 4], "utf-8")[:MAX_SHOWN_CHARACTERS]
        return ParsedMessage(headers, size, text, parse_error="This mail could not be taken apart; here are its bytes.")


def normalise_search_text(text: str) -> str:
    """Text as it is compared: neither case nor the way in which Unicode writes a letter counts."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def decode_text(data: bytes, charset: str | None) -> str:
    """Bytes as text, with a mark for whatever does not belong there; an unknown charset is taken for UTF-8."""
    try:
        text = data.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):
        text = data.decode("utf-8", "replace")
    # Some charsets can spell half characters, which no answer can carry.
    return CONTROL_PATTERN.sub("\ufffd", text.encode("utf-8", "replace").decode())


def _read_bytes(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # Asking for more than there is would make room for all of it first.
        return file.read(min(size, MAX_FILE_BYTES)), size


def _parse_headers(data: bytes) -> list[tuple[str, str]]:
    return [
        (_decode_header_bytes(name), _decode_header_value(_decode_header_bytes(value)))
        for name, value in _parse_raw_headers(data)
    ]


def _parse_raw_headers(data: bytes) -> list[tuple[str, str]]:
    head = data[:MAX_HEADER_BYTES]
    end = HEADER_END_PATTERN.search(head)
    return list(BytesHeaderParser().parsebytes(head[: end.start()] if end else head).raw_items())


def _decode_header_bytes(raw: str) -> str:
    """A header as the parser keeps it; bytes beyond ASCII are UTF-8 as a rule (RFC 6532)."""
    return decode_text(raw.encode("utf-8", "surrogateescape"), "utf-8")


def _decode_header_value(value: str) -> str:
    """A header's value on one line, its encoded words (RFC 2047) as what they mean."""
    value = re.sub(r"\s*[\r\n]\s*", " ", value).strip()
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(
        part if isinstance(part, str) else decode_text(part, charset or "raw-unicode-escape") for part, charset in parts
    )


def _add_unicode_domains(value: str) -> str:
    """With domains also as people write them: for xn--mller-kva.example, müller.example too."""
    shown = re.sub(r"(?i)\bxn--[a-z0-9-]+", lambda m: decode_text(m[0][4:].encode(), "punycode"), value)
    return value if shown == value else f"{value} {shown}"


def _parse_parts(headers: list[tuple[str, str]], size: int, message: Message) -> ParsedMessage:
    text = html = None
    attachments = []
    for part in message.walk():
        if part.is_multipart():
            continue
        kind, name = part.get_content_type(), part.get_filename()
        if part.get_content_disposition() == "attachment" or kind not in ("text/plain", "text/html"):
            attachments.append(_decode_header_value(_decode_header_bytes(str(name))) if name else kind)
        elif kind == "text/html" and html is None:
            html = _decode_part(part)
        elif kind == "text/plain" and text is None:
            text = _decode_part(part)
        else:
            attachments.append(_decode_header_value(_decode_header_bytes(str(name))) if name else kind)
    is_cut = text is not None and len(text) > MAX_SHOWN_CHARACTERS
    return ParsedMessage(headers, size, text[:MAX_SHOWN_CHARACTERS] if text else text, html, attachments, is_cut)


def _decode_part(part: Message) -> str:
    data = part.get_payload(decode=True)
    return decode_text(data if isinstance(data, bytes) else b"", part.get_content_charset())
