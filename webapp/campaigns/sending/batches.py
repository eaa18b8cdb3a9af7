"""Database writes of sending: claim a batch, open windows, renew the lease, record outcomes.

The rows are authoritative, and two owners of one batch are harmless: a worker that takes a batch over increments its
epoch, and every later write of the former owner is conditional on the old epoch and updates nothing. Every write can
safely be repeated, so it is retried for as long as a lease lasts while the database is unavailable.
"""

from __future__ import annotations

import functools
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from flask_babel import gettext as _
from sqlalchemy import Row, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from webapp.campaigns import timing
from webapp.campaigns.models import WINDOW_SIZE, decode_gaps
from webapp.campaigns.sending import progress as send_progress
from webapp.core import database_health
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail.smtp import SmtpOutcome
from webapp.redemptions import queries as redemption_queries

log = logging.getLogger(__name__)

# Permanent errors of the recipient address (RFC 3463, 3.2). 5.1.7 and 5.1.8 are about the sender address.
_INVALID_RECIPIENT_STATUS = re.compile(r"5\.1\.(?:0|1|2|3|4|6|9|10)\b")

# State and text of a rejected email when an earlier copy may have arrived.
MERGED_STATE_SQL = "case when mail_issue.doubt and excluded.state = 'failed' then 'uncertain' else excluded.state end"
DUPLICATE_REFUSED_PREFIX = "an earlier copy may have arrived; the second copy was rejected: "
MERGED_TEXT_SQL = (
    f"case when mail_issue.doubt and excluded.state = 'failed' then '{DUPLICATE_REFUSED_PREFIX}' || excluded.text "
    "else excluded.text end"
)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class BatchClaim:
    """A batch that this worker owns as long as its epoch is unchanged.

    `position` is the index of the next recipient, `sent` the number of emails sent so far.
    """

    batch_id: int
    campaign_id: int
    owner: str
    epoch: int
    customer_ids: list[int]
    position: int
    sent: int
    lease_renewed_at: float

    @property
    def ownership_params(self) -> dict[str, Any]:
        return {"batch": self.batch_id, "owner": self.owner, "epoch": self.epoch}


@dataclass(frozen=True)
class Recipient:
    """A recipient of a window: the index in the batch, the customer, and whether an earlier copy may have been sent."""

    index: int
    customer: Customer
    is_resend: bool


@dataclass(frozen=True)
class SendWindow:
    """Recipients who may be sent to without a further check, and the version of the offer that the email uses."""

    end: int
    recipients: list[Recipient]
    offer_version: int


def lease_duration() -> timedelta:
    return timedelta(seconds=timing.LEASE_DURATION)


def retry_while_database_unavailable(write: Callable[P, R]) -> Callable[P, R]:
    """Retry a repeatable write while the database is unavailable, for as long as a lease lasts."""

    @functools.wraps(write)
    def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        deadline = time.monotonic() + timing.LEASE_DURATION
        while True:
            try:
                return write(*args, **kwargs)
            except (OperationalError, InterfaceError, PoolTimeout) as error:
                db.session.rollback()
                if time.monotonic() > deadline:
                    raise
                if not database_health.detect_outage(error):
                    log.warning("database error, retrying: %s", getattr(error, "orig", None) or error)
                time.sleep(1)

    return retrying


# --- ownership of a batch -------------------------------------------------------------------------

_CLAIM_BATCH_SQL = text(
    """
    update batch set status = 'sending', owner = :owner, epoch = epoch + 1, lease_until = now() + :lease,
      not_before = null
    where id = (
      select b.id from batch b join campaign c on c.id = b.campaign_id
      where c.status = 'sending' and b.status in ('pending', 'sending')
        and case b.status when 'pending' then coalesce(b.not_before <= now(), true) else b.lease_until < now() end
      order by b.seq, b.campaign_id
      limit 1 for update of b skip locked
    )
    returning id, campaign_id, epoch, gaps, window_start, window_end, sent
    """
)


def claim_batch(owner: str) -> BatchClaim | None:
    """Claim the next pending batch, or one whose lease has expired. None when there is none.

    A window that a dead owner left open is recovered first. Recipients before the cursor were sent to. The recipient at
    the cursor may or may not have received the email, because the cursor moves after each reply of the relay and before
    the next email is started; that delivery is recorded as `uncertain`, and sent again unless the campaign holds
    uncertain deliveries. When the cursor is lost (the database crashed), the whole window is uncertain and held.

    :param owner: the unique id of the worker.
    """
    # now() in SQL is the start of the transaction, so the lease is counted from here.
    started_at = time.monotonic()
    row = db.session.execute(_CLAIM_BATCH_SQL, {"owner": owner, "lease": lease_duration()}).one_or_none()
    if row is None:
        db.session.rollback()
        return None
    claim = take_over_batch(row, owner)
    db.session.commit()
    if row.window_end > row.window_start:
        context = {"campaign_id": claim.campaign_id, "batch_id": claim.batch_id}
        log.warning("taking over a batch whose lease expired", extra=context)
    claim.lease_renewed_at = started_at
    return claim


def take_over_batch(row: Row[Any], owner: str) -> BatchClaim:
    """Return the claim of a batch row whose new owner and epoch are stored, and recover its open window.

    The former owner can't move the cursor any more. The caller commits.
    """
    ids = decode_gaps(row.gaps)
    claim = BatchClaim(row.id, row.campaign_id, owner, row.epoch, ids, row.window_start, row.sent, time.monotonic())
    if row.window_end > row.window_start:
        _recover_open_window(claim, row.window_end)
    send_progress.move_cursor(db.session.connection(), claim, claim.position)
    db.session.execute(
        text("update batch set window_start = :at, window_end = :at, sent = :sent where id = :batch"),
        {"at": claim.position, "sent": claim.sent, "batch": claim.batch_id},
    )
    return claim


def _recover_open_window(claim: BatchClaim, window_end: int) -> None:
    """Recover the open window of a dead owner; `claim.position` is then where sending continues."""
    start = claim.position
    cursor = db.session.execute(
        text("select cursor from batch_cursor where batch_id = :batch and epoch < :epoch for update"),
        {"batch": claim.batch_id, "epoch": claim.epoch},
    ).scalar_one_or_none()
    states = _find_delivery_states(claim.campaign_id, claim.customer_ids[start:window_end])
    if cursor is None:
        _record_uncertain(
            claim, [i for i in claim.customer_ids[start:window_end] if i not in states], _("the database crashed")
        )
        claim.position = window_end
        return
    claim.sent += sum(1 for customer_id in claim.customer_ids[start:cursor] if customer_id not in states)
    claim.position = cursor
    open_ids = claim.customer_ids[cursor:window_end]
    in_flight = next((i for i in open_ids if states.get(i, "uncertain") == "uncertain"), None)
    if in_flight is None:
        claim.position = window_end
        return
    _record_uncertain(claim, [in_flight], _("sending was interrupted"))
    if _find_uncertain_policy(claim.campaign_id) == "hold":
        claim.position = claim.customer_ids.index(in_flight, cursor) + 1


def _record_uncertain(claim: BatchClaim, ids: list[int], reason: str) -> None:
    if ids:
        db.session.execute(
            text(
                "insert into mail_issue (campaign_id, customer_id, state, text, doubt) "
                "select :campaign, unnest(cast(:ids as bigint[])), 'uncertain', :why, true on conflict do nothing"
            ),
            {"campaign": claim.campaign_id, "ids": ids, "why": reason},
        )


def _find_delivery_states(campaign_id: int, ids: Sequence[int]) -> dict[int, str]:
    rows = db.session.execute(
        text("select customer_id, state from mail_issue where campaign_id = :campaign and customer_id = any(:ids)"),
        {"campaign": campaign_id, "ids": list(ids)},
    )
    return {row.customer_id: row.state for row in rows}


def _find_uncertain_policy(campaign_id: int) -> str:
    return str(
        db.session.execute(
            text("select uncertain_policy from campaign where id = :id"), {"id": campaign_id}
        ).scalar_one()
    )


@retry_while_database_unavailable
def open_send_window(claim: BatchClaim) -> SendWindow | None:
    """Record, before anything is sent, that the next recipients may be sent to, and which of them are skipped.

    None when another worker owns the batch by now, or the campaign was paused or cancelled; then the batch is released.
    """
    started_at = time.monotonic()
    campaign = db.session.execute(
        text(
            "select c.status, c.offer_id, o.version, cast(extract(epoch from now() - c.launched_at) as int) as seconds "
            "from campaign c join offer o on o.id = c.offer_id where c.id = :id"
        ),
        {"id": claim.campaign_id},
    ).one()
    if campaign.status != "sending":
        release_batch(claim)
        return None
    end = min(claim.position + WINDOW_SIZE, len(claim.customer_ids))
    opened = db.session.execute(
        text(
            "update batch set window_start = :start, window_end = :end, sent = :sent, lease_until = now() + :lease, "
            "windows = windows || array[cast(:start as int), :seconds] "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {
            "start": claim.position,
            "end": end,
            "sent": claim.sent,
            "lease": lease_duration(),
            "seconds": campaign.seconds,
            **claim.ownership_params,
        },
    )
    if not opened.rowcount or not send_progress.move_cursor(db.session.connection(), claim, claim.position):  # type: ignore[attr-defined]
        db.session.rollback()
        return None
    ids = claim.customer_ids[claim.position : end]
    states = _find_delivery_states(claim.campaign_id, ids)
    customers, skipped = eligible_recipients(
        campaign.offer_id, [i for i in ids if states.get(i, "uncertain") == "uncertain"]
    )
    record_skipped(claim.campaign_id, skipped)
    db.session.commit()
    claim.lease_renewed_at = started_at
    recipients = [
        Recipient(claim.position + n, customers[customer_id], customer_id in states)
        for n, customer_id in enumerate(ids)
        if customer_id in customers
    ]
    return SendWindow(end, recipients, campaign.version)


def eligible_recipients(offer_id: int, ids: Sequence[int]) -> tuple[dict[int, Customer], dict[int, str]]:
    """Return the customers to send to, by id, and the reasons why the others are skipped, by id.

    Called right before a window is sent.
    """
    customers = {customer.id: customer for customer in customer_queries.list_customers_by_ids(ids)}
    for customer in customers.values():
        # Detached, because they are read after the commit, which would otherwise load each of them again.
        db.session.expunge(customer)
    redeemed = redemption_queries.find_redeemed_customer_ids(offer_id, ids)
    suppressed = customer_queries.find_suppression_reasons(ids)
    skipped = {}
    for customer_id in ids:
        if customer_id not in customers:
            skipped[customer_id] = _("no longer a customer")
        elif customer_id in suppressed:
            skipped[customer_id] = suppressed[customer_id]
        elif customer_id in redeemed:
            skipped[customer_id] = _("has already redeemed")
    return {i: customer for i, customer in customers.items() if i not in skipped}, skipped


def record_skipped(campaign_id: int, skipped: dict[int, str]) -> None:
    """Record skipped recipients with their reasons; an uncertain delivery stays uncertain. The caller commits."""
    if skipped:
        db.session.execute(
            text(
                "insert into mail_issue (campaign_id, customer_id, state, text) "
                "values (:campaign, :id, 'skipped', :why) "
                "on conflict (campaign_id, customer_id) do update "
                "set state = case when mail_issue.doubt then 'uncertain' else 'skipped' end, "
                "text = case when mail_issue.doubt "
                "then concat_ws('; ', nullif(mail_issue.text, ''), 'not sent again: ' || excluded.text) "
                "else excluded.text end, smtp_code = null, next_at = null, at = now()"
            ),
            [{"campaign": campaign_id, "id": i, "why": reason} for i, reason in skipped.items()],
        )


@retry_while_database_unavailable
def renew_batch_lease(claim: BatchClaim) -> bool:
    """Renew the lease of a batch; False when another worker owns it, or its campaign is not sending any more."""
    started_at = time.monotonic()
    result = db.session.execute(
        text(
            "update batch set lease_until = now() + :lease where id = :batch and owner = :owner and epoch = :epoch "
            "and exists (select 1 from campaign c where c.id = batch.campaign_id and c.status = 'sending')"
        ),
        {"lease": lease_duration(), **claim.ownership_params},
    )
    db.session.commit()
    claim.lease_renewed_at = started_at
    return bool(result.rowcount)  # type: ignore[attr-defined]


@retry_while_database_unavailable
def reserve_send_slots(slots: int, per_second: float) -> float:
    """Reserve send slots under the rate limit that all workers share; return the seconds until the first one."""
    delay = db.session.execute(
        text(
            "insert into mail_pace as pace (id, free_at) "
            "values (1, clock_timestamp() + make_interval(secs => :seconds)) "
            "on conflict (id) do update "
            "set free_at = greatest(pace.free_at, clock_timestamp()) + make_interval(secs => :seconds) "
            "returning extract(epoch from free_at - clock_timestamp()) - :seconds"
        ),
        {"seconds": slots / per_second},
    ).scalar_one()
    db.session.commit()
    return float(delay)


@retry_while_database_unavailable
def release_batch(claim: BatchClaim, delay: float = 0) -> None:
    """Release the batch at its position, so that any worker can continue it, at once or after `delay` seconds."""
    db.session.execute(
        text(
            "update batch set status = case when exists "
            "(select 1 from campaign c where c.id = batch.campaign_id and c.status = 'cancelled') "
            "then 'cancelled' else 'pending' end, owner = null, lease_until = null, "
            "window_start = :at, window_end = :at, sent = :sent, "
            "not_before = case when :wait > 0 then now() + make_interval(secs => :wait) end "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {"at": claim.position, "sent": claim.sent, "wait": delay, **claim.ownership_params},
    )
    db.session.commit()


@retry_while_database_unavailable
def finish_batch(claim: BatchClaim) -> None:
    """Record that all recipients of the batch are processed, and delete its cursor."""
    result = db.session.execute(
        text(
            "update batch set status = 'done', owner = null, lease_until = null, "
            "window_start = :at, window_end = :at, sent = :sent "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {"at": len(claim.customer_ids), "sent": claim.sent, **claim.ownership_params},
    )
    if result.rowcount:  # type: ignore[attr-defined]
        db.session.execute(text("delete from batch_cursor where batch_id = :batch"), {"batch": claim.batch_id})
    db.session.commit()


# --- outcomes -------------------------------------------------------------------------------------


@retry_while_database_unavailable
def record_outcome(claim: BatchClaim, recipient: Recipient, outcome: SmtpOutcome) -> bool:
    """Record the outcome of one delivery and move the cursor, in one transaction.

    An accepted email is recorded only if the delivery was uncertain before, as `sent_later`. If a second copy is
    rejected, the delivery stays uncertain, because the first copy may have arrived.

    :returns: False when another worker owns the batch by now; then nothing is recorded.
    """
    if not send_progress.move_cursor(db.session.connection(), claim, recipient.index + 1):
        db.session.rollback()
        return False
    state = {"accepted": "sent_later", "connection_lost": "deferred"}.get(outcome.kind, outcome.kind)
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text, next_at, attempts, doubt) "  # noqa: S608
            "values (:campaign, :id, :state, :code, :words, now() + cast(:next as interval), 1, :state = 'uncertain') "
            "on conflict (campaign_id, customer_id) do update set "
            f"state = {MERGED_STATE_SQL}, text = {MERGED_TEXT_SQL}, doubt = mail_issue.doubt or excluded.doubt, "
            "smtp_code = excluded.smtp_code, next_at = excluded.next_at, at = now(), "
            "attempts = mail_issue.attempts + 1"
        ),
        {
            "campaign": claim.campaign_id,
            "id": recipient.customer.id,
            "state": state,
            "code": outcome.code,
            "words": "" if state == "sent_later" else outcome.text,
            "next": compute_retry_delay(0) if state == "deferred" else None,
        },
    )
    suppress_bounced_address(recipient.customer, claim.campaign_id, outcome)
    db.session.commit()
    return True


def suppress_bounced_address(customer: Customer, campaign_id: int, outcome: SmtpOutcome) -> None:
    """Suppress a recipient address that the relay reports as invalid. The caller commits."""
    if outcome.kind == "failed" and outcome.stage == "RCPT" and _INVALID_RECIPIENT_STATUS.match(outcome.text):
        reply = f"{outcome.code} {outcome.text}"  # no translation
        suppression_actions.add_suppression(customer.email, "bounced", campaign_id, reply)


def compute_retry_delay(attempts: int) -> timedelta:
    """Return the delay until the next attempt, with 10 % jitter either way so that retries do not coincide."""
    seconds = timing.RETRY_BACKOFF[min(attempts, len(timing.RETRY_BACKOFF) - 1)]
    return timedelta(seconds=seconds * random.uniform(0.9, 1.1))  # noqa: S311
