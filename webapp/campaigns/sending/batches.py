"""Database writes for batches: claim one, renew its lease, release and finish it.

The rows are authoritative, and two owners of one batch are harmless: a worker that takes a batch over increments its
epoch, and every later write of the former owner is conditional on the old epoch and updates nothing. Every write can
safely be repeated, so it is retried for as long as a lease lasts while the database is unavailable.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from flask_babel import gettext as _
from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from webapp.campaigns import timing
from webapp.campaigns.models import decode_gaps
from webapp.campaigns.sending import progress as send_progress
from webapp.campaigns.sending.disk_warning import store_disk_warning
from webapp.core import database_health
from webapp.core.extensions import db

log = logging.getLogger(__name__)

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
        """The batch, its owner and its epoch, as parameters of a statement."""
        return {"batch": self.batch_id, "owner": self.owner, "epoch": self.epoch}


def lease_duration() -> timedelta:
    """Return `timing.LEASE_DURATION` as a parameter of a statement."""
    return timedelta(seconds=timing.LEASE_DURATION)


def retry_while_database_unavailable(write: Callable[P, R]) -> Callable[P, R]:
    """Retry an idempotent write during an outage, no longer than a lease."""

    @functools.wraps(write)
    def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        deadline = time.monotonic() + timing.LEASE_DURATION
        while True:
            try:
                return write(*args, **kwargs)
            except (DBAPIError, PoolTimeout) as error:
                is_temporary = isinstance(error, (OperationalError, InterfaceError, PoolTimeout))
                if not is_temporary and not database_health.is_read_only(error):
                    raise
                db.session.rollback()
                if database_health.is_disk_full(error):
                    store_disk_warning()
                if time.monotonic() > deadline:
                    raise
                if not database_health.report_if_outage(error):
                    log.warning("%s failed, retrying: %s", write.__name__, getattr(error, "orig", None) or error)
                time.sleep(1)

    return retrying


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
    """Claim the next pending batch, or one whose lease has expired.

    A window that an owner whose lease has expired left open is recovered first. The emails before the cursor were sent.
    The recipient at the cursor may or may not have received the email, because the cursor moves after each reply of the
    relay and before the next email is started; that delivery is recorded as `uncertain`, and resent unless the campaign
    holds uncertain deliveries. When the cursor is lost (the database crashed), the whole window is uncertain and held.

    :param owner: the unique id of the worker.
    :returns: None when there is no such batch.
    """
    # now() in SQL is the start of the transaction, so the lease begins here.
    started_at = time.monotonic()
    row = db.session.execute(_CLAIM_BATCH_SQL, {"owner": owner, "lease": lease_duration()}).one_or_none()
    if row is None:
        db.session.rollback()
        return None
    claim = take_over_batch(row, owner)
    db.session.commit()
    if row.window_end > row.window_start:
        context = {"campaign_id": claim.campaign_id, "batch_id": claim.batch_id}
        log.warning("taking over batch %s: lease expired", claim.batch_id, extra=context)
    claim.lease_renewed_at = started_at
    return claim


def take_over_batch(row: Row[Any], owner: str) -> BatchClaim:
    """Return the claim for a batch, and recover its open window.

    Its new owner and epoch are already stored, so the former owner can no longer move the cursor. The caller commits.
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
    """Recover the open window of an owner whose lease has expired.

    Sending then continues at `claim.position`.
    """
    start = claim.position
    cursor = db.session.execute(
        text("select cursor from batch_cursor where batch_id = :batch and epoch < :epoch for update"),
        {"batch": claim.batch_id, "epoch": claim.epoch},
    ).scalar_one_or_none()
    states = find_delivery_states(claim.campaign_id, claim.customer_ids[start:window_end])
    if cursor is None:
        unrecorded_ids = [
            customer_id for customer_id in claim.customer_ids[start:window_end] if customer_id not in states
        ]
        _record_uncertain(claim, unrecorded_ids, _("the database crashed"))
        claim.position = window_end
        return
    claim.sent += sum(1 for customer_id in claim.customer_ids[start:cursor] if customer_id not in states)
    claim.position = cursor
    remaining_ids = claim.customer_ids[cursor:window_end]
    in_flight = next(
        (customer_id for customer_id in remaining_ids if states.get(customer_id, "uncertain") == "uncertain"), None
    )
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


def find_delivery_states(campaign_id: int, ids: Sequence[int]) -> dict[int, str]:
    """Return the recorded states of deliveries by customer id."""
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
def renew_batch_lease(claim: BatchClaim) -> bool:
    """Renew the lease of a batch.

    :returns: False when another worker owns it, or its campaign is no longer being sent.
    """
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
    """Reserve send slots of the rate limit; return the seconds until the first one.

    All workers share the rate limit.
    """
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
    """Release the batch at its position, so that any worker can continue it.

    :param delay: seconds before a worker may continue it.
    """
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
