"""Crashes during a campaign keep the guarantees: no recipient is lost.

A short version of `make chaos`. Workers and relay are separate processes; see tests/support/chaos.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.chaos import durable_database, scenarios
from tests.support.chaos.durable_database import DurableDatabase

CUSTOMERS = 600


@pytest.fixture(scope="module")
def database() -> Iterator[DurableDatabase]:
    with durable_database.start_durable_database(CUSTOMERS) as started:
        yield started


@pytest.mark.parametrize(
    ("policy", "deaths", "actions"),
    [
        ("hold", 2, {"kill": 1, "stop": 1}),
        pytest.param("hold", 4, {"kill": 3, "stop": 1}, marks=pytest.mark.slow),
        pytest.param("resend", 4, {"kill": 3, "stop": 1}, marks=pytest.mark.slow),
    ],
)
def test_killed_and_stopped_workers_keep_the_delivery_guarantees(
    database: DurableDatabase, policy: str, deaths: int, actions: dict[str, int]
) -> None:
    run = scenarios.kill_workers(database, policy, seed=4, deaths=deaths)
    assert run.broken == []
    assert run.actions == actions
    assert run.audit.status == "done"
    assert run.faults > 0


@pytest.mark.slow
def test_pausing_and_cancelling_work_while_workers_are_killed(database: DurableDatabase) -> None:
    paused, cancelled = scenarios.pause_and_cancel(database, "hold", seed=5)
    assert (paused.broken, cancelled.broken) == ([], [])
    assert 0 < paused.audit.received < cancelled.audit.received < CUSTOMERS


@pytest.mark.slow
def test_a_database_crash_during_a_campaign_loses_no_recipient(database: DurableDatabase) -> None:
    run = scenarios.crash_database(database, "resend", seed=6, times=1, kill=True)
    assert run.broken == []


@pytest.mark.slow
def test_a_relay_outage_loses_no_email(database: DurableDatabase) -> None:
    run = scenarios.relay_outage(database, "resend", seed=7, seconds=4)
    assert run.broken == []


@pytest.mark.slow
def test_workers_stopped_within_a_window_lose_and_repeat_no_email(database: DurableDatabase) -> None:
    run = scenarios.restart_workers(database, "resend", seed=8, times=2)
    assert run.broken == []
