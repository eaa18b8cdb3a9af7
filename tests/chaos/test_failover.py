"""Two servers, one a synchronous standby: what freezes loses nothing, and service returns by itself."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support import live_server
from tests.support.chaos import scenarios, standby
from tests.support.chaos.redemption_load import check_redemptions, redemption_load
from tests.support.chaos.running_campaign import start_campaign
from tests.support.chaos.standby import ReplicatedDatabase
from webapp.monitoring import readiness

pytestmark = pytest.mark.slow

RECIPIENTS, CUSTOMERS = 600, 100_000


@pytest.fixture
def replicated(request: pytest.FixtureRequest) -> Iterator[ReplicatedDatabase]:
    with standby.start_replicated_database(request.param) as started:
        yield started


def read_status(url: str) -> tuple[int, str]:
    """Return the response of `/readyz`; it takes two seconds at most, and more on a busy machine."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:
            return response.status, json.load(response)["status"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["status"]


@pytest.mark.parametrize("replicated", [CUSTOMERS], indirect=True)
def test_redeeming_works_again_when_a_standby_replaces_a_frozen_server(replicated: ReplicatedDatabase) -> None:
    database = replicated.database
    with live_server.web_server(database.settings) as web, redemption_load(database, web, "FROZEN") as load:
        load.wait_for(201)
        frozen = standby.freeze(database.server)
        try:
            load.wait_for(503, 1)
            assert read_status(web.url) == (503, readiness.NO_RESPONSE)
            replicated.promote()
            # The promise is 30 seconds after the promotion.
            load.wait_for(201, seconds=30)
            live_server.wait_until(lambda: read_status(web.url) == (200, "ready"), seconds=30)
        finally:
            standby.end(frozen, signal.SIGKILL)
    check_redemptions(database, load)


@pytest.mark.parametrize("replicated", [RECIPIENTS], indirect=True)
def test_a_campaign_continues_when_a_standby_replaces_a_frozen_server(replicated: ReplicatedDatabase) -> None:
    """The cursors are lost as in a crash, because their table is not replicated."""
    with start_campaign(replicated.database, "resend", seed=9, rate=0) as campaign:
        campaign.wait_for(RECIPIENTS // 4)
        frozen = standby.freeze(replicated.database.server)
        try:
            replicated.promote()
            before = campaign.emails
            campaign.wait(lambda: campaign.emails > before, "emails are sent again", seconds=30)
            campaign.wait_done()
        finally:
            standby.end(frozen, signal.SIGKILL)
        run = scenarios.audit_run("failover", campaign)
    assert not run.audit.missing
    assert not run.audit.contradictions


@pytest.mark.parametrize("replicated", [CUSTOMERS], indirect=True)
def test_commits_without_the_standby_are_neither_confirmed_nor_queued_up(replicated: ReplicatedDatabase) -> None:
    database = replicated.database
    with live_server.web_server(database.settings) as web, redemption_load(database, web, "ALONE") as load:
        load.wait_for(201)
        frozen = standby.freeze(replicated.standby)
        try:
            load.wait_for(503, 100)
            assert read_status(web.url) == (503, readiness.NO_RESPONSE)
            with database.connect() as connection:
                waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
                # One group of redemptions, and the checks whether writes succeed.
                assert connection.execute(waiting).fetchall()[0][0] <= 5
        finally:
            standby.end(frozen, signal.SIGCONT)
        load.wait_for(201)
        live_server.wait_until(lambda: read_status(web.url) == (200, "ready"))
    check_redemptions(database, load)
