"""Queries for the page about retention periods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select

from webapp.accounts.audit_retention import count_old_audit_entries
from webapp.campaigns.retention import count_campaigns_with_old_replies
from webapp.core.extensions import db
from webapp.redemptions.retention import count_old_redemptions
from webapp.retention.inactive_customers import count_candidates
from webapp.retention.models import RetentionRun
from webapp.retention.periods import RETENTION_KINDS, RetentionKind, get_retention_days

# The counts stop here, so that the page stays fast.
MAX_DUE_COUNT = 10_000
_COUNTERS: dict[RetentionKind, Callable[[int, int], int]] = {
    "customers": count_candidates,
    "redemptions": count_old_redemptions,
    "deliveries": count_campaigns_with_old_replies,
    "audit": count_old_audit_entries,
}


@dataclass(frozen=True)
class RetentionStatus:
    """The retention period of a kind of data, and its progress.

    :ivar days: 0 when the data is kept.
    :ivar due: rows that the next run reads, at most `MAX_DUE_COUNT`; campaigns for deliveries.
    :ivar last_run: None before the first run.
    """

    kind: RetentionKind
    days: int
    due: int
    last_run: RetentionRun | None


def list_retention_statuses() -> list[RetentionStatus]:
    """Return the status of every kind of data, in the order of `RETENTION_KINDS`."""
    runs = {run.kind: run for run in db.session.scalars(select(RetentionRun))}
    return [_build_status(kind, runs.get(kind)) for kind in RETENTION_KINDS]


def _build_status(kind: RetentionKind, last_run: RetentionRun | None) -> RetentionStatus:
    days = get_retention_days(kind)
    due = _COUNTERS[kind](days, MAX_DUE_COUNT) if days else 0
    return RetentionStatus(kind, days, due, last_run)
