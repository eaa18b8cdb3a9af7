"""No confirmed redemption is lost when the database or a web process crashes.

These tests run on a separate PostgreSQL server with durable settings, as in production.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.support import live_server
from tests.support.chaos import durable_database
from tests.support.chaos.durable_database import DurableDatabase
from tests.support.chaos.redemption_load import CLIENTS, ENOUGH, check_redemptions, redemption_load


@pytest.fixture(scope="module")
def database() -> Iterator[DurableDatabase]:
    with durable_database.start_durable_database(50_000) as started:
        yield started


def web_workers(web: live_server.LiveProcess) -> list[psutil.Process]:
    """The two worker processes of the web server: the children with the most memory."""
    children = psutil.Process(web.process.pid).children(recursive=True)
    return sorted(children, key=lambda process: -int(process.memory_info().rss))[:2]


@pytest.mark.parametrize("crashes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_database_crash_under_load_loses_no_confirmed_redemption(database: DurableDatabase, crashes: int) -> None:
    with live_server.web_server(database.settings, workers=2) as web:
        before = {process.pid for process in web_workers(web)}
        with redemption_load(database, web, f"DYING{crashes}") as traffic:
            for _ in range(crashes):
                traffic.wait_for(201)
                database.crash()
                traffic.wait_for(503)
                database.server.start()
            traffic.wait_for(201)
        after = {process.pid for process in web_workers(web)}

    check_redemptions(database, traffic)
    unavailable = [reply for _, reply in traffic.responses if reply.status == 503]
    assert {reply.headers["content-type"] for reply in unavailable} == {"application/problem+json"}
    assert {reply.body["code"] for reply in unavailable} == {"unavailable"}
    assert all(int(reply.headers["retry-after"]) > 0 for reply in unavailable)
    # The same worker processes continued.
    assert before == after
    assert traffic.emails_with(0) == []


@pytest.mark.slow
def test_a_killed_web_process_loses_no_confirmed_redemption(database: DurableDatabase) -> None:
    with live_server.web_server(database.settings, workers=2) as web:
        before = {process.pid for process in web_workers(web)}
        with redemption_load(database, web, "KILLED") as traffic:
            traffic.wait_for(201)
            web_workers(web)[0].kill()
            traffic.wait_for(201, 4 * ENOUGH)
        after = {process.pid for process in web_workers(web)}

    check_redemptions(database, traffic)
    assert len(after) == 2
    assert before != after


@pytest.mark.slow
def test_a_stopping_web_server_leaves_few_requests_without_response(
    database: DurableDatabase,
) -> None:
    with (
        live_server.web_server(database.settings, workers=2) as web,
        redemption_load(database, web, "ENDING") as traffic,
    ):
        traffic.wait_for(201)
        web.process.send_signal(signal.SIGTERM)
        web.process.wait(60)
        traffic.wait_for(0)

    check_redemptions(database, traffic)
    # Usually there is none; granian may drop the responses in progress when it exits.
    assert len(database.redeemed_emails("ENDING") - set(traffic.emails_with(201))) < CLIENTS
