"""What was answered "redeemed" stays, whatever dies: the database or a web process at once, the web server in order.

On a PostgreSQL of its own with the settings that the program uses, for only that one must survive a crash.
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

pytestmark = pytest.mark.xdist_group("redemption crashes")

ROUNDS = 3


@pytest.fixture(scope="module")
def database() -> Iterator[DurableDatabase]:
    with durable_database.start_durable_database(50_000) as found:
        yield found


def workers(web: live_server.LiveProcess) -> list[psutil.Process]:
    """The processes of the web server that answer, those that hold most memory first."""
    children = psutil.Process(web.process.pid).children(recursive=True)
    return sorted(children, key=lambda process: -int(process.memory_info().rss))[:2]


def test_a_database_that_dies_under_load_loses_no_redemption_that_was_answered(database: DurableDatabase) -> None:
    with live_server.web_server(database.settings, workers=2) as web:
        before = {process.pid for process in workers(web)}
        with redemption_load(database, web, "DYING") as found:
            for _ in range(ROUNDS):
                found.wait_for(201)
                database.crash()
                found.wait_for(503)
                database.server.start()
            found.wait_for(201)
        after = {process.pid for process in workers(web)}

    check_redemptions(database, found)
    away = [reply for _, reply in found.responses if reply.status == 503]
    assert {reply.headers["content-type"] for reply in away} == {"application/problem+json"}
    assert {reply.body["code"] for reply in away} == {"unavailable"}
    assert all(int(reply.headers["retry-after"]) > 0 for reply in away)
    # The same processes went on.
    assert before == after
    assert found.emails_with(0) == []


@pytest.mark.slow
def test_a_web_process_that_is_killed_under_load_takes_no_answered_redemption_with_it(
    database: DurableDatabase,
) -> None:
    with live_server.web_server(database.settings, workers=2) as web:
        before = {process.pid for process in workers(web)}
        with redemption_load(database, web, "KILLED") as found:
            found.wait_for(201)
            workers(web)[0].kill()
            found.wait_for(201, 4 * ENOUGH)
        after = {process.pid for process in workers(web)}

    check_redemptions(database, found)
    assert len(after) == 2
    assert before != after


@pytest.mark.slow
def test_a_web_server_that_is_told_to_end_under_load_leaves_no_more_unanswered_than_was_in_hand(
    database: DurableDatabase,
) -> None:
    with live_server.web_server(database.settings, workers=2) as web, redemption_load(database, web, "ENDING") as found:
        found.wait_for(201)
        web.process.send_signal(signal.SIGTERM)
        web.process.wait(60)
        found.wait_for(0)

    check_redemptions(database, found)
    # Nearly always there is none; granian may drop the answers of the very moment in which it ends.
    assert len(database.redeemed_emails("ENDING") - set(found.emails_with(201))) < CLIENTS
