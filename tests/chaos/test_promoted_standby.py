"""A standby that is promoted has every confirmed redemption, and the program continues with it.

Two servers without Patroni: the primary crashes or freezes under load, and the test promotes its synchronous standby.
Web and worker processes know both servers and are not restarted.
"""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable

import psycopg
import pytest

from local.postgresql import EmbeddedServer
from tests.support import live_server
from tests.support.chaos import replicated_database, scenarios
from tests.support.chaos.redemption_load import check_redemptions, redemption_load
from tests.support.chaos.running_campaign import start_campaign
from tests.support.live_server import wait_until
from webapp.core import database_health
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring import readiness

pytestmark = pytest.mark.slow

CUSTOMERS = 50_000
COUNT_WAITING_COMMITS = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"


def read_status(web: live_server.LiveProcess) -> tuple[int, str]:
    """Return the response of `/readyz`."""
    try:
        with urllib.request.urlopen(f"{web.url}/readyz", timeout=30) as response:
            return response.status, json.load(response)["status"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["status"]


@pytest.mark.parametrize("break_server", [replicated_database.kill, replicated_database.freeze])
def test_a_promoted_standby_has_every_confirmed_redemption(break_server: Callable[[EmbeddedServer], None]) -> None:
    with replicated_database.start_replicated_database(CUSTOMERS) as servers:
        database = servers.database
        with (
            live_server.web_server(database.settings, workers=2) as web,
            live_server.worker(database.settings) as worker,
        ):
            with redemption_load(database, web, "FAILING") as traffic:
                traffic.wait_for(201)
                break_server(servers.primary)
                traffic.wait_for(503)
                assert read_status(web)[0] == 503
                servers.promote()
                traffic.wait_for(201)

            wait_until(lambda: read_status(web) == (200, "ready"))
            with database.context():
                # Heartbeats are not replicated: this one was written after the promotion.
                wait_until(lambda: monitoring_queries.is_worker_alive(socket.gethostname()))
            assert worker.process.poll() is None

        check_redemptions(database, traffic)


def test_nothing_is_confirmed_without_the_standby() -> None:
    with replicated_database.start_replicated_database(CUSTOMERS, standby_first=True) as servers:
        database = servers.database
        with live_server.web_server(database.settings) as web, redemption_load(database, web, "WAITING") as traffic:
            traffic.wait_for(201)
            replicated_database.freeze(servers.standby)
            traffic.wait_for(503)
            confirmed = traffic.emails_with(201)
            traffic.wait_for(503, 100)
            assert traffic.emails_with(201) == confirmed
            assert read_status(web) == (503, readiness.NO_RESPONSE)
            with database.connect() as connection:
                (waiting,) = connection.execute(COUNT_WAITING_COMMITS).fetchone() or (None,)
            # A group of redemptions, and checks whether writes succeed: not one for each request.
            assert 0 < waiting <= 5
            replicated_database.resume(servers.standby)
            traffic.wait_for(201)
            wait_until(lambda: read_status(web) == (200, "ready"))

        check_redemptions(database, traffic)


def test_a_standby_is_recognised_by_the_error_for_an_unlogged_table() -> None:
    with (
        replicated_database.start_replicated_database(1) as servers,
        psycopg.connect(servers.standby.conninfo("onecode")) as connection,
        pytest.raises(psycopg.errors.FeatureNotSupported) as raised,
    ):
        connection.execute("select from worker")

    assert database_health.is_read_only(raised.value)


@pytest.mark.parametrize("break_server", [replicated_database.kill, replicated_database.freeze])
def test_a_campaign_continues_on_a_promoted_standby(break_server: Callable[[EmbeddedServer], None]) -> None:
    with (
        replicated_database.start_replicated_database(600) as servers,
        start_campaign(servers.database, "hold", seed=9) as campaign,
    ):
        campaign.wait_for(200)
        break_server(servers.primary)
        servers.promote()
        campaign.wait_done()
        run = scenarios.audit_run("standby promoted", campaign)

    assert run.broken == []
