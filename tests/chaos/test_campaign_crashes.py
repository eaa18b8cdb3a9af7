"""Whatever is killed, nobody is silently missed and nobody gets more copies than is promised. `make chaos` in small.

The workers and the relay are processes of their own; see tests/support/chaos.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.chaos import durable_database, scenarios
from tests.support.chaos.durable_database import DurableDatabase

pytestmark = pytest.mark.xdist_group("campaign crashes")

CUSTOMERS = 600


@pytest.fixture(scope="module")
def database() -> Iterator[DurableDatabase]:
    with durable_database.start_durable_database(CUSTOMERS) as found:
        yield found


@pytest.mark.parametrize("policy", ["hold", pytest.param("resend", marks=pytest.mark.slow)])
def test_workers_that_are_killed_or_stopped_miss_nobody_and_repeat_no_more_than_promised(
    database: DurableDatabase, policy: str
) -> None:
    run = scenarios.kill_workers(database, policy, seed=4, deaths=4)
    assert run.broken == []
    assert run.actions == {"kill": 3, "stop": 1}
    assert run.audit.status == "done"
    assert run.faults > 0


@pytest.mark.slow
def test_pause_and_cancel_hold_while_workers_are_killed(database: DurableDatabase) -> None:
    paused, cancelled = scenarios.pause_and_cancel(database, "hold", seed=5)
    assert (paused.broken, cancelled.broken) == ([], [])
    assert 0 < paused.audit.received < cancelled.audit.received < CUSTOMERS


@pytest.mark.slow
def test_a_database_that_dies_in_mid_campaign_leaves_held_windows_and_no_gap(database: DurableDatabase) -> None:
    run = scenarios.crash_database(database, "resend", seed=6, times=1, kill=True)
    assert run.broken == []


@pytest.mark.slow
def test_a_relay_that_is_away_costs_time_and_nobody_a_mail(database: DurableDatabase) -> None:
    run = scenarios.relay_outage(database, "resend", seed=7, seconds=4)
    assert run.broken == []


@pytest.mark.slow
def test_workers_that_are_ended_in_order_in_mid_window_lose_and_repeat_nothing(database: DurableDatabase) -> None:
    run = scenarios.restart_workers(database, "resend", seed=8, times=2)
    assert run.broken == []
