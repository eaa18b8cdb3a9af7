"""Parse bounce messages.

These are delivery reports (RFC 3464), abuse reports (RFC 5965) and plain-text bounces of qmail and old Exim.

This module does not access the database, and the content of a report is not trusted: only the signed tokens of the
original email (`BounceReport.tokens`) prove the recipient that it is about.
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

# Legitimate messages are not nested this deeply.
MAX_MIME_DEPTH = 20
MAX_BODY_TEXT_BYTES = 100_000
# Characters parsed of a field with addresses. At most ten addresses are returned, each of up to 254 characters
# (RFC 5321).
MAX_ADDRESS_FIELD_LENGTH = 1_000
MAX_DIAGNOSTIC_LENGTH = 500

# RFC 5965, 7.3, and the types that some providers use for an unsubscription.
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
# Decides by the diagnostic text when the enhanced status code says only "permanent failure".
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
    """A parsed bounce message.

    :ivar kind: `bounce`: the address permanently accepts no email. `soft`: a temporary failure, or one of this message
        only. `unsubscribe`: a request by email, as `List-Unsubscribe` offers it. `other`: a vacation notice or any
        other message. `broken`: not a parsable message.
    :ivar status: the enhanced status code (RFC 3463), empty if there is none.
    :ivar diagnostic: the server's reply text.
    :ivar addresses: the addresses that the report is about. Its sender may have forged them, so they prove nothing.
    :ivar tokens: candidates for tokens of this installation, in the order in which to check them.
    """

    kind: BounceReportKind
    status: str = ""
    diagnostic: str = ""
    addresses: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


def is_hard_bounce(status: str, diagnostic: str = "") -> bool:
    """Return whether a status is a permanent failure of the address (RFC 3463).

    The table is in docs/consent.md.
    """
    match = _ENHANCED_STATUS.search(status)
    if match is None or match[1] != "5":
        return False
    subject, detail = int(match[2]), int(match[3])
    if subject == 1:
        return detail not in (7, 8)
    if subject == 0 or (subject, detail) == (2, 0):
        return not _NOT_ADDRESS_FAILURE.search(diagnostic)
    return (subject, detail) in ((2, 1), (4, 1), (4, 4))


def parse_report(raw: bytes) -> BounceReport:
    """Parse a bounce message.

    Never raises: an unparsable message is `broken` or `other`.
    """
    try:
        message = email.message_from_bytes(raw)
        parts = list(_iter_parts(message))
        return _classify_message(message, parts, raw)
    except (ValueError, LookupError, RecursionError, AttributeError, TypeError):
        return BounceReport("broken")


def _classify_message(message: Message, parts: list[Message], raw: bytes) -> BounceReport:
    tokens = _find_tokens(message, raw)
    part_by_type = {part.get_content_type(): part for part in parts}
    if not message.keys():
        return BounceReport("broken")
    if feedback := part_by_type.get("message/feedback-report"):
        return _parse_feedback_report(feedback, tokens)
    status = part_by_type.get("message/delivery-status") or part_by_type.get("message/global-delivery-status")
    if status:
        return _parse_delivery_status(status, tokens)
    if message.get_content_type() == "multipart/report":
        return BounceReport("other", tokens=tokens)
    if report := _parse_plain_text_bounce(message, parts, tokens):
        return report
    is_unsubscribe = _to_text(message.get("Subject")).strip().lower() == "unsubscribe"
    if is_unsubscribe and not _is_automatic(message):
        # Only the address it was sent to identifies the sender; a quoted email may be of another recipient.
        return BounceReport("unsubscribe", tokens=tuple(_find_recipient_tokens(message)))
    return BounceReport("other", tokens=tokens)


def _iter_parts(message: Message, depth: int = 0) -> Iterator[Message]:
    yield message
    payload = message.get_payload()
    # The parts of the quoted original message are not parts of the report.
    if depth < MAX_MIME_DEPTH and isinstance(payload, list) and message.get_content_maintype() == "multipart":
        for part in payload:
            if isinstance(part, Message):
                yield from _iter_parts(part, depth + 1)


def _parse_feedback_report(part: Message, tokens: tuple[str, ...]) -> BounceReport:
    fields = _merge_fields(part)
    feedback_type = fields.get("feedback-type", "").strip().lower()
    addresses = _parse_addresses(fields.get("original-rcpt-to", ""))
    kind: BounceReportKind = "complaint" if feedback_type in COMPLAINT_TYPES else "other"
    return BounceReport(kind, "", f"feedback-type: {feedback_type}"[:100], addresses, tokens)


def _parse_delivery_status(part: Message, tokens: tuple[str, ...]) -> BounceReport:
    """Parse a delivery report, which has a group of fields per recipient.

    See RFC 3464, 2.3. If there are several recipients, the first hard bounce is used.
    """
    report = BounceReport("other", tokens=tokens)
    for fields in _iter_field_groups(part):
        action = fields.get("action", "").strip().lower()
        diagnostic = _clean_diagnostic(
            fields.get("diagnostic-code", "").partition(";")[2] or fields.get("diagnostic-code", "")
        )
        status = _find_enhanced_status(fields.get("status", ""), diagnostic)
        addresses = _parse_addresses(fields.get("original-recipient", ""), fields.get("final-recipient", ""))
        if action == "failed" and is_hard_bounce(status, diagnostic):
            return BounceReport("bounce", status, diagnostic, addresses, tokens)
        if action in ("failed", "delayed") and report.kind == "other":
            report = BounceReport("soft", status, diagnostic, addresses, tokens)
    return report


def _parse_plain_text_bounce(message: Message, parts: list[Message], tokens: tuple[str, ...]) -> BounceReport | None:
    """Parse a bounce of qmail, or one with `X-Failed-Recipients` (Exim, Gmail)."""
    failed = _to_text(message.get("X-Failed-Recipients"))
    text = next((_get_body_text(part) for part in parts if part.get_content_type() == "text/plain"), "")
    if not failed and not (_QMAIL.search(text) and _is_from_mailer_daemon(message)):
        return None
    explanation = _QUOTED_MESSAGE.split(text, maxsplit=1)[0]
    status = _find_enhanced_status("", explanation)
    lines = [_clean_diagnostic(line) for line in explanation.splitlines()]
    diagnostic = next((line for line in lines if _ENHANCED_STATUS.search(line) or _REPLY_CODE.search(line)), "")
    addresses = _parse_addresses(failed or next((line for line in lines if line.startswith("<") and "@" in line), ""))
    kind: BounceReportKind = "bounce" if is_hard_bounce(status, explanation) else "soft"
    return BounceReport(kind, status, diagnostic, addresses, tokens)


def _find_enhanced_status(field_value: str, diagnostic: str) -> str:
    """Return the most specific enhanced status code.

    The code of the diagnostic text is used if the field has none or only says that the delivery failed.
    """
    in_field = _ENHANCED_STATUS.search(field_value)
    in_diagnostic = _ENHANCED_STATUS.search(diagnostic)
    is_generic = in_field is not None and in_field[2] == in_field[3] == "0"
    if in_field and not (is_generic and in_diagnostic and in_diagnostic[1] == in_field[1]):
        return in_field[0]
    if in_diagnostic:
        return in_diagnostic[0]
    reply = _REPLY_CODE.search(diagnostic)
    return f"{reply[1]}.0.0" if reply else ""


# --- fields and tokens -----------------------------------------------------------------------------


def _iter_field_groups(part: Message) -> Iterator[dict[str, str]]:
    """Yield the groups of fields of a report.

    Python parses each as a message, unless the report is malformed. Of `message/global-delivery-status` (RFC 6533), it
    parses only the first group as a message, whose body has the others.
    """
    payload = part.get_payload()
    if isinstance(payload, list):
        for group in payload:
            if isinstance(group, Message):
                yield _to_fields(group)
                yield from _iter_text_groups(group)
        return
    yield from _iter_text_groups(part)


def _iter_text_groups(part: Message) -> Iterator[dict[str, str]]:
    for block in re.split(r"\r?\n\s*\r?\n", _get_body_text(part)):
        yield _to_fields(email.message_from_string(block.strip() + "\n\n"))


def _to_fields(group: Message) -> dict[str, str]:
    return {name.lower(): _to_text(value) for name, value in group.items()}


def _merge_fields(part: Message) -> dict[str, str]:
    merged: dict[str, str] = {}
    for group in _iter_field_groups(part):
        merged |= group
    return merged


def _find_tokens(message: Message, raw: bytes) -> tuple[str, ...]:
    """Find tokens in the recipient addresses, then in the quoted email."""
    source = raw.decode("latin-1")
    tokens = [*_find_recipient_tokens(message), *_TOKEN_ADDRESS.findall(source), *_MESSAGE_ID.findall(source)]
    unfolded = source.replace("=\r\n", "").replace("=\n", "")
    tokens += [f"/u/{token}" for token in _UNSUBSCRIBE_PATH.findall(unfolded)]
    return tuple(dict.fromkeys(tokens))[:50]


def _find_recipient_tokens(message: Message) -> list[str]:
    headers = [_to_text(value) for name in _RECIPIENT_HEADERS for value in message.get_all(name, [])]
    return [address for header in headers for address in _TOKEN_ADDRESS.findall(header)]


def _parse_addresses(*fields: str) -> tuple[str, ...]:
    """Parse `rfc822; ada@example.com` (RFC 3464, 2.3.2) and lists of addresses."""
    text = " ".join(field[:MAX_ADDRESS_FIELD_LENGTH] for field in fields)
    addresses = _ADDRESS.findall(text) or [address for _, address in getaddresses([text]) if "@" in address]
    return tuple(dict.fromkeys(address.strip(".") for address in addresses))[:10]


def _is_automatic(message: Message) -> bool:
    """Return whether a message is automatic (RFC 3834, and earlier headers)."""
    auto_submitted = _to_text(message.get("Auto-Submitted")).strip().lower() or "no"
    precedence = _to_text(message.get("Precedence")).strip().lower()
    return (
        not auto_submitted.startswith("no")
        or precedence in ("auto_reply", "bulk", "junk")
        or any(name in message for name in ("X-Autoreply", "X-Autorespond", "X-Auto-Response-Suppress"))
    )


def _is_from_mailer_daemon(message: Message) -> bool:
    sender = _to_text(message.get("From")).lower()
    return _to_text(message.get("Return-Path")).strip() in ("<>", "") or "mailer-daemon" in sender


def _clean_diagnostic(text: str) -> str:
    """Put a server's reply on one line, without unprintable characters.

    PostgreSQL's `text` rejects some of them.
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_DIAGNOSTIC_LENGTH]


def _get_body_text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return payload[:MAX_BODY_TEXT_BYTES].decode("utf-8", "replace") if isinstance(payload, bytes) else ""


def _to_text(value: object) -> str:
    return "" if value is None else str(value).encode("utf-8", "replace").decode()
