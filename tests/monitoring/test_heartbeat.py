"""Heartbeats of workers, and the command that checks them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from tests.support import live_server
from webapp.core import task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import ROOT, Settings
from webapp.monitoring import actions as monitoring_actions
from webapp.monitoring import heartbeat
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring.actions import WorkerIdentity
from webapp.monitoring.models import Worker

HERE = socket.gethostname()


def run_worker_alive(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "worker-alive"],
        cwd=ROOT,
        env=live_server.environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def load_row(identity: WorkerIdentity) -> Worker:
    db.session.rollback()
    return db.session.execute(select(Worker).where(Worker.id == identity.id)).scalar_one()


def age_heartbeats(seconds: int) -> None:
    """Make the last heartbeat of every worker older."""
    db.session.execute(text("update worker set seen_at = seen_at - make_interval(secs => :s)"), {"s": seconds})
    db.session.commit()


def _has_heartbeat() -> bool:
    db.session.rollback()
    return db.session.scalar(select(Worker.id)) is not None


@pytest.fixture
def live_worker(app: Flask, test_settings: Settings) -> Iterator[live_server.LiveProcess]:
    """A real worker that has sent its first heartbeat."""
    with live_server.worker(test_settings) as worker:
        live_server.wait_until(_has_heartbeat, what="a heartbeat")
        yield worker


@pytest.mark.slow
def test_a_killed_worker_is_no_longer_alive(live_worker: live_server.LiveProcess, test_settings: Settings) -> None:
    row = db.session.scalars(select(Worker)).one()
    assert (row.host, row.pid, row.stopped_at) == (HERE, live_worker.process.pid, None)
    assert run_worker_alive(test_settings).returncode == 0

    os.kill(live_worker.process.pid, signal.SIGKILL)
    live_worker.process.wait()
    age_heartbeats(61)

    result = run_worker_alive(test_settings)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"onecode: no worker on {HERE} sent a heartbeat in the last minute; start one: python -m webapp.worker"
    ]


@pytest.mark.slow
def test_a_worker_that_shuts_down_is_no_longer_alive(live_worker: live_server.LiveProcess) -> None:
    live_worker.process.terminate()
    live_worker.process.wait(40)

    assert db.session.scalars(select(Worker).execution_options(populate_existing=True)).one().stopped_at is not None
    assert not monitoring_queries.is_worker_alive(HERE)


def test_workers_are_checked_by_host(app: Flask) -> None:
    worker = WorkerIdentity("1", host="elsewhere")
    monitoring_actions.record_heartbeat(worker, busy_seconds=30)

    assert not monitoring_queries.is_worker_alive(HERE)
    assert monitoring_queries.is_worker_alive("elsewhere")

    monitoring_actions.record_shutdown(worker)

    assert not monitoring_queries.is_worker_alive("elsewhere")
    assert load_row(worker).busy_since is None


class OneRound(threading.Event):
    """Ends a loop at its first wait."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(24, "Too many open files"), "[Errno 24] Too many open files"), (MemoryError(), "MemoryError")],
)
def test_no_error_ends_the_heartbeats(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    def fail(*_values: object) -> None:
        raise error

    monkeypatch.setattr(monitoring_actions, "record_heartbeat", fail)
    monkeypatch.setattr(monitoring_actions, "record_shutdown", lambda worker: None)

    heartbeat._heartbeat_loop(app, WorkerIdentity("1"), OneRound())

    messages = [record.getMessage() for record in caplog.records if record.name == heartbeat.__name__]
    assert messages == [f"heartbeat could not be recorded, retrying: {reason}"]


@pytest.mark.parametrize(("failing_seconds", "is_alive"), [(None, True), (1, True), (60, False)])
def test_a_worker_without_the_queue_is_not_alive(
    app: Flask, monkeypatch: pytest.MonkeyPatch, failing_seconds: int | None, is_alive: bool
) -> None:
    if failing_seconds is not None:
        monkeypatch.setitem(huey.storage._failing_since, "dequeue", time.monotonic() - failing_seconds)
    monkeypatch.setattr(monitoring_actions, "record_shutdown", lambda worker: None)

    heartbeat._heartbeat_loop(app, WorkerIdentity("1"), OneRound())

    assert monitoring_queries.is_worker_alive(HERE) == is_alive


def test_the_loop_records_what_the_worker_does(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_queue, "_task_started_at", {1: time.monotonic() - 5, 2: time.monotonic() - 900})
    monkeypatch.setattr(task_queue, "_periodic_task_completed_at", {"campaigns.sweep": time.monotonic() - 50})
    monkeypatch.setattr(monitoring_actions, "record_shutdown", lambda worker: None)

    heartbeat._heartbeat_loop(app, WorkerIdentity("1"), OneRound())

    metrics = monitoring_queries.load_worker_metrics()
    assert 900 <= metrics.longest_busy_seconds < 1000
    now = float(db.session.scalars(text("select extract(epoch from now())")).one())
    assert 50 <= now - metrics.periodic_task_completed_at["campaigns.sweep"] < 150


def test_the_check_fails_without_the_database(test_settings: Settings) -> None:
    unreachable = replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing")

    result = run_worker_alive(unreachable)

    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("onecode: nothing answers at 127.0.0.1 port 1, the address in DATABASE_URL; ")


def test_a_heartbeat_stores_the_busy_time_and_the_completed_sweeps(app: Flask) -> None:
    identity = WorkerIdentity("1")
    monitoring_actions.record_heartbeat(identity, busy_seconds=30, periodic_task_ages={"campaigns.sweep": 10})
    first_at = load_row(identity).seen_at
    monitoring_actions.record_heartbeat(
        identity, busy_seconds=None, periodic_task_ages={"customers.sweep_customers": 5}
    )

    last = load_row(identity)
    assert last.busy_since is None
    assert last.swept == pytest.approx(
        {
            "campaigns.sweep": first_at.timestamp() - 10,
            "customers.sweep_customers": last.seen_at.timestamp() - 5,
        },
        rel=0,
        abs=0.001,
    )


def test_a_heartbeat_is_sent_until_the_worker_shuts_down(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that could not be recorded is retried soon; the shutdown ends the wait for the next one."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_SECONDS", 600)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_RETRY_SECONDS", 0)
    record, attempts, is_recorded = monitoring_actions.record_heartbeat, Counter[str](), threading.Event()

    def fail_at_first(worker: WorkerIdentity, *values: Any) -> None:
        attempts[worker.id] += 1
        if attempts[worker.id] < 3:
            raise OperationalError("", {}, Exception("the database is down"))
        record(worker, *values)
        is_recorded.set()

    monkeypatch.setattr(monitoring_actions, "record_heartbeat", fail_at_first)
    with heartbeat.send_heartbeats(app, "1.2") as worker:
        assert is_recorded.wait(180)
        row = load_row(worker)
        assert (row.version, row.host, row.stopped_at) == ("1.2", HERE, None)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
        assert thread.daemon
        assert attempts == {worker.id: 3}

    assert not thread.is_alive()
    assert attempts == {worker.id: 3}
    db.session.refresh(row)
    assert row.stopped_at is not None


def test_only_the_first_of_several_failed_heartbeats_is_logged(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_RETRY_SECONDS", 0)
    results = iter([True, True, False, True])
    stop_requested = threading.Event()

    def fail(worker: WorkerIdentity, *values: Any) -> None:
        has_failed = next(results, None)
        if has_failed is None:
            stop_requested.set()
        if has_failed:
            raise ProgrammingError("", {}, Exception("no such table\nLINE 1"))

    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(monitoring_actions, "record_heartbeat", fail)
    heartbeat._heartbeat_loop(app, WorkerIdentity("1"), stop_requested)

    messages = [record.getMessage() for record in caplog.records if record.name == heartbeat.__name__]
    assert messages == ["heartbeat could not be recorded, retrying: no such table"] * 2


def test_a_failed_periodic_task_does_not_count_as_completed(app: Flask) -> None:
    def _succeed() -> None:
        assert task_queue.longest_running_seconds() is not None

    def _fail() -> None:
        raise RuntimeError

    task_queue._wrap_in_app_context("monitoring.works", _succeed, is_periodic=True)()
    with pytest.raises(RuntimeError):
        task_queue._wrap_in_app_context("monitoring.fails", _fail, is_periodic=True)()

    assert "monitoring.works" in task_queue.periodic_task_ages()
    assert "monitoring.fails" not in task_queue.periodic_task_ages()
    assert task_queue.longest_running_seconds() is None


def test_a_heartbeat_after_a_shutdown_makes_the_worker_alive(app: Flask) -> None:
    identity = WorkerIdentity("1")
    monitoring_actions.record_heartbeat(identity)
    monitoring_actions.record_shutdown(identity)
    assert load_row(identity).stopped_at is not None

    monitoring_actions.record_heartbeat(identity)

    assert load_row(identity).stopped_at is None


def test_workers_without_a_heartbeat_for_a_day_are_deleted(app: Flask) -> None:
    monitoring_actions.record_heartbeat(WorkerIdentity("1"))
    age_heartbeats(24 * 60 * 60)
    recent = WorkerIdentity("1")
    monitoring_actions.record_heartbeat(recent)

    monitoring_actions.delete_stale_workers()

    assert db.session.scalars(select(Worker.id)).all() == [recent.id]


def add_task(queue: str, age: int) -> None:
    insert = "insert into huey_task (queue, data, enqueued_at) values (:queue, '', now() - make_interval(secs => :age))"
    db.session.execute(text(insert), {"queue": queue, "age": age})
    db.session.commit()


@pytest.mark.parametrize(
    ("heartbeat_age", "task_age", "is_missing"),
    [
        (None, None, False),
        (59, None, False),
        (61, None, True),
        # Tasks wait also while all workers are busy.
        (0, 61, False),
        # No worker has ever run, or the database has crashed.
        (None, 59, False),
        (None, 61, True),
    ],
)
def test_a_worker_is_missing_without_heartbeats_or_with_a_task_that_waits(
    app: Flask, heartbeat_age: int | None, task_age: int | None, is_missing: bool
) -> None:
    if heartbeat_age is not None:
        monitoring_actions.record_heartbeat(WorkerIdentity("1.0"))
        age_heartbeats(heartbeat_age)
    if task_age is not None:
        add_task(huey.name, task_age)

    assert monitoring_queries.is_worker_missing() == is_missing


def test_tasks_of_another_queue_need_no_worker(app: Flask) -> None:
    add_task("other", 3600)

    assert not monitoring_queries.is_worker_missing()


def test_a_silent_worker_is_ignored_while_another_is_alive(app: Flask) -> None:
    monitoring_actions.record_heartbeat(WorkerIdentity("1.0"))
    age_heartbeats(3600)
    monitoring_actions.record_heartbeat(WorkerIdentity("1.0"))

    assert not monitoring_queries.is_worker_missing()
    assert monitoring_queries.load_worker_metrics().alive_count == 1


def test_a_worker_that_was_shut_down_is_missing_after_a_minute(app: Flask) -> None:
    worker = WorkerIdentity("1.0")
    monitoring_actions.record_heartbeat(worker)
    monitoring_actions.record_shutdown(worker)
    assert not monitoring_queries.is_worker_missing()

    age_heartbeats(61)

    assert monitoring_queries.is_worker_missing()
