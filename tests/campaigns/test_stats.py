"""The figures of a campaign that are derived from one row: rate, forecast, idle time, resumption."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Row

from webapp.campaigns import stats_queries
from webapp.campaigns.stats_queries import CampaignStats, IssueCause

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def compute_stats(**values: object) -> CampaignStats:
    """Compute the figures of a campaign that was launched an hour ago and has sent 100 of 1,000 emails."""
    row = {
        "status": "sending", "total": 1000, "sent": 100, "sent_before": 0, "at": NOW, "age": 3600,
        "sending_since": ago(1000), "finished_at": None, "trouble": None, "recent": None, "since": None, "last": None,
        "is_leased": True, "is_lease_renewed": True, "unrenewed_lease_until": None, "issues": None,
    }  # fmt: skip
    return stats_queries._stats_from_row(cast(Row[Any], SimpleNamespace(**(row | values))))


@pytest.mark.parametrize(
    ("values", "rate", "seconds_left"),
    [
        # Since sending last started.
        ({}, 0.1, 9000),
        ({"sent_before": 40}, 0.06, 15000),
        ({"sending_since": ago(0.5)}, 100, 9),
        ({"sent_before": 100}, None, None),
        ({"sent": 0}, None, None),
        ({"sending_since": None}, None, None),
        ({"sent": 1000}, 1, None),
        ({"sent": 999, "total": 1003}, 0.999, 5),
        # Of the recent windows.
        ({"recent": 60, "since": 3590}, 6, 150),
        ({"recent": 60, "since": 3599.5}, 60, 15),
        ({"recent": 7, "since": 3590, "sent": 100, "sent_before": 100}, 0.7, 1286),
        # Nothing is being sent.
        ({"trouble": "The mail relay can't be reached."}, None, None),
        ({"is_lease_renewed": False, "unrenewed_lease_until": ago(-10)}, None, None),
        ({"is_lease_renewed": True, "unrenewed_lease_until": ago(-10)}, 0.1, 9000),
        ({"is_lease_renewed": False, "sending_since": ago(50)}, 2, 450),
        ({"is_lease_renewed": False, "sending_since": ago(60)}, None, None),
        # Not in progress.
        ({"status": "done", "finished_at": ago(500)}, 0.2, None),
        ({"status": "done", "finished_at": ago(1000)}, 100, None),
        ({"status": "done", "finished_at": ago(500), "recent": 60, "since": 3590}, 0.2, None),
        ({"status": "done", "finished_at": ago(500), "trouble": "x"}, 0.2, None),
        ({"status": "paused"}, None, None),
        ({"status": "cancelled", "finished_at": ago(500)}, None, None),
    ],
)
def test_the_rate_and_the_forecast(values: dict[str, Any], rate: float | None, seconds_left: int | None) -> None:
    stats = compute_stats(**values)
    assert (stats.rate, stats.seconds_left) == (rate if rate is None else pytest.approx(rate), seconds_left)


@pytest.mark.parametrize(
    ("values", "idle_seconds"),
    [
        ({}, 1000),
        ({"last": 3590}, 10),
        ({"last": 3590, "sending_since": ago(5)}, 5),
        ({"last": 3601}, 0),
        ({"last": 3590.6}, 9),
        ({"sending_since": None}, None),
        ({"status": "paused"}, None),
        ({"status": "done"}, None),
    ],
)
def test_the_idle_time_begins_with_the_last_window_or_the_start(
    values: dict[str, Any], idle_seconds: int | None
) -> None:
    assert compute_stats(**values).idle_seconds == idle_seconds


@pytest.mark.parametrize(
    ("values", "resumes_by", "is_overdue"),
    [
        ({}, None, False),
        ({"unrenewed_lease_until": ago(-70)}, ago(-180), False),
        ({"unrenewed_lease_until": ago(90)}, NOW, False),
        ({"unrenewed_lease_until": ago(121)}, None, True),
        ({"unrenewed_lease_until": ago(121), "trouble": "x"}, None, False),
        ({"unrenewed_lease_until": ago(121), "status": "paused"}, None, False),
        ({"unrenewed_lease_until": ago(-70), "status": "paused"}, None, False),
    ],
)
def test_another_worker_resumes_within_two_minutes_after_the_lease(
    values: dict[str, Any], resumes_by: datetime | None, is_overdue: bool
) -> None:
    stats = compute_stats(**values)
    assert (stats.resumes_by, stats.is_overdue) == (resumes_by, is_overdue)
    assert stats.has_active_worker
    assert not compute_stats(**values, is_leased=False).has_active_worker


@pytest.mark.parametrize(("status", "deferred", "skipped"), [("sending", 5, 6), ("cancelled", 0, 11)])
def test_emails_are_counted_by_their_state(status: str, deferred: int, skipped: int) -> None:
    issues = [
        ["failed", 550, "5.1.1", 1], ["failed", 554, "", 2], ["deferred", 450, "", 5], ["uncertain", None, "x", 3],
        ["skipped", None, "unsubscribed", 6], ["left", None, "x", 7], ["sent_later", 250, "", 8],
    ]  # fmt: skip
    stats = compute_stats(status=status, issues=issues)
    assert (stats.total, stats.sent, stats.sent_later) == (1000, 108, 8)
    assert (stats.failed, stats.deferred, stats.uncertain, stats.skipped, stats.left) == (3, deferred, 3, skipped, 7)
    assert [cause.count for cause in stats.causes] == [8, 7, 6, 5, 3, 2, 1]
    assert stats.causes[-1] == IssueCause("failed", 550, "5.1.1", 1)
