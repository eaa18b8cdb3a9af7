"""A standby that is promoted has every confirmed redemption, and the program continues with it.

Two servers without Patroni: the primary crashes or freezes under load, and the test promotes its synchronous standby.
Web and worker processes know both servers and are not restarted.
"""

from __future__ import annotations

import socket
import urllib.request

import pytest

from tests.support import live_server
from tests.support.chaos import replicated_database, scenarios
from tests.support.chaos.redemption_load import check_redemptions, redemption_load
from tests.support.chaos.replicated_database import ReplicatedDatabase
from tests.support.chaos.running_campaign import start_campaign
from tests.support.live_server import wait_until
from webapp.monitoring import queries as monitoring_queries

pytestmark = pytest.mark.slow

CUSTOMERS = 50_000


def break_primary(servers: ReplicatedDatabase, fault: str) -> None:
    {"crash": servers.crash_primary, "freeze": servers.freeze_primary}[fault]()


def is_ready(web: live_server.LiveProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{web.url}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("fault", ["crash", "freeze"])
def test_a_promoted_standby_has_every_confirmed_redemption(fault: str) -> None:
    with replicated_database.start_replicated_database(CUSTOMERS) as servers:
        database = servers.database
        with (
            live_server.web_server(database.settings, workers=2) as web,
            live_server.worker(database.settings) as worker,
        ):
            with redemption_load(database, web, "FAILING") as traffic:
                traffic.wait_for(201)
                break_primary(servers, fault)
                traffic.wait_for(503)
                assert not is_ready(web)
                servers.promote()
                traffic.wait_for(201)

            wait_until(lambda: is_ready(web))
            with database.context():
                # Heartbeats are not replicated: this one was written after the promotion.
                wait_until(lambda: monitoring_queries.is_worker_alive(socket.gethostname()))
            assert worker.process.poll() is None

        check_redemptions(database, traffic)


def test_nothing_is_confirmed_without_the_standby() -> None:
    with (
        replicated_database.start_replicated_database(CUSTOMERS) as servers,
        live_server.web_server(servers.database.settings, workers=2) as web,
    ):
        with redemption_load(servers.database, web, "WAITING") as traffic:
            traffic.wait_for(201)
            servers.standby.stop()
            traffic.wait_for(503)
            confirmed = traffic.emails_with(201)
            traffic.wait_for(503)
            assert traffic.emails_with(201) == confirmed
            servers.standby.start()
            traffic.wait_for(201)

        check_redemptions(servers.database, traffic)


@pytest.mark.parametrize("fault", ["crash", "freeze"])
def test_a_campaign_continues_on_a_promoted_standby(fault: str) -> None:
    with (
        replicated_database.start_replicated_database(600) as servers,
        start_campaign(servers.database, "hold", seed=9) as campaign,
    ):
        campaign.wait_for(200)
        break_primary(servers, fault)
        servers.promote()
        campaign.wait_done()
        run = scenarios.audit_run("standby promoted", campaign)

    assert run.broken == []
