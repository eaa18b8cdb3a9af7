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

BounceReportKind = Literal["bounce", "soft", "complaint", "unsubscribe", "other", "broken"]

# Nobody nests parts so deep but to harm a reader.
MIME_DEPTH_MAX = 20
BODY_TEXT_MAX = 100_000
# Of a field with addresses in it. Ten addresses are named at most, each of up to 254 characters (RFC 5321).
ADDRESS_FIELD_MAX = 1_000
DIAGNOSTIC_MAX = 500

# RFC 5965, 7.3, and what some providers call an unsubscription.
COMPLAINT_TYPES = ("abuse", "fraud", "opt-out", "opt-out-list")
_RECIPIENT_HEADERS = (
    "Delivered-To",
    "X-Original-To",
    "Envelope-To",
    "X-Envelope-To",
    "X-Delivered-To",
    "To",
    "X-Forwarded-To",
)
_ENHANCED_STATUS = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")
_REPLY_CODE = re.compile(r"\b([45])\d\d[ -]")
_TOKEN_ADDRESS = re.compile(r"[A-Za-z0-9._-]{1,40}\+[A-Za-z2-7]{18,60}@[A-Za-z0-9.-]+")
_MESSAGE_ID = re.compile(r"<[A-Za-z2-7]{42}@[A-Za-z0-9.-]+>")
_UNSUBSCRIBE_PATH = re.compile(r"/u/([\w.~-]{20,200})")
_ADDRESS = re.compile(r"[^\s<>;,:()\"'@]{1,320}@[^\s<>;,:()\"']{1,320}")
# Where an enhanced code says no more than "permanent", the words do.
_NOT_ADDRESS_FAILURE = re.compile(
    r"spam|block|black ?list|deny ?list|polic|reputation|quota|full|over ?limit|too (?:large|big|many)|size|virus|"
    r"content|dmarc|spf|dkim|rate|temporar|try again|rejected by (?:our )?filter",
    re.IGNORECASE,
)
_QMAIL = re.compile(r"^Hi\. This is the ", re.MULTILINE)
_QUOTED_MESSAGE = re.compile(
    r"^-{2,} ?(?:Below this line|This is a copy|Original message)", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class BounceReport:
    """One mail that came back.

    :ivar kind: `bounce`: this address will never take a mail. `soft`: not this time, or not this mail.
        `unsubscribe`: a request by mail, as `List-Unsubscribe` offers it. `other`: a vacation notice, or anything.
    :ivar status: the enhanced status code (RFC 3463), where there is one.
    :ivar words: the server's own.
    :ivar named: which addresses the report is about. Said by whoever wrote it, so it proves nothing.
    :ivar marks: what may be a mark of ours, in the order in which it is to be looked at.
    """

    kind: BounceReportKind
    status: str = ""
    diagnostic: str = ""
    addresses: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


def is_hard_bounce(status: str, words: str = "") -> bool:
    """Whether a permanent failure is one of the address, by RFC 3463; the table is in docs/consent.md."""
    found = _ENHANCED_STATUS.search(status)
    if found is None or found[1] != "5":
        return False
    subject, detail = int(found[2]), int(found[3])
    if subject == 1:
        return detail not in (7, 8)
    if subject == 0 or (subject, detail) == (2, 0):
        return not _NOT_ADDRESS_FAILURE.search(words)
    return (subject, detail) in ((2, 1), (4, 1), (4, 4))


def parse_report(raw: bytes) -> BounceReport:
    """What this mail says. Never raises: what can't be read is `broken` or `other`."""
    try:
        message = email.message_from_bytes(raw)
        parts = list(_iter_parts(message))
        return _classify_message(message, parts, raw)
    except (ValueError, LookupError, RecursionError, AttributeError, TypeError):
        return BounceReport("broken")


def _classify_message(message: Message, parts: list[Message], raw: bytes) -> BounceReport:
    marks = _find_tokens(message, raw)
    kinds = {part.get_content_type(): part for part in parts}
    if not message.keys():
        return BounceReport("broken")
    if feedback := kinds.get("message/feedback-report"):
        return _parse_feedback_report(feedback, marks)
    if status := kinds.get("message/delivery-status") or kinds.get("message/global-delivery-status"):
        return _parse_delivery_status(status, marks)
    if message.get_content_type() == "multipart/report":
        return BounceReport("other", tokens=marks)
    if letter := _parse_plain_text_bounce(message, parts, marks):
        return letter
    asks = _to_text(message.get("Subject")).strip().lower() == "unsubscribe"
    if asks and not _is_automatic(message):
        # Only what it was sent to says who asks; a quoted mail may be anybody's.
        return BounceReport("unsubscribe", tokens=tuple(_find_recipient_tokens(message)))
    return BounceReport("other", tokens=marks)


def _iter_parts(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    payload = message.get_payload()
    # The original mail inside of a report is not a part of the report.
    if depth < MIME_DEPTH_MAX and isinstance(payload, list) and message.get_content_maintype() == "multipart":
        for part in payload:
            if isinstance(part, Message):
                yield from _iter_parts(part, depth + 1)


def _parse_feedback_report(part: Message, marks: tuple[str, ...]) -> BounceReport:
    fields = _merge_fields(part)
    kind = fields.get("feedback-type", "").strip().lower()
    named = _parse_addresses(fields.get("original-rcpt-to", ""))
    return BounceReport(
        "complaint" if kind in COMPLAINT_TYPES else "other", "", f"feedback-type: {kind}"[:100], named, marks
    )


def _parse_delivery_status(part: Message, marks: tuple[str, ...]) -> BounceReport:
    """RFC 3464, 2.3: a group of fields for each recipient. Of several the first that failed for good counts."""
    found = BounceReport("other", tokens=marks)
    for fields in _iter_field_groups(part):
        action = fields.get("action", "").strip().lower()
        words = _clean_diagnostic(
            fields.get("diagnostic-code", "").partition(";")[2] or fields.get("diagnostic-code", "")
        )
        status = _find_enhanced_status(fields.get("status", ""), words)
        named = _parse_addresses(fields.get("original-recipient", ""), fields.get("final-recipient", ""))
        if action == "failed" and is_hard_bounce(status, words):
            return BounceReport("bounce", status, words, named, marks)
        if action in ("failed", "delayed") and found.kind == "other":
            found = BounceReport("soft", status, words, named, marks)
    return found


def _parse_plain_text_bounce(message: Message, parts: list[Message], marks: tuple[str, ...]) -> BounceReport | None:
    """Reports in plain words: qmail's, and those with `X-Failed-Recipients` (Exim, Gmail)."""
    failed = _to_text(message.get("X-Failed-Recipients"))
    text = next((_get_body_text(part) for part in parts if part.get_content_type() == "text/plain"), "")
    if not failed and not (_QMAIL.search(text) and _is_from_mailer_daemon(message)):
        return None
    said = _QUOTED_MESSAGE.split(text, maxsplit=1)[0]
    status = _find_enhanced_status("", said)
    lines = [_clean_diagnostic(line) for line in said.splitlines()]
    words = next((line for line in lines if _ENHANCED_STATUS.search(line) or _REPLY_CODE.search(line)), "")
    named = _parse_addresses(failed or next((line for line in lines if line.startswith("<") and "@" in line), ""))
    return BounceReport("bounce" if is_hard_bounce(status, said) else "soft", status, words, named, marks)


def _find_enhanced_status(given: str, words: str) -> str:
    """The enhanced code; that of the words where the field says no more than that it failed, or nothing."""
    field = _ENHANCED_STATUS.search(given)
    said = _ENHANCED_STATUS.search(words)
    if field and not (field[2] == field[3] == "0" and said and said[1] == field[1]):
        return field[0]
    if said:
        return said[0]
    reply = _REPLY_CODE.search(words)
    return f"{reply[1]}.0.0" if reply else ""


# --- fields and marks ------------------------------------------------------------------------------


def _iter_field_groups(part: Message) -> Iterator[dict[str, str]]:
    """The groups of fields of a report: Python reads each as a message of its own, unless the report is bent."""
    payload = part.get_payload()
    if isinstance(payload, list):
        for group in payload:
            if not isinstance(group, Message):
                continue
            yield {name.lower(): _to_text(value) for name, value in group.items()}
        return
    for block in re.split(r"\r?\n\s*\r?\n", _get_body_text(part)):
        group = email.message_from_string(block.strip() + "\n\n")
        yield {name.lower(): _to_text(value) for name, value in group.items()}


def _merge_fields(part: Message) -> dict[str, str]:
    merged: dict[str, str] = {}
    for group in _iter_field_groups(part):
        merged |= group
    return merged


def _find_tokens(message: Message, raw: bytes) -> tuple[str, ...]:
    """Marks wherever they stand: at whom it was sent to first, then in what is quoted of our mail."""
    quoted = raw.decode("latin-1")
    found = [*_find_recipient_tokens(message), *_TOKEN_ADDRESS.findall(quoted), *_MESSAGE_ID.findall(quoted)]
    found += [f"/u/{token}" for token in _UNSUBSCRIBE_PATH.findall(quoted.replace("=\r\n", "").replace("=\n", ""))]
    return tuple(dict.fromkeys(found))[:50]


def _find_recipient_tokens(message: Message) -> list[str]:
    headers = [_to_text(value) for name in _RECIPIENT_HEADERS for value in message.get_all(name, [])]
    return [address for header in headers for address in _TOKEN_ADDRESS.findall(header)]


def _parse_addresses(*fields: str) -> tuple[str, ...]:
    """Addresses of `rfc822; ada@example.com` (RFC 3464, 2.3.2) and of lists of addresses."""
    text = " ".join(field[:ADDRESS_FIELD_MAX] for field in fields)
    named = _ADDRESS.findall(text) or [address for _, address in getaddresses([text]) if "@" in address]
    return tuple(dict.fromkeys(address.strip(".") for address in named))[:10]


def _is_automatic(message: Message) -> bool:
    """RFC 3834, and what programs wrote before it."""
    said = _to_text(message.get("Auto-Submitted")).strip().lower() or "no"
    precedence = _to_text(message.get("Precedence")).strip().lower()
    marks = ("X-Autoreply", "X-Autorespond", "X-Auto-Response-Suppress")
    return not said.startswith("no") or precedence in ("auto_reply", "bulk", "junk") or any(m in message for m in marks)


def _is_from_mailer_daemon(message: Message) -> bool:
    sender = _to_text(message.get("From")).lower()
    return _to_text(message.get("Return-Path")).strip() in ("<>", "") or "mailer-daemon" in sender


def _clean_diagnostic(text: str) -> str:
    """A server's words on one line, without what no text column takes."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:DIAGNOSTIC_MAX]


def _get_body_text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return payload[:BODY_TEXT_MAX].decode("utf-8", "replace") if isinstance(payload, bytes) else ""


def _to_text(value: object) -> str:
    return "" if value is None else str(value).encode("utf-8", "replace").decode()
