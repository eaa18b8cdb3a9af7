"""The task queue: names, entries of older releases, and its failures."""

from __future__ import annotations

import ast
import base64
import math
import pickle
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from typing import get_args

import psycopg
import pytest
from flask import Flask
from huey.registry import Message
from sqlalchemy import text

from tests.support.logs import captured_logs
from webapp import create_app
from webapp.core import database_health, database_timeouts, task_queue
from webapp.core.database_connections import StatementTimeout
from webapp.core.extensions import db, huey
from webapp.core.settings import ROOT, Settings
from webapp.core.task_queue import TaskName

# Two queue entries of release 0.1.0: `campaigns.prepare` for the campaign 5, and an import with the id 7.
PREPARE_0_1_0 = (
    "gAWVewAAAAAAAACMDWh1ZXkucmVnaXN0cnmUjAdNZXNzYWdllJOUKIwgMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDCUjB93ZWJhcHAu"
    "Y2FtcGFpZ25zLnRhc2tzLl9wcmVwYXJllE5LAEsATksFhZR9lE5OTk5OTksAdJSBlC4="
)
IMPORT_0_1_0 = (
    "gAWVfgAAAAAAAACMDWh1ZXkucmVnaXN0cnmUjAdNZXNzYWdllJOUKIwgMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDCUjCJ3ZWJhcHAu"
    "Y3VzdG9tZXJzLnRhc2tzLnJlYWRfaW1wb3J0lE5LAEsATksHhZR9lE5OTk5OTksAdJSBlC4="
)
# Every key that release 0.1.0 put into the queue, and the task that runs it now.
FORMER_KEYS: dict[str, TaskName] = {
    "webapp.campaigns.closing_actions.close_cancelled": "campaigns.clean_up_cancelled",
    "webapp.campaigns.tasks._prepare": "campaigns.prepare",
    "webapp.campaigns.tasks._pump": "campaigns.send",
    "webapp.campaigns.tasks._start": "campaigns.start",
    "webapp.campaigns.tasks._sweep": "campaigns.sweep",
    "webapp.customers.tasks.read_import": "customers.process_import",
    "webapp.customers.tasks.sweep_customers": "customers.sweep_customers",
    "webapp.monitoring.actions.drop_silent": "monitoring.drop_silent",
    "webapp.redemptions.actions.count_hours": "redemptions.count_hours",
    "webapp.redemptions.tasks._mail_receipt": "redemptions.send_receipt",
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Replaces every task; returns the names and arguments of the calls."""
    recorded: list[tuple[str, tuple[int, ...]]] = []

    def replace_task(name: TaskName) -> None:
        monkeypatch.setitem(task_queue._functions, name, lambda *args: recorded.append((name, args)))

    for name in get_args(TaskName):
        replace_task(name)
    return recorded


@pytest.mark.parametrize(
    ("entry", "expected"),
    [(PREPARE_0_1_0, ("campaigns.prepare", (5,))), (IMPORT_0_1_0, ("customers.process_import", (7,)))],
)
def test_an_entry_of_the_previous_release_still_runs(
    app: Flask, calls: list[tuple[str, tuple[int, ...]]], entry: str, expected: tuple[str, tuple[int, ...]]
) -> None:
    huey.execute(huey.deserialize_task(base64.b64decode(entry)))

    assert calls == [expected]


@pytest.mark.parametrize(("key", "name"), FORMER_KEYS.items())
def test_every_key_of_the_previous_release_has_its_task(
    app: Flask, calls: list[tuple[str, tuple[int, ...]]], key: str, name: str
) -> None:
    entry = pickle.loads(base64.b64decode(PREPARE_0_1_0))
    assert isinstance(entry, Message)

    huey.execute(huey.deserialize_task(pickle.dumps(entry._replace(name=key))))

    assert calls == [(name, (5,))]


def test_a_task_is_stored_under_its_name(app: Flask) -> None:
    task_queue.enqueue("campaigns.prepare", 5)

    (entry,) = huey.pending()
    assert pickle.loads(huey.serialize_task(entry)).name == "campaigns.prepare"


def test_a_task_is_enqueued_although_the_server_ended_the_idle_connection(app: Flask) -> None:
    assert task_queue.enqueue("campaigns.prepare", 5)

    end_other_connections()

    assert task_queue.enqueue("campaigns.prepare", 6)
    assert huey.storage.queue_size() == 2
    # An earlier test may have left a connection that listens for tasks, too.
    huey.storage.close()


@pytest.mark.parametrize(
    ("error", "is_enqueued_again"),
    [(psycopg.OperationalError("server closed the connection unexpectedly"), True), (ValueError("a bug"), False)],
)
def test_a_task_that_an_outage_interrupts_is_enqueued_again(
    app: Flask, monkeypatch: pytest.MonkeyPatch, error: Exception, is_enqueued_again: bool
) -> None:
    def fail(*args: int) -> None:
        raise error

    monkeypatch.setitem(task_queue._functions, "campaigns.prepare", fail)
    monkeypatch.setattr(task_queue, "RESUME_INTERVAL_SECONDS", 0)
    task_queue.enqueue("campaigns.prepare", 5)
    try:
        huey.execute(huey.dequeue())
    finally:
        database_health.mark_recovered()

    assert [(task.name, task.args) for task in huey.pending()] == [("prepare", (5,))] * is_enqueued_again


def fail_once(monkeypatch: pytest.MonkeyPatch, name: TaskName, *args: int) -> list[tuple[int, ...]]:
    """Let a task be interrupted by an outage; return the arguments with which it was enqueued again."""

    def fail(*_args: int) -> None:
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setitem(task_queue._functions, name, fail)
    monkeypatch.setattr(task_queue, "RESUME_INTERVAL_SECONDS", 0)
    task_queue.enqueue(name, *args)
    try:
        huey.execute(huey.dequeue())
    finally:
        database_health.mark_recovered()
    return [task.args for task in huey.pending()]


def test_a_periodic_task_that_an_outage_interrupts_is_left_to_its_schedule(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail_once(monkeypatch, "campaigns.sweep") == []


def test_a_worker_that_stops_does_not_wait_for_the_queue(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = threading.Event()
    stopping.set()
    monkeypatch.setattr(task_queue, "stop_requested", stopping)

    assert fail_once(monkeypatch, "campaigns.prepare", 5) == []


def test_an_interrupted_task_is_not_enqueued_after_the_time_limit(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_queue, "MAX_RESUME_SECONDS", 0)

    assert fail_once(monkeypatch, "campaigns.prepare", 5) == []


def test_timeouts_count_for_each_task_until_it_is_given_up(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_queue, "_statement_timeouts", Counter())
    error, attempts = StatementTimeout("no response"), task_queue.MAX_STATEMENT_TIMEOUTS + 1

    found = [
        [task_queue._is_too_slow("campaigns.prepare", (campaign_id,), error) for campaign_id in (5, 6)]
        for _ in range(2 * attempts)
    ]

    assert found == [*[[False, False]] * (attempts - 1), [True, True]] * 2
    assert not task_queue._is_too_slow("campaigns.prepare", (5,), psycopg.OperationalError("server closed"))


@pytest.mark.parametrize("is_completed_between", [False, True])
def test_a_task_that_is_too_slow_each_time_is_not_enqueued_forever(
    app: Flask, monkeypatch: pytest.MonkeyPatch, is_completed_between: bool
) -> None:
    results: list[Exception | None] = [StatementTimeout("no response")] * (task_queue.MAX_STATEMENT_TIMEOUTS + 1)
    if is_completed_between:
        results[1:1] = [None]

    def run_task(*args: int) -> None:
        if result := results.pop(0):
            raise result

    monkeypatch.setitem(task_queue._functions, "campaigns.prepare", run_task)
    monkeypatch.setattr(task_queue, "RESUME_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(task_queue, "_statement_timeouts", Counter())
    try:
        while results:
            if huey.storage.queue_size() == 0:
                task_queue.enqueue("campaigns.prepare", 5)
            huey.execute(huey.dequeue())
    finally:
        database_health.mark_recovered()

    assert huey.storage.queue_size() == is_completed_between


def test_an_outage_of_the_queue_names_its_setting(app: Flask, test_settings: Settings) -> None:
    unreachable = replace(test_settings, database_direct_url="postgresql://nobody@127.0.0.1:1/nothing")
    database_health.mark_recovered()
    try:
        with create_app(unreachable).app_context(), captured_logs(test_settings, "text") as stream:
            assert not task_queue.enqueue("campaigns.prepare", 5)
    finally:
        task_queue.init_app(app)
        database_health.mark_recovered()

    assert "nothing answers at 127.0.0.1 port 1, the address in DATABASE_DIRECT_URL" in stream.getvalue()


def test_the_statements_of_a_task_have_its_deadline(app: Flask) -> None:
    deadlines: list[float] = []
    run = task_queue._wrap_in_app_context(
        "tests.long", lambda: deadlines.append(current_deadline()), is_periodic=False, statement_seconds=7
    )
    run()
    assert deadlines == [7]
    assert current_deadline() == database_timeouts.STATEMENT_SECONDS


def current_deadline() -> float:
    return database_timeouts.current_seconds()


def end_other_connections() -> None:
    """Terminate every other connection to this database, like a server restart."""
    db.session.execute(
        text(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
    )
    db.session.rollback()


@pytest.mark.parametrize(
    ("error", "attempts", "is_logged"),
    [
        (psycopg.errors.UndefinedTable("no such table"), 1, True),
        (psycopg.OperationalError("connection failed: Connection refused"), 1, False),
        (psycopg.OperationalError("server closed the connection unexpectedly"), 2, False),
    ],
    ids=["error", "outage", "lost connection"],
)
def test_a_queue_that_is_unavailable_is_only_logged(
    app: Flask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: psycopg.Error,
    attempts: int,
    is_logged: bool,
) -> None:
    calls = []

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise error

    monkeypatch.setattr(task_queue, "_submit", fail)
    monkeypatch.setattr(database_health, "_outage_started_at", None)
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)

    assert task_queue.enqueue("campaigns.start", 7, after=5) is False
    assert calls == [("campaigns.start", (7,), 5)] * attempts
    assert ("task campaigns.start was not enqueued" in caplog.text) is is_logged
    assert database_health.is_database_unavailable() is not is_logged


def test_a_name_without_a_task_fails_at_start_up() -> None:
    """In a separate process where the tasks of monitoring are not registered."""
    script = (
        "import sys, types\n"
        "sys.modules['webapp.tasks.monitoring'] = types.ModuleType('webapp.tasks.monitoring')\n"
        "from webapp import create_app\n"
        "create_app()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode != 0
    assert "no task is registered as monitoring.drop_silent" in done.stderr


def test_every_enqueued_name_is_a_task() -> None:
    unknown = []
    for path in sorted((ROOT / "webapp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "task_queue.enqueue":
                name = node.args[0]
                if not isinstance(name, ast.Constant) or name.value not in get_args(TaskName):
                    unknown.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert unknown == []
