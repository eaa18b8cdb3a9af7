"""Outages of the database: a clear response immediately, and automatic recovery."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import flask_migrate
import psycopg
import pytest
from flask import Flask

from local import postgresql as embedded_postgresql
from tests.support import live_server, watchdog
from tests.support.live_server import wait_until
from tests.support.logs import captured_logs
from tests.support.server_errors import build_server_error
from webapp import create_app
from webapp.accounts import api_key_actions
from webapp.core import database_health, logs, migrations, task_queue
from webapp.core import settings as app_settings
from webapp.core.extensions import db
from webapp.core.settings import ROOT


@dataclass
class StoppableProgram:
    """The program with its own PostgreSQL, which the test can stop."""

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
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def program(test_settings: app_settings.Settings, tmp_path: Path) -> Iterator[StoppableProgram]:
    folder = Path(tempfile.mkdtemp(prefix="onecode-outage-"))
    folder.chmod(0o755)
    server = embedded_postgresql.locate_server(folder, folder / "s")
    for path in (folder, server.home):
        watchdog.add_folder(path)
    server.start()
    server.create_database("onecode")
    settings = app_settings.load_settings(
        {
            "DATABASE_URL": f"postgresql://onecode@/onecode?host={folder / 's'}",
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(tmp_path),
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": "1",
        }
    )
    app = create_app(settings)
    migrations.init_app(app)
    with app.app_context():
        flask_migrate.upgrade()
        key = api_key_actions.create_api_key("tests", ["read", "redeem", "manage"], by="tests")
        db.engine.dispose()
    # Point the task queue of this process at the database of the other tests again.
    create_app(test_settings)
    with live_server.web_server(settings) as web:
        yield StoppableProgram(web.url, server, key, settings)
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_during_an_outage_the_form_keeps_its_input_and_says_to_retry(program: StoppableProgram) -> None:
    program.server.stop()

    status, page = program.post("/redeem", code="SUMMER25", email="ada@example.com")

    assert status == 503
    assert "Please try again in a moment" in page
    assert 'name="code" value="SUMMER25"' in page
    assert 'name="email" value="ada@example.com"' in page


@pytest.mark.slow
def test_during_an_outage_the_api_responds_with_503(program: StoppableProgram) -> None:
    program.server.stop()

    status, body = program.call("/api/v1/validations", {"code": "SUMMER25", "customer": {"email": "ada@example.com"}})

    assert status == 503
    assert json.loads(body)["code"] == "unavailable"


def test_the_api_works_again_after_an_outage(program: StoppableProgram) -> None:
    body = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
    before = program.call("/api/v1/validations", body)
    program.server.stop()
    assert program.call("/api/v1/validations", body)[0] == 503

    program.server.start()

    after = program.call("/api/v1/validations", body)
    assert (after[0], json.loads(after[1])["reason"]) == (200, "not_found")
    assert after[0] == before[0]


@pytest.mark.slow
def test_at_the_connection_limit_a_saved_redemption_is_confirmed(program: StoppableProgram) -> None:
    program.call(
        "/api/v1/offers", {"name": "Summer", "code": "SUMMER25", "discount": {"type": "percent", "percent": "25"}}
    )
    with psycopg.connect(program.settings.libpq_url) as connection:
        connection.execute(
            "insert into customer (email, email_as_given, name) select address, address, '' "
            "from (select 'c' || g || '@example.com' as address from generate_series(1, 5) g) addresses"
        )
    with all_connections(program.settings.libpq_url) as held:
        held[0].execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where pid <> pg_backend_pid() "
            "and backend_type = 'client backend' and application_name <> 'held'"
        )
        with all_connections(program.settings.libpq_url) as freed:
            # The web process can open one connection.
            freed[-1].close()
            bodies = [{"code": "SUMMER25", "customer": {"email": f"c{number}@example.com"}} for number in range(1, 6)]
            statuses = [program.call("/api/v1/redemptions", body)[0] for body in bodies]
        saved = held[0].execute("select count(*) from redemption").fetchone()

    assert (saved or [None])[0] == statuses.count(201) > 0
    assert set(statuses) <= {201, 503}


@contextmanager
def all_connections(url: str) -> Iterator[list[psycopg.Connection]]:
    """Hold all connections that the server has left."""
    with ExitStack() as stack:
        held: list[psycopg.Connection] = []
        with suppress(psycopg.OperationalError):
            while True:
                held.append(stack.enter_context(psycopg.connect(url, autocommit=True, application_name="held")))
        yield held


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
        (build_server_error(psycopg.errors.DiskFull, severity="PANIC"), True),
        (build_server_error(psycopg.errors.IoError, severity="FATAL"), True),
        (psycopg.errors.UniqueViolation("duplicate key"), False),
        # A connection that is misused, which is no evidence while no outage is known.
        (psycopg.OperationalError("the connection is closed"), False),
        (psycopg.InterfaceError("cursor is closed"), False),
        (ValueError("connection failed"), False),
        (None, False),
    ],
)
def test_only_an_unavailable_database_is_an_outage(error: BaseException | None, is_outage: bool) -> None:
    assert database_health.report_if_outage(error) is is_outage
    assert database_health.is_database_unavailable() is is_outage


@pytest.mark.usefixtures("no_outage")
def test_a_closed_connection_belongs_to_the_outage_that_is_known() -> None:
    closed = psycopg.InterfaceError("connection is closed")
    database_health.report_if_outage(psycopg.errors.AdminShutdown("terminating connection"))
    assert database_health.report_if_outage(closed)

    database_health.mark_recovered()

    assert not database_health.is_database_unavailable()
    # Another connection that the same outage has terminated starts no new one; a failed connect does.
    assert database_health.report_if_outage(closed)
    assert database_health.report_if_outage(psycopg.errors.AdminShutdown("terminating connection"))
    assert not database_health.is_database_unavailable()
    assert database_health.report_if_outage(psycopg.OperationalError("connection failed: Connection refused"))
    assert database_health.is_database_unavailable()


@pytest.mark.usefixtures("no_outage")
def test_a_worker_does_not_log_each_rejected_write_of_an_outage(test_settings: app_settings.Settings) -> None:
    error = psycopg.errors.ReadOnlySqlTransaction("cannot execute LISTEN during recovery")
    logger = logging.getLogger("huey.consumer.Worker")
    with captured_logs(test_settings, "text") as stream:
        logger.error("before", exc_info=error)
        database_health.report_if_outage(psycopg.errors.AdminShutdown("terminating connection"))
        logger.error("during", exc_info=error)
        database_health.mark_recovered()
        logger.error("afterwards", exc_info=error)
        logger.error("another", exc_info=psycopg.errors.UndefinedTable("no such table"))

    logged = [line.split(maxsplit=3)[3] for line in stream.getvalue().splitlines() if "huey.consumer.Worker" in line]
    assert logged == ["before", "another"]


WORKER = [sys.executable, "-m", "webapp.worker"]


@contextmanager
def running_worker(settings: app_settings.Settings, log: Path, **variables: str) -> Iterator[None]:
    """Run a worker that logs to a file."""
    environment = live_server.environment(settings, **variables)
    with log.open("w") as file:
        worker = subprocess.Popen(WORKER, cwd=ROOT, env=environment, stderr=file)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


def wait_for_log(log: Path, text: str) -> None:
    """Wait until the last line of a log contains a text."""
    wait_until(lambda: text in "".join(logged_lines(log)[-1:]), what=log.read_text)


def wait_for_attempts(listener: socket.socket, number: int = 10) -> None:
    """Accept connections and end each at once: the threads of a worker retry."""
    listener.listen()
    for _ in range(number):
        listener.accept()[0].close()


def logged_lines(log: Path) -> list[str]:
    """Return the lines of a worker's log, except those about its start and, after 15 seconds, its heartbeat."""
    others = " webapp.worker ", " webapp.monitoring.heartbeat "
    return [line for line in log.read_text().splitlines() if not any(name in line for name in others)]


def count_idle_sessions(url: str) -> int:
    """Return how many sessions of the worker have found nothing to do, such as those that look for a task."""
    with psycopg.connect(url) as connection:
        query = "select count(*) from pg_stat_activity where application_name = 'worker' and query = 'ROLLBACK'"
        return int((connection.execute(query).fetchone() or [0])[0])


@pytest.mark.slow
def test_a_worker_logs_the_outage_and_the_recovery_once(program: StoppableProgram, tmp_path: Path) -> None:
    log, url = tmp_path / "worker.log", program.settings.libpq_url
    threads = program.settings.mail_connections + 2
    with running_worker(program.settings, log, PGAPPNAME="worker"):
        wait_until(lambda: count_idle_sessions(url) >= threads, what=log.read_text)
        program.server.stop()
        wait_for_log(log, "database unavailable")
        with socket.socket(socket.AF_UNIX) as listener:
            address = program.server.socket_folder / ".s.PGSQL.5432"
            address.parent.mkdir()
            listener.bind(str(address))
            listener.settimeout(180)
            wait_for_attempts(listener)
            during = logged_lines(log)
            wait_for_attempts(listener)
            assert logged_lines(log) == during
        address.unlink()
        address.parent.rmdir()
        program.server.start()
        # Each thread has its own connection.
        wait_until(lambda: count_idle_sessions(url) >= threads, what=log.read_text)
        wait_for_log(log, "the database has recovered")

    lines = logged_lines(log)
    assert lines[:-1] == during
    # A server that is stopping may accept one more connection, which looks like a recovery.
    assert all(
        "ERROR webapp.core.database_health database unavailable or connection closed" in line for line in lines[::2]
    )
    assert all(
        "WARNING webapp.core.database_health the database has recovered after at most " in line for line in lines[1::2]
    )


@pytest.mark.slow
def test_a_worker_without_a_database_logs_one_line(test_settings: app_settings.Settings, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    # Connections are refused until it listens.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(180)
        port = listener.getsockname()[1]
        url = f"postgresql://onecode:secret@127.0.0.1:{port}/onecode"
        with running_worker(test_settings, log, DATABASE_URL=url):
            wait_until(lambda: "database unavailable" in log.read_text(), what=log.read_text)
            wait_for_attempts(listener)

    (line,) = logged_lines(log)
    assert f"retrying: nothing answers at 127.0.0.1 port {port}, the address in DATABASE_URL; " in line
    assert "secret" not in line


def test_an_outage_ends_when_any_connection_works(
    app: Flask, test_settings: app_settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_app = create_app(test_settings)
    task_queue.init_app(app)
    database_health.mark_recovered()
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)
    with other_app.app_context(), captured_logs(test_settings, "text") as stream:
        with db.engine.connect():
            pass
        assert database_health.report_if_outage(psycopg.OperationalError("server closed the connection unexpectedly"))
        assert database_health.is_database_unavailable()
        # The connection was in the pool already, so no new one is opened.
        with db.engine.connect():
            pass
        db.engine.dispose()

        assert database_health.report_if_outage(
            psycopg.OperationalError("server closed the connection unexpectedly")
        ), "found late"
    assert not database_health.is_database_unavailable()
    assert [line.split("webapp.core.database_health ")[1][:20] for line in stream.getvalue().splitlines()] == [
        "database unavailable",
        "the database has rec",
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
def test_other_database_errors_are_not_outages(error: psycopg.Error, monkeypatch: pytest.MonkeyPatch) -> None:
    database_health.mark_recovered()
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)

    assert not database_health.report_if_outage(error)
    assert not database_health.is_database_unavailable()


def test_rejected_requests_are_logged_at_most_once_a_second(
    app: Flask, test_settings: app_settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a request that the outage does not reject would be logged because it is slow.
    monkeypatch.setattr(logs, "SLOW_REQUEST_SECONDS", math.inf)
    unreachable = replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    client = create_app(unreachable).test_client()
    task_queue.init_app(app)
    database_health.mark_recovered()
    started_at = time.monotonic()
    try:
        with captured_logs(test_settings, "text") as stream:
            statuses = [client.get(path).status_code for path in ("/readyz", "/redeem", "/api/v1/offers", "/") * 20]
            seconds = time.monotonic() - started_at
            database_health.mark_recovered()
    finally:
        database_health.mark_recovered()

    first, *logged, last = stream.getvalue().splitlines()
    recovery = re.search(
        r"WARNING webapp.core.database_health the database has recovered after at most \d+ s"
        r"(?:; (\d+) rejected requests? (?:was|were) not logged)?",
        last,
    )
    assert "ERROR webapp.core.database_health database unavailable" in first
    assert recovery
    assert all(": 503 after" in line for line in logged)
    assert 1 <= len(logged) <= 1 + seconds
    assert len(logged) + int(recovery[1] or 0) == statuses.count(503) == 20


@pytest.mark.parametrize(
    ("unlogged", "end"),
    [(0, ""), (1, "; 1 rejected request was not logged"), (2, "; 2 rejected requests were not logged")],
)
def test_the_rejected_requests_of_an_outage_are_counted(
    test_settings: app_settings.Settings, monkeypatch: pytest.MonkeyPatch, unlogged: int, end: str
) -> None:
    monkeypatch.setattr(database_health, "_outage_started_at", time.monotonic())
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)
    monkeypatch.setattr(database_health, "_last_logged_at", math.inf)
    assert not any(database_health.should_log_rejected_request() for _ in range(unlogged))
    with captured_logs(test_settings, "text") as stream:
        database_health.mark_recovered()

    assert re.search(rf"the database has recovered after at most \d+ s{end}$", stream.getvalue().rstrip("\n"))
