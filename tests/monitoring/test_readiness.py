"""Readiness: it reports when writes fail, and never holds a request."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.frozen_server import frozen_process
from webapp import create_app
from webapp.core import database_connections, database_health, task_queue
from webapp.core.database_connections import DeadlineConnection
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.monitoring import readiness
from webapp.monitoring.readiness import ReadinessCheck

pytestmark = pytest.mark.usefixtures("patient_readiness")


@pytest.fixture
def check(test_settings: Settings) -> Iterator[ReadinessCheck]:
    check = ReadinessCheck(test_settings)
    yield check
    check._close()


def find_connection(check: ReadinessCheck) -> DeadlineConnection:
    (connection,) = check._connections.values()
    return connection


def test_the_check_keeps_its_connection(check: ReadinessCheck) -> None:
    assert check.run() is None
    first = find_connection(check)
    assert check.run() is None
    assert find_connection(check) is first


def test_the_check_connects_again_after_a_restart(check: ReadinessCheck, test_settings: Settings) -> None:
    check.run()
    with psycopg.connect(test_settings.libpq_url) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [find_connection(check).info.backend_pid])

    assert check.run() is None


@contextmanager
def impatient(check: ReadinessCheck) -> Iterator[None]:
    """Let requests and the statements of the check wait for a short time only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readiness, "CHECK_SECONDS", 0.5)
        find_connection(check).statement_seconds = 0.5
        yield


def test_a_frozen_server_is_reported_and_left(check: ReadinessCheck) -> None:
    check.run()
    with frozen_process(find_connection(check).info.backend_pid):
        with impatient(check):
            error = check.run()
        assert isinstance(error, database_connections.StatementTimeout)
        assert readiness.describe_problem(error) == readiness.NO_RESPONSE
        assert check._current is not None
        check._current.is_finished.wait()
        assert check.run() is None


def test_many_checks_of_a_frozen_server_use_one_thread(check: ReadinessCheck) -> None:
    check.run()
    with frozen_process(find_connection(check).info.backend_pid), impatient(check):
        requests = [threading.Thread(target=check.run) for _index in range(20)]
        for request in requests:
            request.start()
        assert [thread.name for thread in threading.enumerate()].count("readiness") <= 1
        for request in requests:
            request.join()
    assert check._current is not None
    check._current.is_finished.wait()


def test_a_check_that_could_not_be_started_is_started_by_the_next_request(
    check: ReadinessCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reach_limit(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", reach_limit)
        error = check.run()

    assert isinstance(error, RuntimeError)
    assert readiness.describe_problem(error) == readiness.UNAVAILABLE
    assert check.run() is None


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("default_transaction_read_only", "on", readiness.READ_ONLY),
        # Onecode's queue is missing, as in another database.
        ("search_path", "nowhere", readiness.UNAVAILABLE),
        # The temporary file cannot be written, as on a full disk.
        ("temp_file_limit", "0", readiness.UNAVAILABLE),
    ],
)
def test_a_database_that_rejects_writes_is_reported(
    test_settings: Settings, setting: str, value: str, expected: str
) -> None:
    url = psycopg.conninfo.make_conninfo(test_settings.libpq_url, options=f"-c {setting}={value}")
    check = ReadinessCheck(replace(test_settings, database_url=url))
    try:
        error = check.run()
        assert error is not None
        assert readiness.describe_problem(error) == expected
    finally:
        check._close()


def test_a_full_disk_is_reported() -> None:
    assert readiness.describe_problem(psycopg.errors.DiskFull("could not write")) == readiness.DISK_FULL


def test_checks_need_no_connection_of_the_pool(app: Flask, client: FlaskClient) -> None:
    """Otherwise the checks of a hanging database would use up what redemptions need."""
    before = db.engine.pool.status()
    assert client.get("/readyz").status_code == 200
    assert db.engine.pool.status() == before


def test_an_outage_that_a_process_without_requests_has_seen_ends_with_the_check(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Right after another outage, a single error does not start one.
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)
    database_health.report_if_outage(psycopg.errors.AdminShutdown("terminating connection"))
    try:
        assert database_health.is_database_unavailable()
        assert client.get("/readyz").status_code == 200
        assert not database_health.is_database_unavailable()
    finally:
        database_health.mark_recovered()


def test_an_unreachable_database_is_reported(app: Flask, test_settings: Settings) -> None:
    unreachable = replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    try:
        response = create_app(unreachable).test_client().get("/readyz")
    finally:
        task_queue.init_app(app)
        database_health.mark_recovered()
    assert (response.status_code, response.json) == (503, {"status": readiness.UNAVAILABLE})
