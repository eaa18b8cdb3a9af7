"""The database goes away under the running program: a clear answer at once, and recovery without a hand."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import flask_migrate
import psycopg
import pytest
from flask import Flask

from local import postgresql as embedded_postgresql
from tests.support import live_server, watchdog
from tests.support.logs import captured_logs
from webapp import create_app
from webapp.accounts import actions as account_actions
from webapp.core import database_health, task_queue
from webapp.core import settings as app_settings
from webapp.core.extensions import db
from webapp.core.settings import ROOT


@dataclass
class Fragile:
    """The program on a PostgreSQL of its own that the test can stop."""

    url: str
    server: embedded_postgresql.EmbeddedServer
    key: str
    settings: app_settings.Settings

    def post(self, path: str, **fields: str) -> tuple[int, str]:
        return self._send(path, urllib.parse.urlencode(fields).encode(), {})

    def call(self, path: str, body: object) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        return self._send(path, json.dumps(body).encode(), headers)

    def _send(self, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def fragile(test_settings: app_settings.Settings, tmp_path: Path) -> Iterator[Fragile]:
    folder = Path(tempfile.mkdtemp(prefix="onecode-away-"))
    folder.chmod(0o755)
    server = embedded_postgresql.locate_server(folder, folder / "s")
    for one in (folder, server.home):
        watchdog.add_folder(one)
    server.start()
    server.create_database("onecode")
    mine = app_settings.load_settings(
        {
            "DATABASE_URL": f"postgresql://onecode@/onecode?host={folder / 's'}",
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(tmp_path),
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": "1",
        }
    )
    app = create_app(mine)
    with app.app_context():
        flask_migrate.upgrade()
        key = account_actions.create_api_key("tests", ["read", "redeem", "manage"], by="tests")
        db.engine.dispose()
    # This process's queue goes on with the database of the other tests.
    create_app(test_settings)
    with live_server.web_server(mine) as web:
        yield Fragile(web.url, server, key, mine)
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_customer_is_told_and_what_was_typed_is_offered_again(fragile: Fragile) -> None:
    fragile.server.stop()

    status, page = fragile.post("/redeem", code="SUMMER25", email="ada@example.com")

    assert status == 503
    assert "Please try again in a moment" in page
    assert 'name="code" value="SUMMER25"' in page
    assert 'name="email" value="ada@example.com"' in page


def test_a_shop_gets_a_problem_and_a_time_to_wait(fragile: Fragile) -> None:
    fragile.server.stop()

    status, body = fragile.call("/api/v1/validations", {"code": "SUMMER25", "customer": {"email": "ada@example.com"}})

    assert status == 503
    assert json.loads(body)["code"] == "unavailable"


def test_everything_works_again_when_the_database_is_back(fragile: Fragile) -> None:
    body = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
    before = fragile.call("/api/v1/validations", body)
    fragile.server.stop()
    assert fragile.call("/api/v1/validations", body)[0] == 503

    fragile.server.start()

    after = fragile.call("/api/v1/validations", body)
    assert (after[0], json.loads(after[1])["reason"]) == (200, "not_found")
    assert after[0] == before[0]


@pytest.fixture
def no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a process that has seen no outage yet."""
    monkeypatch.setattr(database_health, "_outage_started_at", None)
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)


@pytest.mark.usefixtures("no_outage")
@pytest.mark.parametrize(
    ("error", "is_outage"),
    [
        (psycopg.errors.AdminShutdown("terminating connection"), True),
        (psycopg.errors.CrashShutdown("terminating connection"), True),
        (psycopg.errors.CannotConnectNow("starting up"), True),
        (psycopg.errors.TooManyConnections("sorry, too many clients already"), True),
        (psycopg.errors.ConnectionFailure("connection failure"), True),
        (psycopg.OperationalError("connection failed: Connection refused"), True),
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg.errors.QueryCanceled("canceling statement"), False),
        (psycopg.errors.DeadlockDetected("deadlock detected"), False),
        (psycopg.errors.LockNotAvailable("lock timeout"), False),
        (psycopg.errors.DiskFull("no space left"), False),
        (psycopg.errors.UniqueViolation("duplicate key"), False),
        # A connection that is misused, which is no evidence while no outage is known.
        (psycopg.OperationalError("the connection is closed"), False),
        (psycopg.InterfaceError("cursor is closed"), False),
        (ValueError("connection failed"), False),
        (None, False),
    ],
)
def test_only_an_unavailable_database_is_an_outage(error: BaseException | None, is_outage: bool) -> None:
    assert database_health.detect_outage(error) is is_outage
    assert database_health.is_database_unavailable() is is_outage


@pytest.mark.usefixtures("no_outage")
def test_a_closed_connection_belongs_to_the_outage_that_is_known() -> None:
    closed = psycopg.InterfaceError("connection is closed")
    database_health.detect_outage(psycopg.errors.AdminShutdown("terminating connection"))
    assert database_health.detect_outage(closed)

    database_health.mark_recovered()

    assert not database_health.is_database_unavailable()
    # Another connection that the same outage has terminated starts no new one; a failed connect does.
    assert database_health.detect_outage(closed)
    assert database_health.detect_outage(psycopg.errors.AdminShutdown("terminating connection"))
    assert not database_health.is_database_unavailable()
    assert database_health.detect_outage(psycopg.OperationalError("connection failed: Connection refused"))
    assert database_health.is_database_unavailable()


WORKER = [sys.executable, "-m", "webapp.worker"]


def _wait_for(words: str, log: Path) -> None:
    deadline = time.monotonic() + 30
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_worker_says_in_a_line_that_it_is_away_and_in_another_that_it_is_back(
    fragile: Fragile, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with log.open("w") as file:
        worker = subprocess.Popen(WORKER, cwd=ROOT, env=live_server.environment(fragile.settings), stderr=file)
    try:
        _wait_for("worker started", log)
        fragile.server.stop()
        _wait_for("the database is unavailable", log)
        # Its threads try again several times a second.
        time.sleep(3)
        fragile.server.start()
        _wait_for("the database has recovered", log)
        # What each thread finds of its own connection.
        time.sleep(3)
    finally:
        worker.terminate()
        worker.wait(60)

    said = [line for line in log.read_text().splitlines() if "webapp.worker" not in line]
    # A server that is being stopped may let one more in, which looks as if it were back.
    assert len(said) in (2, 4), said
    assert all(
        "ERROR webapp.core.database_health the database is unavailable or closed a connection" in line
        for line in said[::2]
    )
    assert all("WARNING webapp.core.database_health the database has recovered after " in line for line in said[1::2])


def test_a_worker_that_is_not_let_in_says_why_in_one_line(test_settings: app_settings.Settings, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    nobody = live_server.environment(test_settings) | {
        "DATABASE_URL": "postgresql://onecode:secret@127.0.0.1:1/onecode"
    }
    with log.open("w") as file:
        worker = subprocess.Popen(WORKER, cwd=ROOT, env=nobody, stderr=file)
    try:
        _wait_for("the database is unavailable", log)
        time.sleep(2)
    finally:
        worker.terminate()
        worker.wait(60)

    (line,) = [line for line in log.read_text().splitlines() if "webapp.worker" not in line]
    assert "retrying until it answers: nothing answers at 127.0.0.1 port 1, the address in DATABASE_URL; " in line
    assert "secret" not in line


def test_one_connection_that_is_ended_is_over_when_another_answers(
    app: Flask, test_settings: app_settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = create_app(test_settings)
    task_queue.init_app(app)
    database_health.mark_recovered()
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)
    with other.app_context(), captured_logs(test_settings, "text") as stream:
        with db.engine.connect():
            pass
        assert database_health.detect_outage(psycopg.OperationalError("server closed the connection unexpectedly"))
        assert database_health.is_database_unavailable()
        # It was in the pool already, so nobody connects anew.
        with db.engine.connect():
            pass
        db.engine.dispose()

        assert database_health.detect_outage(psycopg.OperationalError("server closed the connection unexpectedly")), (
            "found late"
        )
    assert not database_health.is_database_unavailable()
    assert [line.split("webapp.core.database_health ")[1][:24] for line in stream.getvalue().splitlines()] == [
        "the database is unavaila",
        "the database has recover",
    ]


@pytest.mark.parametrize(
    "error",
    [
        psycopg.InterfaceError("the cursor is closed"),
        psycopg.OperationalError("the connection is closed"),
        psycopg.OperationalError("sending query failed: another command is already in progress"),
        psycopg.errors.DiskFull("could not extend file"),
    ],
)
def test_what_is_no_sign_of_a_database_that_is_away_is_not_taken_for_one(
    error: psycopg.Error, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_health.mark_recovered()
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)

    assert not database_health.detect_outage(error)
    assert not database_health.is_database_unavailable()


def test_of_refused_requests_not_more_than_one_a_second_is_told_of(
    app: Flask, test_settings: app_settings.Settings
) -> None:
    nowhere = replace(test_settings, database_url="postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    client = create_app(nowhere).test_client()
    task_queue.init_app(app)
    database_health.mark_recovered()
    try:
        with captured_logs(test_settings, "text") as stream:
            statuses = {client.get(path).status_code for path in ("/readyz", "/redeem", "/api/v1/offers", "/") * 20}
            database_health.mark_recovered()
    finally:
        database_health.mark_recovered()

    lines = stream.getvalue().splitlines()
    assert 503 in statuses
    assert "ERROR webapp.core.database_health the database is unavailable" in lines[0]
    assert re.search(
        r"WARNING webapp.core.database_health the database has recovered after \d+ s; \d+ rejected requests were not",
        lines[-1],
    )
    assert all(": 503 after" in line for line in lines[1:-1])
    assert 1 <= len(lines[1:-1]) < 20
