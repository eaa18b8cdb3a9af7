"""Apply the retention periods: erase inactive customers, delete old data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from sqlalchemy import text

from webapp.accounts.audit_retention import delete_old_audit_entries
from webapp.campaigns.retention import shorten_old_replies
from webapp.core import database_health, task_queue
from webapp.core.extensions import db
from webapp.redemptions.retention import clear_old_redemption_data
from webapp.retention.inactive_customers import erase_inactive_customers
from webapp.retention.periods import RETENTION_KINDS, RetentionKind, get_retention_days

log = logging.getLogger(__name__)

# Between two complete runs, and between a run that ended early and the next.
RUN_INTERVAL, CONTINUE_INTERVAL = timedelta(minutes=59), timedelta(seconds=50)
# Seconds of one run for all kinds of data; the rest is left for the next run. The thread that runs it also emails
# receipts.
TIME_BUDGET = 10.0

_STEPS: dict[RetentionKind, Callable[[int], Iterator[int]]] = {
    "customers": erase_inactive_customers,
    "redemptions": clear_old_redemption_data,
    "deliveries": shorten_old_replies,
    "audit": delete_old_audit_entries,
}
_CLAIM_RUN = text(
    """
    insert into retention_run as known (kind, started_at) values (:kind, now())
    on conflict (kind) do update set started_at = now(), finished_at = null, is_complete = false
    where known.started_at < now() - case when known.is_complete then cast(:run_interval as interval)
      else cast(:continue_interval as interval) end
    returning kind
    """
)
_FINISH_RUN = text(
    """
    update retention_run set finished_at = now(), is_complete = :is_complete, removed = :removed,
      removed_in_total = removed_in_total + :removed
    where kind = :kind
    """
)


def apply_retention_periods() -> None:
    """Apply the retention periods that are set and due, within `TIME_BUDGET`. Idempotent. Commits each step.

    Each kind of data runs once an hour on one of the workers. A step is one short transaction with at most about a
    thousand rows. The times are those of the database. A kind that has much to delete, or fails, does not keep the
    others from running: each has an equal share of the time that is left.
    """
    deadline = time.monotonic() + TIME_BUDGET
    kinds = [kind for kind in RETENTION_KINDS if get_retention_days(kind)]
    for position, kind in enumerate(kinds):
        now = time.monotonic()
        if now >= deadline:
            return
        try:
            if _claim_run(kind):
                _run(kind, now + (deadline - now) / (len(kinds) - position))
        except Exception as error:
            db.session.rollback()
            if database_health.report_if_outage(error):
                return
            log.exception("retention of %s failed", kind)


def _claim_run(kind: RetentionKind) -> bool:
    values = {"kind": kind, "run_interval": RUN_INTERVAL, "continue_interval": CONTINUE_INTERVAL}
    is_claimed = db.session.execute(_CLAIM_RUN, values).first() is not None
    db.session.commit()
    return is_claimed


def _run(kind: RetentionKind, deadline: float) -> None:
    removed, is_complete = 0, True
    for removed_by_step in _STEPS[kind](get_retention_days(kind)):
        db.session.commit()
        removed += removed_by_step
        if time.monotonic() >= deadline or task_queue.stop_requested.is_set():
            is_complete = False
            break
    db.session.execute(_FINISH_RUN, {"kind": kind, "removed": removed, "is_complete": is_complete})
    db.session.commit()
    if removed:
        remaining = "" if is_complete else ", more remain"
        log.info("retention: %s %s removed%s", removed, kind, remaining)
