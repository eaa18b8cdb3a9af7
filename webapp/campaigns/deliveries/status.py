"""States of deliveries, derived from the rows of batches and `mail_issue`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from flask_babel import gettext as _
from sqlalchemy import Row

DeliveryState = Literal[
    "sent",
    "sent_later",
    "failed",
    "deferred",
    "uncertain",
    "left",
    "skipped",
    "sending",
    "waiting",
    "cancelled",
    "not_recipient",
]
# States that are recorded in `mail_issue`.
RECORDED_STATES = ("failed", "deferred", "uncertain", "left", "skipped", "sent_later")
# States that follow from the position in the batch.
DERIVED_STATES = ("sent", "sending", "waiting", "cancelled")


@dataclass(frozen=True)
class DeliveryStatus:
    """The state of one customer's email of one campaign.

    :ivar at: time of the state (UTC); of an email sent at the first attempt, when its send window was opened. None if
        nothing has happened yet or an earlier version sent it without recording the time.
    :ivar code: the relay's reply code (RFC 5321).
    :ivar text: the relay's reply, or why the recipient was skipped.
    :ivar note: a sentence about the next step, or who has to resolve it.
    :ivar next_at: when a deferred email is retried.
    :ivar attempts: attempts to send the email, since staff had it resent if they did; 1 for `sent`.
    :ivar ahead: approximate number of emails before a waiting one.
    :ivar needs_resolution: whether staff must resend or dismiss it.
    :ivar source_id: the customer's id in the shop, empty if unknown.
    """

    campaign_id: int
    customer_id: int
    email: str
    name: str
    state: DeliveryState
    at: datetime | None = None
    code: int | None = None
    text: str = ""
    note: str = ""
    next_at: datetime | None = None
    attempts: int = 0
    ahead: int | None = None
    needs_resolution: bool = False
    source_id: str = ""


def to_delivery_status(row: Row[Any]) -> DeliveryStatus:
    """Derive the state of a recipient from its row."""
    index = row.batch_position - 1
    is_settled = index < row.window_start or (_is_window_open(row) and row.cursor is not None and index < row.cursor)
    is_in_window = not is_settled and _is_window_open(row) and index < row.window_end
    delivery = DeliveryStatus(
        row.campaign_id, row.customer_id, row.email or "", row.name or "", "waiting", source_id=row.source_id or ""
    )
    if row.state is not None:
        return _to_recorded_status(row, delivery, is_settled, is_in_window)
    if is_settled:
        at = _window_opened_at(row, index)
        sent_before = row.finished_at or row.read_at
        note = ""
        if at is None:
            time = f"{sent_before:%Y-%m-%d %H:%M}"
            note = _("The exact time is unknown; it was before %(time)s UTC.", time=time)
        return replace(delivery, state="sent", at=at, note=note, attempts=1)
    if is_in_window:
        note = ""
        if not row.is_leased:
            note = _("Sending was interrupted. It resumes automatically within a minute.")
        return replace(delivery, state="sending", at=_window_opened_at(row, index), note=note)
    if row.status == "cancelled" or row.campaign_status == "cancelled":
        return replace(delivery, state="cancelled", note=_("The campaign was cancelled before this email was sent."))
    return delivery


def _to_recorded_status(
    row: Row[Any], delivery: DeliveryStatus, is_settled: bool, is_in_window: bool
) -> DeliveryStatus:
    """Derive the state of a recipient that has a row in `mail_issue`."""
    delivery = replace(
        delivery,
        state=row.state,
        at=row.at,
        # The reply to an accepted email is not shown.
        code=None if row.state in ("skipped", "sent_later") else row.smtp_code,
        text=row.text,
        next_at=row.next_at if row.state in ("deferred", "uncertain") else None,
        attempts=row.attempts,
    )
    if row.state == "uncertain":
        return _to_uncertain_status(row, delivery, is_settled, is_in_window)
    if row.state == "deferred" and row.campaign_status == "cancelled":
        return replace(delivery, next_at=None, note=_("The campaign was cancelled, so this email is not retried."))
    if row.state == "sent_later" and row.doubt:
        return replace(
            delivery, note=_("An earlier attempt may have succeeded, so the customer may have got it twice.")
        )
    return delivery


def _is_window_open(row: Row[Any]) -> bool:
    return bool(row.status == "sending" and row.window_end > row.window_start)


def _to_uncertain_status(
    row: Row[Any], delivery: DeliveryStatus, is_settled: bool, is_in_window: bool
) -> DeliveryStatus:
    """Distinguish automatic resends from emails that staff have to resolve."""
    is_cancelled = row.campaign_status == "cancelled"
    resends = row.uncertain_policy == "resend" and row.campaign_status in ("sending", "paused")
    if is_in_window:
        return replace(delivery, note=_("It is being resent now."))
    is_retried = row.next_at is not None and row.next_at > row.read_at
    if is_retried and not is_cancelled:
        note = _("It is being retried now.")
        return replace(delivery, state="deferred", note=note, next_at=None, attempts=max(0, row.attempts - 1))
    if not is_cancelled and not is_settled:
        return replace(delivery, note=_("It will be resent automatically."))
    if is_retried:
        return replace(delivery, note=_("It is being retried now."))
    if row.next_at is not None and resends:
        return replace(delivery, note=_("It will be resent automatically."))
    if is_cancelled:
        note = _("The campaign was cancelled, so this email is not resent.")
    else:
        note = _("It has to be resolved: resend it or dismiss it.")
    return replace(delivery, needs_resolution=True, note=note)


def _window_opened_at(row: Row[Any], index: int) -> datetime | None:
    """Return when the window that contains a batch index was opened.

    This is the last window that starts at or before the index; None if it is unknown.
    """
    opened_after: int | None = None
    for start, seconds in zip(row.windows[::2], row.windows[1::2], strict=False):
        if start <= index:
            opened_after = seconds
    if opened_after is None or row.launched_at is None:
        return None
    launched_at: datetime = row.launched_at
    return launched_at + timedelta(seconds=opened_after)
