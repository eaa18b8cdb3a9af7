"""Metrics of the web server that responds: requests, waits for the database, and its errors."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families as parse_metrics
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tests.support import live_server
from webapp import create_app
from webapp.accounts import api_key_actions
from webapp.core import (
    database_connections,
    database_health,
    database_timeouts,
    measured_pool,
    task_queue,
    web_metrics,
    write_check,
)
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.core.web_metrics import RouteGroup
from webapp.customers.models import Customer
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring.queries import DatabaseMetrics
from webapp.offers.models import Offer
from webapp.views.request_metrics import get_route_group


def new_requests(before: web_metrics.WebMetrics) -> dict[tuple[str, str], float]:
    """Return the requests counted since then, by group and status."""
    after = web_metrics.collect_web_metrics()
    return {key: n - before.requests[key] for key, n in after.requests.items() if n != before.requests[key]}


def new_errors(before: web_metrics.WebMetrics) -> dict[str, float]:
    after = web_metrics.collect_web_metrics()
    return {kind: n - before.errors[kind] for kind, n in after.errors.items() if n != before.errors[kind]}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/healthz", ("health", "200")),
        ("GET", "/metrics", ("health", "401")),
        ("GET", "/redeem", ("public", "200")),
        ("POST", "/redeem", ("redeem", "422")),
        ("POST", "/r/nothing", ("redeem", "404")),
        ("GET", "/offers", ("staff", "302")),
        ("GET", "/api/v1/offers", ("api", "401")),
        ("POST", "/api/v1/redemptions", ("redeem", "401")),
        ("GET", "/nothing/here", ("none", "404")),
        ("DELETE", "/healthz", ("none", "405")),
    ],
)
def test_a_request_is_counted_in_its_group_with_its_status(
    client: FlaskClient, method: str, path: str, expected: tuple[str, str]
) -> None:
    before = web_metrics.collect_web_metrics()

    client.open(path, method=method)

    assert new_requests(before) == {expected: 1}
    group = expected[0]
    after = web_metrics.collect_web_metrics()
    assert after.request_seconds[group].sum > before.request_seconds[group].sum
    assert after.request_seconds[group].counts[float("inf")] == before.request_seconds[group].counts[float("inf")] + 1


def test_a_redemption_is_counted(
    api: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer("ada@example.com")
    body = {"code": make_offer().code, "customer": {"email": "ada@example.com"}}
    before = web_metrics.collect_web_metrics()

    api.post("/api/v1/redemptions", json=body)

    assert new_requests(before) == {("redeem", "201"): 1}


def test_every_route_is_in_a_group(app: Flask) -> None:
    groups = {rule.endpoint: get_route_group(rule.endpoint) for rule in app.url_map.iter_rules()}

    assert {endpoint for endpoint, group in groups.items() if group == "none"} <= {"static"}
    assert set(groups.values()) | {"none"} == set(get_args(RouteGroup))


@pytest.mark.parametrize(("seconds", "bucket"), [(0.005, 0.005), (0.0051, 0.01), (31.0, float("inf"))])
def test_a_duration_is_counted_from_its_bucket_upwards(seconds: float, bucket: float) -> None:
    before = web_metrics.collect_web_metrics().request_seconds["none"]

    web_metrics.count_request("none", 200, seconds)

    after = web_metrics.collect_web_metrics().request_seconds["none"]
    # Dashboards may name these bounds.
    bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, float("inf")]
    assert list(after.counts) == bounds
    assert [bound for bound in bounds if after.counts[bound] > before.counts[bound]] == [
        bound for bound in bounds if bound >= bucket
    ]


def test_the_bounds_of_waits_stay() -> None:
    bounds = list(web_metrics.collect_web_metrics().wait_seconds.counts)
    assert bounds == [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf")]


def test_an_unusual_status_is_counted_as_other() -> None:
    before = web_metrics.collect_web_metrics()

    web_metrics.count_request("none", 418, 0.1)

    assert new_requests(before) == {("none", web_metrics.OTHER_STATUS): 1}


@pytest.fixture
def pool(test_settings: Settings, app: Flask) -> Iterator[measured_pool.MeasuredQueuePool]:
    """The pool of another app, whose context is pushed, with a free connection."""
    other = create_app(test_settings)
    task_queue.init_app(app)
    with other.app_context():
        db.engine.connect().close()
        pool = db.engine.pool
        assert isinstance(pool, measured_pool.MeasuredQueuePool)
        yield pool
        db.engine.dispose()


def test_waits_for_a_connection_and_timeouts_are_counted(pool: measured_pool.MeasuredQueuePool) -> None:
    pool._timeout, pool._max_overflow = 0.01, 0
    connections = [db.engine.connect() for _ in range(pool.size())]
    before = web_metrics.collect_web_metrics()

    with pytest.raises(PoolTimeoutError):
        db.engine.connect()

    after = web_metrics.collect_web_metrics()
    assert new_errors(before) == {"pool_timeout": 1}
    # A wait that timed out counts with its duration.
    assert after.wait_seconds.counts[float("inf")] == before.wait_seconds.counts[float("inf")] + 1
    assert after.wait_seconds.counts[0.005] == before.wait_seconds.counts[0.005]
    assert after.wait_seconds.sum - before.wait_seconds.sum >= 0.01
    for connection in connections:
        connection.close()


def test_a_wait_counts_once_when_another_thread_takes_the_connection(
    pool: measured_pool.MeasuredQueuePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    increase, is_taken = pool._inc_overflow, iter([True])
    # As if another thread had opened the last connection in between: SQLAlchemy starts over.
    monkeypatch.setattr(pool, "_inc_overflow", lambda: not next(is_taken, False) and increase())
    with db.engine.connect():
        before = web_metrics.collect_web_metrics().wait_seconds.counts[float("inf")]

        db.engine.connect().close()

    assert next(is_taken, None) is None
    assert web_metrics.collect_web_metrics().wait_seconds.counts[float("inf")] == before + 1


def test_a_wait_includes_the_time_to_replace_a_lost_connection(
    pool: measured_pool.MeasuredQueuePool, test_settings: Settings
) -> None:
    with db.engine.connect() as connection:
        pid = connection.scalar(text("select pg_backend_pid()"))
    with psycopg.connect(test_settings.libpq_url) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [pid])
    before = web_metrics.collect_web_metrics().wait_seconds
    opened_in: list[float] = []

    def open_connection() -> Any:
        started_at = time.perf_counter()
        opened = database_connections.connect(test_settings.libpq_url)
        opened_in.append(time.perf_counter() - started_at)
        return opened

    pool._creator = open_connection
    db.engine.connect().close()

    after = web_metrics.collect_web_metrics().wait_seconds
    assert after.counts[float("inf")] == before.counts[float("inf")] + 1
    assert after.sum - before.sum > sum(opened_in) > 0


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("do $$ begin raise sqlstate '53100'; end $$", {"disk_full": 1}),
        ("do $$ begin raise sqlstate '25006'; end $$", {"read_only": 1}),
        ("do $$ begin raise sqlstate '55P03'; end $$", {"lock_timeout": 1}),
        ("do $$ begin raise sqlstate '57014'; end $$", {"statement_timeout": 1}),
        ("do $$ begin raise sqlstate '40P01'; end $$", {"conflict": 1}),
        ("do $$ begin raise sqlstate '53300'; end $$", {"too_many_connections": 1}),
        ("do $$ begin raise sqlstate '57P01'; end $$", {"unavailable": 1}),
        ("select pg_terminate_backend(pg_backend_pid())", {"unavailable": 1}),
        ("select nothing", {"other": 1}),
        ("do $$ begin raise sqlstate '23505'; end $$", {}),
        ("select 1 / 0", {}),
    ],
)
def test_a_database_error_is_counted_by_kind(app: Flask, statement: str, expected: dict[str, float]) -> None:
    before = web_metrics.collect_web_metrics()

    with pytest.raises(DBAPIError):
        db.session.execute(text(statement))
    db.session.rollback()

    assert new_errors(before) == expected


def test_a_missing_response_is_counted(app: Flask) -> None:
    # The test of a pooled connection takes long on a busy machine.
    db.session.connection()
    before = web_metrics.collect_web_metrics()

    with database_timeouts.statement_deadline(0.1), pytest.raises(DBAPIError):
        db.session.execute(text("select pg_sleep(1000)"))
    db.session.rollback()

    assert new_errors(before) == {"no_response": 1}


def test_a_refused_commit_is_counted_by_its_cause(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = database_connections._CommitGuard()
    monkeypatch.setattr(database_connections, "_commit_guard", guard)
    full_disk = "do $$ begin raise sqlstate '53100'; end $$"
    monkeypatch.setattr(write_check, "_CHECK_WRITES_SQL", full_disk)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_SECONDS", 60)
    guard.refuse_commits()
    before = web_metrics.collect_web_metrics()

    for _attempt in range(2):
        db.session.execute(text("select 1"))
        with pytest.raises(DBAPIError):
            db.session.commit()
        db.session.rollback()
    database_health.mark_recovered()

    # Commits are not even checked a second time within a second.
    assert new_errors(before) == {"disk_full": 2}


def test_a_pooled_connection_that_was_replaced_is_no_error(app: Flask, test_settings: Settings) -> None:
    pid = db.session.scalar(text("select pg_backend_pid()"))
    db.session.rollback()
    with psycopg.connect(test_settings.libpq_url) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [pid])
    before = web_metrics.collect_web_metrics()

    assert db.session.scalar(text("select pg_backend_pid()")) != pid

    assert new_errors(before) == {}


def test_a_refused_connection_is_counted(app: Flask, test_settings: Settings) -> None:
    unreachable = create_app(replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing"))
    task_queue.init_app(app)
    before = web_metrics.collect_web_metrics()

    with unreachable.app_context(), pytest.raises(DBAPIError):
        db.session.execute(text("select 1"))

    assert new_errors(before) == {"unavailable": 1}


@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device")])
def test_each_server_of_an_instance_counts_in_a_file_of_its_own(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: OSError | None
) -> None:
    settings: Settings = app.config["SETTINGS"]
    servers: list[tuple[Path, str]] = []

    def share(folder: Path, server: str) -> None:
        servers.append((folder, server))
        if error is not None:
            raise error

    monkeypatch.setattr(web_metrics, "_counters", SimpleNamespace(share=share))
    for port in (8000, 8003):
        web_metrics.share_between_processes(replace(settings, web_host="127.0.0.1", port=port))

    folder = settings.instance_path / "metrics"
    assert servers == [(folder, "127.0.0.1:8000"), (folder, "127.0.0.1:8003")]
    logged = "each web process reports only its own requests in /metrics: [Errno 28] No space left on device"
    assert caplog.messages == ([] if error is None else [logged] * 2)


def load_waits() -> DatabaseMetrics:
    """Return the metrics of the database in a new transaction: within one, statistics stay the same."""
    db.session.rollback()
    return monitoring_queries.load_database_metrics()


def test_sessions_that_wait_for_a_lock_are_counted(app: Flask, test_settings: Settings) -> None:
    with psycopg.connect(test_settings.libpq_url) as blocker, psycopg.connect(test_settings.libpq_url) as waiter:
        blocker.execute("lock table customer_import in access exclusive mode")
        thread = threading.Thread(target=lambda: waiter.execute("lock table customer_import"))
        thread.start()

        live_server.wait_until(lambda: load_waits().lock_waits == 1)

        blocker.rollback()
        thread.join()
    assert load_waits().lock_waits == 0


@pytest.mark.slow
def test_any_web_process_reports_the_requests_of_all(app: Flask, tmp_path: Path) -> None:
    settings = replace(app.config["SETTINGS"], instance_path=tmp_path)
    key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
    with live_server.web_server(settings, workers=2) as web:
        for _ in range(20):
            with suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"{web.url}/nothing")
        request = urllib.request.Request(f"{web.url}/metrics", headers={"Authorization": f"Bearer {key}"})
        for _ in range(10):
            with urllib.request.urlopen(request) as response:
                families = {family.name: family for family in parse_metrics(response.read().decode())}
            found = {tuple(sample.labels.values()): sample.value for sample in families["onecode_requests"].samples}
            assert found["none", "404"] == 20
