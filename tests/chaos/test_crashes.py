"""What was answered "redeemed" stays, whatever dies: the database or a web process at once, the web server in order.

On a PostgreSQL of its own with the settings that the program uses, for only that one must survive a crash.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import flask_migrate
import psutil
import psycopg
import pytest
from sqlalchemy import text

from tests import live
from tests.chaos.crowd import Reply, Shop
from webapp import create_app, embedded, settings
from webapp.accounts import actions as accounts
from webapp.extensions import db

CLIENTS = 10
ENOUGH = 25
ROUNDS = 3


@dataclass
class Place:
    """A durable PostgreSQL with many customers, and a key for its web server."""

    server: embedded.Server
    settings: settings.Settings
    key: str

    def die(self) -> None:
        """End the server as `pg_ctl stop -m immediate` does: nothing is written, nobody waited for."""
        pid = int((self.server.data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        process.send_signal(signal.SIGQUIT)
        psutil.wait_procs([process], timeout=30)

    def redeemed(self, code: str) -> set[str]:
        """Whose redemptions of an offer are in the table; the counter of its cap is held to them."""
        with psycopg.connect(self.server.url("onecode")) as connection:
            rows = connection.execute(
                "select c.email, o.redeemed from redemption r join customer c on c.id = r.customer_id "
                "join offer o on o.id = r.offer_id where o.code = %s",
                [code],
            ).fetchall()
        assert {counter for _, counter in rows} == {len(rows)}
        return {email for email, _ in rows}


@pytest.fixture(scope="module")
def place(test_settings: settings.Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="onecode-crash-"))
    folder.chmod(0o755)
    server = embedded.server(folder, folder / "s")
    server.start()
    server.create_database("onecode")
    mine = settings.load(
        {
            "DATABASE_URL": f"postgresql://onecode@/onecode?host={folder / 's'}",
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(tmp_path_factory.mktemp("crash")),
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": "1",
        }
    )
    app = create_app(mine)
    with app.app_context():
        flask_migrate.upgrade()
        key = accounts.create_api_key("tests", ["redeem", "manage"], by="tests")
        db.session.execute(
            text(
                "insert into customer (email, email_as_given) "
                "select e, e from (select 'c' || n || '@example.com' as e from generate_series(0, 49999) n) t"
            )
        )
        db.session.commit()
        db.engine.dispose()
    # This process's queue goes on with the database of the other tests.
    create_app(test_settings)
    yield Place(server, mine, key)
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Load:
    """Clients that redeem over the network, each for one customer after the other, until told to stop."""

    shop: Shop
    code: str
    heard: list[tuple[str, Reply]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def client(self, places: Iterator[int]) -> None:
        while not self.over.is_set():
            email = f"c{next(places)}@example.com"
            reply = self.shop.redeem(self.code, email)
            self.heard.append((email, reply))
            if reply.status != 201:
                time.sleep(0.02)

    def wait_for(self, status: int, number: int = ENOUGH) -> None:
        """Until so many more were answered like this."""
        wanted = len(self.who(status)) + number
        deadline = time.monotonic() + 60
        while len(self.who(status)) < wanted:
            assert time.monotonic() < deadline, Counter(reply.status for _, reply in self.heard)
            time.sleep(0.02)

    def who(self, status: int) -> list[str]:
        return [email for email, reply in list(self.heard) if reply.status == status]


@contextmanager
def load(place: Place, web: live.Live, code: str) -> Iterator[Load]:
    """The clients at work on a new offer; afterwards all have had their last answer."""
    shop = Shop(web.url, place.key)
    offer = {"name": "Summer", "code": code, "discount": {"type": "percent", "percent": "25"}, "max_redemptions": 10**6}
    assert shop.call("/api/v1/offers", offer).status == 201
    found = Load(shop, code)
    places = itertools.count()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[None]] = [pool.submit(found.client, places) for _ in range(CLIENTS)]
        try:
            yield found
        finally:
            found.over.set()
        for one in clients:
            one.result()


def check(place: Place, found: Load) -> None:
    """Every "redeemed" is in the table, and nothing else but what nobody got an answer to."""
    kept = place.redeemed(found.code)
    told = set(found.who(201))
    assert told <= kept
    assert kept - told <= set(found.who(503) + found.who(0))
    assert {reply.status for _, reply in found.heard} <= {201, 503, 0}
    # Nobody hears that nothing was saved of whom there is a row.
    assured = {who for who, reply in found.heard if reply.status == 503 and "Nothing was saved" in reply.body["detail"]}
    assert not assured & kept


def workers(web: live.Live) -> list[psutil.Process]:
    """The processes of the web server that answer, those that hold most memory first."""
    children = psutil.Process(web.process.pid).children(recursive=True)
    return sorted(children, key=lambda process: -int(process.memory_info().rss))[:2]


def test_a_database_that_dies_under_load_loses_no_redemption_that_was_answered(place: Place) -> None:
    with live.web_server(place.settings, workers=2) as web:
        before = {process.pid for process in workers(web)}
        with load(place, web, "DYING") as found:
            for _ in range(ROUNDS):
                found.wait_for(201)
                place.die()
                found.wait_for(503)
                place.server.start()
            found.wait_for(201)
        after = {process.pid for process in workers(web)}

    check(place, found)
    away = [reply for _, reply in found.heard if reply.status == 503]
    assert {reply.headers["content-type"] for reply in away} == {"application/problem+json"}
    assert {reply.body["code"] for reply in away} == {"unavailable"}
    assert all(int(reply.headers["retry-after"]) > 0 for reply in away)
    # The same processes went on.
    assert before == after
    assert found.who(0) == []


def test_a_web_process_that_is_killed_under_load_takes_no_answered_redemption_with_it(place: Place) -> None:
    with live.web_server(place.settings, workers=2) as web:
        before = {process.pid for process in workers(web)}
        with load(place, web, "KILLED") as found:
            found.wait_for(201)
            workers(web)[0].kill()
            found.wait_for(201, 4 * ENOUGH)
        after = {process.pid for process in workers(web)}

    check(place, found)
    assert len(after) == 2
    assert before != after


def test_a_web_server_that_is_told_to_end_under_load_leaves_no_more_unanswered_than_was_in_hand(place: Place) -> None:
    with live.web_server(place.settings, workers=2) as web, load(place, web, "ENDING") as found:
        found.wait_for(201)
        web.process.send_signal(signal.SIGTERM)
        web.process.wait(60)
        found.wait_for(0)

    check(place, found)
    # Nearly always there is none; granian may drop the answers of the very moment in which it ends.
    assert len(place.redeemed("ENDING") - set(found.who(201))) < CLIENTS
