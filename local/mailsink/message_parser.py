"""Parse any file as an email, however malformed.

It may have no headers or an unknown charset, be truncated, or nested a thousand levels deep.

No content of a file raises an error: what can't be parsed is returned as plain text.
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

# Bytes read from a file; the SMTP server accepts no more than 32 MB.
MAX_FILE_BYTES = 40_000_000
# Bytes that are searched for headers, and characters of a text that a page shows.
MAX_HEADER_BYTES, MAX_SHOWN_CHARACTERS = 65_536, 200_000

HEADER_END_PATTERN = re.compile(rb"^\r?\n|\r?\n\r?\n")
ATTACHMENT_PATTERN = re.compile(rb"^content-disposition:\s*attachment", re.IGNORECASE | re.MULTILINE)
CONTROL_PATTERN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
INDEXED_HEADERS = ("to", "cc", "bcc", "subject")


@dataclass(frozen=True)
class MessageSummary:
    """The columns of the list, and the text that a search compares."""

    recipient: str
    subject: str
    size_bytes: int
    attachment_count: int
    search_text: str


@dataclass(frozen=True)
class ParsedMessage:
    """A parsed email.

    `parse_error` is empty or a sentence for the page; in that case `text` is the unparsed file.
    """

    headers: list[tuple[str, str]]
    size_bytes: int
    text: str | None = None
    html: str | None = None
    attachment_names: list[str] = field(default_factory=list)
    is_truncated: bool = False
    parse_error: str = ""

    def get_header(self, name: str) -> str:
        """Return all values of a header, separated by commas; empty if it is missing."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)


def parse_summary(path: Path) -> MessageSummary:
    """Parse what the list shows: headers, size and number of attachments.

    :raises OSError: when the file can't be read or does not exist.
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
    # Most emails have none, and a substring search is faster than the pattern.
    attachments = len(ATTACHMENT_PATTERN.findall(data)) if b"\ncontent-disposition:" in data.lower() else 0
    return MessageSummary(
        to, subject, size, attachments, normalise_search_text(f"{_add_unicode_domains(recipients)} {subject}")
    )


def parse_message(path: Path) -> ParsedMessage:
    """Parse a complete email.

    :raises OSError: when the file can't be read or does not exist.
    """
    data, size = _read_bytes(path)
    headers = _parse_headers(data)
    try:
        return _parse_parts(headers, size, BytesParser().parsebytes(data))
    except Exception:
        # It is not documented which exceptions Python's parser can raise; deep nesting is one cause.
        text = decode_text(data[: MAX_SHOWN_CHARACTERS * 4], "utf-8")[:MAX_SHOWN_CHARACTERS]
        return ParsedMessage(
            headers, size, text, parse_error="This email could not be parsed. Its source is shown instead."
        )


def normalise_search_text(text: str) -> str:
    """Return text for comparison.

    Differences of case, spacing and Unicode representation (NFKC) are removed.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def decode_text(data: bytes, charset: str | None) -> str:
    """Decode bytes of any charset without errors.

    Invalid bytes and control characters become U+FFFD; an unknown charset is treated as UTF-8.
    """
    try:
        text = data.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):
        text = data.decode("utf-8", "replace")
    # Some charsets can decode to surrogates, which a response can't encode.
    return CONTROL_PATTERN.sub("\ufffd", text.encode("utf-8", "replace").decode())


def _read_bytes(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # `read` allocates the requested size at once, even if the file is shorter.
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
    """Decode a header as returned by the parser, as UTF-8 (RFC 6532)."""
    return decode_text(raw.encode("utf-8", "surrogateescape"), "utf-8")


def _decode_header_value(value: str) -> str:
    """Return a header's value on one line with its encoded words (RFC 2047) decoded."""
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
    """Append domains in Unicode: for xn--mller-kva.example also müller.example."""
    decoded = re.sub(r"(?i)\bxn--[a-z0-9-]+", lambda m: decode_text(m[0][4:].encode(), "punycode"), value)
    return value if decoded == value else f"{value} {decoded}"


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
    is_truncated = text is not None and len(text) > MAX_SHOWN_CHARACTERS
    return ParsedMessage(headers, size, text[:MAX_SHOWN_CHARACTERS] if text else text, html, attachments, is_truncated)


def _decode_part(part: Message) -> str:
    data = part.get_payload(decode=True)
    return decode_text(data if isinstance(data, bytes) else b"", part.get_content_charset())
