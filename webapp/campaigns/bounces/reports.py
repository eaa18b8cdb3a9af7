"""What a mail that came back says: that an address does not exist, that somebody complained, or nothing to act on.

Reads delivery reports (RFC 3464), abuse reports (RFC 5965), and the plain letters of qmail and old Exims. Nothing here
asks the database, and nothing is believed: whose mail it was is proven by the marks we put on it (`Report.marks`).
"""

from __future__ import annotations

import email
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import getaddresses
from typing import Literal

Kind = Literal["bounce", "soft", "complaint", "unsubscribe", "other", "broken"]

# Nobody nests parts so deep but to harm a reader.
DEPTH_MAX = 20
TEXT_MAX = 100_000
# Of a field with addresses in it. Ten addresses are named at most, each of up to 254 characters (RFC 5321).
FIELD_MAX = 1_000
WORDS_MAX = 500

# RFC 5965, 7.3, and what some providers call an unsubscription.
COMPLAINTS = ("abuse", "fraud", "opt-out", "opt-out-list")
_TO_US = ("Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "X-Delivered-To", "To", "X-Forwarded-To")
_STATUS = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")
_REPLY = re.compile(r"\b([45])\d\d[ -]")
_MARKED = re.compile(r"[A-Za-z0-9._-]{1,40}\+[A-Za-z2-7]{18,60}@[A-Za-z0-9.-]+")
_MESSAGE_ID = re.compile(r"<[A-Za-z2-7]{42}@[A-Za-z0-9.-]+>")
_WAY_OUT = re.compile(r"/u/([\w.~-]{20,200})")
_ADDRESS = re.compile(r"[^\s<>;,:()\"'@]{1,320}@[^\s<>;,:()\"']{1,320}")
# Where an enhanced code says no more than "permanent", the words do.
_NOT_THE_ADDRESS = re.compile(
    r"spam|block|black ?list|deny ?list|polic|reputation|quota|full|over ?limit|too (?:large|big|many)|size|virus|"
    r"content|dmarc|spf|dkim|rate|temporar|try again|rejected by (?:our )?filter",
    re.IGNORECASE,
)
_QMAIL = re.compile(r"^Hi\. This is the ", re.MULTILINE)
_COPY = re.compile(r"^-{2,} ?(?:Below this line|This is a copy|Original message)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """One mail that came back.

    :ivar kind: `bounce`: this address will never take a mail. `soft`: not this time, or not this mail.
        `unsubscribe`: a request by mail, as `List-Unsubscribe` offers it. `other`: a vacation notice, or anything.
    :ivar status: the enhanced status code (RFC 3463), where there is one.
    :ivar words: the server's own.
    :ivar named: which addresses the report is about. Said by whoever wrote it, so it proves nothing.
    :ivar marks: what may be a mark of ours, in the order in which it is to be looked at.
    """

    kind: Kind
    status: str = ""
    words: str = ""
    named: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


def is_hard(status: str, words: str = "") -> bool:
    """Whether a permanent failure is one of the address, by RFC 3463; the table is in docs/consent.md."""
    found = _STATUS.search(status)
    if found is None or found[1] != "5":
        return False
    subject, detail = int(found[2]), int(found[3])
    if subject == 1:
        return detail not in (7, 8)
    if subject == 0 or (subject, detail) == (2, 0):
        return not _NOT_THE_ADDRESS.search(words)
    return (subject, detail) in ((2, 1), (4, 1), (4, 4))


def read(raw: bytes) -> Report:
    """What this mail says. Never raises: what can't be read is `broken` or `other`."""
    try:
        message = email.message_from_bytes(raw)
        parts = list(_parts(message))
        return _read(message, parts, raw)
    except (ValueError, LookupError, RecursionError, AttributeError, TypeError):
        return Report("broken")


def _read(message: Message, parts: list[Message], raw: bytes) -> Report:
    marks = _marks(message, raw)
    kinds = {part.get_content_type(): part for part in parts}
    if not message.keys():
        return Report("broken")
    if feedback := kinds.get("message/feedback-report"):
        return _complaint(feedback, marks)
    if status := kinds.get("message/delivery-status") or kinds.get("message/global-delivery-status"):
        return _delivery(status, marks)
    if message.get_content_type() == "multipart/report":
        return Report("other", marks=marks)
    if letter := _letter(message, parts, marks):
        return letter
    asks = _text(message.get("Subject")).strip().lower() == "unsubscribe"
    if asks and not _is_automatic(message):
        # Only what it was sent to says who asks; a quoted mail may be anybody's.
        return Report("unsubscribe", marks=tuple(_to_us(message)))
    return Report("other", marks=marks)


def _parts(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    payload = message.get_payload()
    # The original mail inside of a report is not a part of the report.
    if depth < DEPTH_MAX and isinstance(payload, list) and message.get_content_maintype() == "multipart":
        for part in payload:
            if isinstance(part, Message):
                yield from _parts(part, depth + 1)


def _complaint(part: Message, marks: tuple[str, ...]) -> Report:
    fields = _fields(part)
    kind = fields.get("feedback-type", "").strip().lower()
    named = _addresses(fields.get("original-rcpt-to", ""))
    return Report("complaint" if kind in COMPLAINTS else "other", "", f"feedback-type: {kind}"[:100], named, marks)


def _delivery(part: Message, marks: tuple[str, ...]) -> Report:
    """RFC 3464, 2.3: a group of fields for each recipient. Of several the first that failed for good counts."""
    found = Report("other", marks=marks)
    for fields in _groups(part):
        action = fields.get("action", "").strip().lower()
        words = _words(fields.get("diagnostic-code", "").partition(";")[2] or fields.get("diagnostic-code", ""))
        status = _status(fields.get("status", ""), words)
        named = _addresses(fields.get("original-recipient", ""), fields.get("final-recipient", ""))
        if action == "failed" and is_hard(status, words):
            return Report("bounce", status, words, named, marks)
        if action in ("failed", "delayed") and found.kind == "other":
            found = Report("soft", status, words, named, marks)
    return found


def _letter(message: Message, parts: list[Message], marks: tuple[str, ...]) -> Report | None:
    """Reports in plain words: qmail's, and those with `X-Failed-Recipients` (Exim, Gmail)."""
    failed = _text(message.get("X-Failed-Recipients"))
    text = next((_body(part) for part in parts if part.get_content_type() == "text/plain"), "")
    if not failed and not (_QMAIL.search(text) and _is_from_machine(message)):
        return None
    said = _COPY.split(text, maxsplit=1)[0]
    status = _status("", said)
    lines = [_words(line) for line in said.splitlines()]
    words = next((line for line in lines if _STATUS.search(line) or _REPLY.search(line)), "")
    named = _addresses(failed or next((line for line in lines if line.startswith("<") and "@" in line), ""))
    return Report("bounce" if is_hard(status, said) else "soft", status, words, named, marks)


def _status(given: str, words: str) -> str:
    """The enhanced code; that of the words where the field says no more than that it failed, or nothing."""
    field = _STATUS.search(given)
    said = _STATUS.search(words)
    if field and not (field[2] == field[3] == "0" and said and said[1] == field[1]):
        return field[0]
    if said:
        return said[0]
    reply = _REPLY.search(words)
    return f"{reply[1]}.0.0" if reply else ""


# --- fields and marks ------------------------------------------------------------------------------


def _groups(part: Message) -> Iterator[dict[str, str]]:
    """The groups of fields of a report: Python reads each as a message of its own, unless the report is bent."""
    payload = part.get_payload()
    if isinstance(payload, list):
        for group in payload:
            if not isinstance(group, Message):
                continue
            yield {name.lower(): _text(value) for name, value in group.items()}
        return
    for block in re.split(r"\r?\n\s*\r?\n", _body(part)):
        group = email.message_from_string(block.strip() + "\n\n")
        yield {name.lower(): _text(value) for name, value in group.items()}


def _fields(part: Message) -> dict[str, str]:
    merged: dict[str, str] = {}
    for group in _groups(part):
        merged |= group
    return merged


def _marks(message: Message, raw: bytes) -> tuple[str, ...]:
    """Marks wherever they stand: at whom it was sent to first, then in what is quoted of our mail."""
    quoted = raw.decode("latin-1")
    found = [*_to_us(message), *_MARKED.findall(quoted), *_MESSAGE_ID.findall(quoted)]
    found += [f"/u/{token}" for token in _WAY_OUT.findall(quoted.replace("=\r\n", "").replace("=\n", ""))]
    return tuple(dict.fromkeys(found))[:50]


def _to_us(message: Message) -> list[str]:
    headers = [_text(value) for name in _TO_US for value in message.get_all(name, [])]
    return [address for header in headers for address in _MARKED.findall(header)]


def _addresses(*fields: str) -> tuple[str, ...]:
    """Addresses of `rfc822; ada@example.com` (RFC 3464, 2.3.2) and of lists of addresses."""
    text = " ".join(field[:FIELD_MAX] for field in fields)
    named = _ADDRESS.findall(text) or [address for _, address in getaddresses([text]) if "@" in address]
    return tuple(dict.fromkeys(address.strip(".") for address in named))[:10]


def _is_automatic(message: Message) -> bool:
    """RFC 3834, and what programs wrote before it."""
    said = _text(message.get("Auto-Submitted")).strip().lower() or "no"
    precedence = _text(message.get("Precedence")).strip().lower()
    marks = ("X-Autoreply", "X-Autorespond", "X-Auto-Response-Suppress")
    return not said.startswith("no") or precedence in ("auto_reply", "bulk", "junk") or any(m in message for m in marks)


def _is_from_machine(message: Message) -> bool:
    sender = _text(message.get("From")).lower()
    return _text(message.get("Return-Path")).strip() in ("<>", "") or "mailer-daemon" in sender


def _words(text: str) -> str:
    """A server's words on one line, without what no text column takes."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:WORDS_MAX]


def _body(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return payload[:TEXT_MAX].decode("utf-8", "replace") if isinstance(payload, bytes) else ""


def _text(value: object) -> str:
    return "" if value is None else str(value).encode("utf-8", "replace").decode()
