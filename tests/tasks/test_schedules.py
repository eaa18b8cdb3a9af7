"""When periodic tasks run, and how long the statements of each task may take."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

import pytest
from flask import Flask

from webapp.core import database_timeouts, task_queue
from webapp.core.extensions import huey
from webapp.core.task_queue import TaskName

PERIODIC_TASKS = {
    "accounts.send_emails",
    "accounts.sweep",
    "campaigns.sweep",
    "customers.sweep_customers",
    "monitoring.drop_silent",
    "redemptions.count_hours",
    "redemptions.delete_expired_addresses",
    "retention.run",
}
# They process any number of rows in one statement.
TASKS_WITH_LONG_STATEMENTS = {
    "campaigns.prepare",
    "customers.process_import",
    "customers.sweep_customers",
    "redemptions.count_hours",
    "retention.run",
}


@pytest.mark.parametrize("at", ["2026-05-01T00:00", "2026-05-03T03:37", "2026-12-31T23:59"])
def test_every_periodic_task_runs_each_minute(app: Flask, at: str) -> None:
    due = huey.read_periodic(datetime.fromisoformat(at))

    assert {f"{task.__module__}.{task.name}" for task in due} == PERIODIC_TASKS


def test_only_tasks_over_many_rows_have_a_long_deadline(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: dict[str, float] = {}
    monkeypatch.setattr(
        task_queue,
        "_run_and_log",
        lambda name, *_task: deadlines.update({name: database_timeouts.current_seconds()}),
    )
    monkeypatch.setattr(task_queue, "_periodic_task_completed_at", {})

    for name in get_args(TaskName):
        task_queue.run(name)

    assert deadlines == {
        name: database_timeouts.LONG_STATEMENT_SECONDS
        if name in TASKS_WITH_LONG_STATEMENTS
        else database_timeouts.STATEMENT_SECONDS
        for name in get_args(TaskName)
    }
    assert task_queue.periodic_task_ages().keys() == PERIODIC_TASKS
