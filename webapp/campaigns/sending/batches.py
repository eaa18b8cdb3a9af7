"""The writes of those who send: cutting the audience, claiming a batch, keeping the place in it, noting what failed.

Rows are the truth and two owners of one batch are harmless: whoever takes a batch over raises its epoch, and every
later write of the former owner asks for the old one and finds nothing. Each write can be repeated, so it is, for as
long as a lease lasts, when the database is away for a moment.
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

# RFC 3463, 3.2: what is wrong with the recipient's address. 5.1.7 and 5.1.8 are about the sender's.
_INVALID_RECIPIENT_STATUS = re.compile(r"5\.1\.(?:0|1|2|3|4|6|9|10)\b")

# What is written of a refusal where a copy may have arrived before.
MERGED_STATE_SQL = "case when mail_issue.doubt and excluded.state = 'failed' then 'uncertain' else excluded.state end"
DUPLICATE_REFUSED_PREFIX = "it may have arrived before; a second copy was refused: "
MERGED_TEXT_SQL = (
    f"case when mail_issue.doubt and excluded.state = 'failed' then '{DUPLICATE_REFUSED_PREFIX}' || excluded.text "
    "else excluded.text end"
)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class BatchClaim:
    """A batch that this worker owns as long as the epoch holds. `position` and `sent` are where it stands."""

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
    """One of a window: where in the batch, who, and whether the mail may have gone out before."""

    index: int
    customer: Customer
    is_resend: bool


@dataclass(frozen=True)
class SendWindow:
    """What may be sent now without asking again, and which version of the offer it is about."""

    end: int
    recipients: list[Recipient]
    offer_version: int


def lease_duration() -> timedelta:
    return timedelta(seconds=timing.LEASE_DURATION)


def retry_while_database_unavailable(write: Callable[P, R]) -> Callable[P, R]:
    """Repeat a write that can be repeated while the database is away, for as long as a lease lasts."""

    @functools.wraps(write)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> R:
        deadline = time.monotonic() + timing.LEASE_DURATION
        while True:
            try:
                return write(*args, **kwargs)
            except (OperationalError, InterfaceError, PoolTimeout) as error:
                db.session.rollback()
                if time.monotonic() > deadline:
                    raise
                if not database_health.detect_outage(error):
                    log.warning("the database refuses, trying again: %s", getattr(error, "orig", None) or error)
                time.sleep(1)

    return repeated


# --- owning a batch -------------------------------------------------------------------------------

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
    """Own the next batch that nobody sends, whoever may have begun it. None when there is none.

    What a dead owner left open is settled first: what the cursor has passed was sent. The one recipient it stands at
    may or may not have the mail, because the cursor moves after each answer of the relay and before the next mail is
    begun; that one is recorded as `uncertain`, and sent again unless the campaign holds such mails. When the cursor
    is gone (the database crashed), all of the window is uncertain and held.
    """
    # The database reckons the lease from the beginning of the transaction.
    begun = time.monotonic()
    row = db.session.execute(_CLAIM_BATCH_SQL, {"owner": owner, "lease": lease_duration()}).one_or_none()
    if row is None:
        db.session.rollback()
        return None
    taken = take_over_batch(row, owner)
    db.session.commit()
    if row.window_end > row.window_start:
        what = {"campaign_id": taken.campaign_id, "batch_id": taken.batch_id}
        log.warning("takes over a batch whose owner was not heard of any more", extra=what)
    taken.lease_renewed_at = begun
    return taken


def take_over_batch(row: Row[Any], owner: str) -> BatchClaim:
    """The claim of a row whose owner and epoch are new; the former owner's cursor can't move from here on."""
    ids = decode_gaps(row.gaps)
    taken = BatchClaim(row.id, row.campaign_id, owner, row.epoch, ids, row.window_start, row.sent, time.monotonic())
    if row.window_end > row.window_start:
        _recover_open_window(taken, row.window_end)
    send_progress.move_cursor(db.session.connection(), taken, taken.position)
    db.session.execute(
        text("update batch set window_start = :at, window_end = :at, sent = :sent where id = :batch"),
        {"at": taken.position, "sent": taken.sent, "batch": taken.batch_id},
    )
    return taken


def _recover_open_window(taken: BatchClaim, window_end: int) -> None:
    """Account for an open window whose owner is gone; `taken` then stands where sending goes on."""
    start = taken.position
    cursor = db.session.execute(
        text("select cursor from batch_cursor where batch_id = :batch and epoch < :epoch for update"),
        {"batch": taken.batch_id, "epoch": taken.epoch},
    ).scalar_one_or_none()
    states = _find_delivery_states(taken.campaign_id, taken.customer_ids[start:window_end])
    if cursor is None:
        _record_uncertain(
            taken, [i for i in taken.customer_ids[start:window_end] if i not in states], "the database crashed"
        )
        taken.position = window_end
        return
    taken.sent += sum(1 for customer_id in taken.customer_ids[start:cursor] if customer_id not in states)
    taken.position = cursor
    open_ids = taken.customer_ids[cursor:window_end]
    in_flight = next((i for i in open_ids if states.get(i, "uncertain") == "uncertain"), None)
    if in_flight is None:
        taken.position = window_end
        return
    _record_uncertain(taken, [in_flight], "the worker was ended while this mail was on its way")
    if _find_uncertain_policy(taken.campaign_id) == "hold":
        taken.position = taken.customer_ids.index(in_flight, cursor) + 1


def _record_uncertain(taken: BatchClaim, ids: list[int], why: str) -> None:
    if ids:
        db.session.execute(
            text(
                "insert into mail_issue (campaign_id, customer_id, state, text, doubt) "
                "select :campaign, unnest(cast(:ids as bigint[])), 'uncertain', :why, true on conflict do nothing"
            ),
            {"campaign": taken.campaign_id, "ids": ids, "why": why},
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
def open_send_window(taken: BatchClaim) -> SendWindow | None:
    """Write ahead that the next recipients may get their mail from now on, and who of them is left out.

    None when the batch is somebody else's by now, or the campaign was paused or cancelled; then it is given back.
    """
    begun = time.monotonic()
    campaign = db.session.execute(
        text(
            "select c.status, c.offer_id, o.version, cast(extract(epoch from now() - c.launched_at) as int) as seconds "
            "from campaign c join offer o on o.id = c.offer_id where c.id = :id"
        ),
        {"id": taken.campaign_id},
    ).one()
    if campaign.status != "sending":
        release_batch(taken)
        return None
    end = min(taken.position + WINDOW_SIZE, len(taken.customer_ids))
    opened = db.session.execute(
        text(
            "update batch set window_start = :start, window_end = :end, sent = :sent, lease_until = now() + :lease, "
            "windows = windows || array[cast(:start as int), :seconds] "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {
            "start": taken.position,
            "end": end,
            "sent": taken.sent,
            "lease": lease_duration(),
            "seconds": campaign.seconds,
            **taken.ownership_params,
        },
    )
    if not opened.rowcount or not send_progress.move_cursor(db.session.connection(), taken, taken.position):  # type: ignore[attr-defined]
        db.session.rollback()
        return None
    ids = taken.customer_ids[taken.position : end]
    states = _find_delivery_states(taken.campaign_id, ids)
    people, skipped = eligible_recipients(
        campaign.offer_id, [i for i in ids if states.get(i, "uncertain") == "uncertain"]
    )
    record_skipped(taken.campaign_id, skipped)
    db.session.commit()
    taken.lease_renewed_at = begun
    found = [
        Recipient(taken.position + n, people[customer_id], customer_id in states)
        for n, customer_id in enumerate(ids)
        if customer_id in people
    ]
    return SendWindow(end, found, campaign.version)


def eligible_recipients(offer_id: int, ids: Sequence[int]) -> tuple[dict[int, Customer], dict[int, str]]:
    """Who of them is mailed, and why the others are not. Looked up right before a window is sent."""
    found = {customer.id: customer for customer in customer_queries.list_customers_by_ids(ids)}
    for customer in found.values():
        # They are read after the commit, which must not fetch each of them again.
        db.session.expunge(customer)
    redeemed = redemption_queries.find_redeemed_customer_ids(offer_id, ids)
    suppressed = customer_queries.find_suppression_reasons(ids)
    skipped = {}
    for customer_id in ids:
        if customer_id not in found:
            skipped[customer_id] = "no longer a customer"
        elif customer_id in suppressed:
            skipped[customer_id] = suppressed[customer_id]
        elif customer_id in redeemed:
            skipped[customer_id] = "has redeemed already"
    return {i: customer for i, customer in found.items() if i not in skipped}, skipped


def record_skipped(campaign_id: int, skipped: dict[int, str]) -> None:
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
            [{"campaign": campaign_id, "id": i, "why": why} for i, why in skipped.items()],
        )


@retry_while_database_unavailable
def renew_batch_lease(taken: BatchClaim) -> bool:
    """Keep the batch for another lease; False when it is somebody else's by now, or its campaign was stopped."""
    begun = time.monotonic()
    done = db.session.execute(
        text(
            "update batch set lease_until = now() + :lease where id = :batch and owner = :owner and epoch = :epoch "
            "and exists (select 1 from campaign c where c.id = batch.campaign_id and c.status = 'sending')"
        ),
        {"lease": lease_duration(), **taken.ownership_params},
    )
    db.session.commit()
    taken.lease_renewed_at = begun
    return bool(done.rowcount)  # type: ignore[attr-defined]


@retry_while_database_unavailable
def reserve_send_slots(turns: int, per_second: float) -> float:
    """Of what all workers together may hand to the relay, the next so many turns; in how many seconds they begin."""
    row = db.session.execute(
        text(
            "insert into mail_pace as pace (id, free_at) "
            "values (1, clock_timestamp() + make_interval(secs => :seconds)) "
            "on conflict (id) do update "
            "set free_at = greatest(pace.free_at, clock_timestamp()) + make_interval(secs => :seconds) "
            "returning extract(epoch from free_at - clock_timestamp()) - :seconds"
        ),
        {"seconds": turns / per_second},
    ).scalar_one()
    db.session.commit()
    return float(row)


@retry_while_database_unavailable
def release_batch(taken: BatchClaim, wait: float = 0) -> None:
    """Give the batch back where it stands, for anybody to go on with, at once or in `wait` seconds."""
    db.session.execute(
        text(
            "update batch set status = case when exists "
            "(select 1 from campaign c where c.id = batch.campaign_id and c.status = 'cancelled') "
            "then 'cancelled' else 'pending' end, owner = null, lease_until = null, "
            "window_start = :at, window_end = :at, sent = :sent, "
            "not_before = case when :wait > 0 then now() + make_interval(secs => :wait) end "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {"at": taken.position, "sent": taken.sent, "wait": wait, **taken.ownership_params},
    )
    db.session.commit()


@retry_while_database_unavailable
def finish_batch(taken: BatchClaim) -> None:
    """Everyone of the batch is settled; its cursor is not needed any more."""
    done = db.session.execute(
        text(
            "update batch set status = 'done', owner = null, lease_until = null, "
            "window_start = :at, window_end = :at, sent = :sent "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {"at": len(taken.customer_ids), "sent": taken.sent, **taken.ownership_params},
    )
    if done.rowcount:  # type: ignore[attr-defined]
        db.session.execute(text("delete from batch_cursor where batch_id = :batch"), {"batch": taken.batch_id})
    db.session.commit()


# --- what did not simply go out -------------------------------------------------------------------


@retry_while_database_unavailable
def record_outcome(taken: BatchClaim, recipient: Recipient, outcome: SmtpOutcome) -> bool:
    """Record what became of one recipient's mail and move on, in one transaction; False when the batch is lost.

    A mail that was accepted has a row only if there was a doubt about it before: `sent_later`. One that is refused at
    the second copy stays uncertain, for the first may have arrived.
    """
    if not send_progress.move_cursor(db.session.connection(), taken, recipient.index + 1):
        db.session.rollback()
        return False
    state = {"accepted": "sent_later", "trouble": "deferred"}.get(outcome.kind, outcome.kind)
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
            "campaign": taken.campaign_id,
            "id": recipient.customer.id,
            "state": state,
            "code": outcome.code,
            "words": "" if state == "sent_later" else outcome.text,
            "next": compute_retry_delay(0) if state == "deferred" else None,
        },
    )
    suppress_bounced_address(recipient.customer, taken.campaign_id, outcome)
    db.session.commit()
    return True


def suppress_bounced_address(customer: Customer, campaign_id: int, outcome: SmtpOutcome) -> None:
    """Nobody mails an address again of which the relay says that there is no such thing. The caller commits."""
    if outcome.kind == "failed" and outcome.stage == "RCPT" and _INVALID_RECIPIENT_STATUS.match(outcome.text):
        suppression_actions.add_suppression(customer.email, "bounced", campaign_id, f"{outcome.code} {outcome.text}")


def compute_retry_delay(attempts: int) -> timedelta:
    """How long until the next try, with a fifth of jitter so that they do not all come at once."""
    seconds = timing.RETRY_BACKOFF[min(attempts, len(timing.RETRY_BACKOFF) - 1)]
    return timedelta(seconds=seconds * random.uniform(0.9, 1.1))  # noqa: S311
