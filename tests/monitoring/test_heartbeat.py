"""A worker says that it lives; whoever asks is told the truth about one that was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask
from sqlalchemy import select, text

from tests.support import live_server
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.settings import ROOT, Settings
from webapp.monitoring import actions as monitoring_actions
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring.actions import WorkerIdentity
from webapp.monitoring.models import Worker

HERE = socket.gethostname()


def worker_alive(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "worker-alive"],
        cwd=ROOT,
        env=live_server.environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def row(me: WorkerIdentity) -> Worker:
    db.session.rollback()
    return db.session.execute(select(Worker).where(Worker.id == me.id)).scalar_one()


def pass_by(seconds: int) -> None:
    """Let time pass for every worker that was heard of."""
    db.session.execute(text("update worker set seen_at = seen_at - make_interval(secs => :s)"), {"s": seconds})
    db.session.commit()


@pytest.fixture
def beaten(app: Flask, test_settings: Settings) -> Iterator[live_server.LiveProcess]:
    """A real worker that has said once that it lives."""
    with live_server.worker(test_settings) as worker:
        deadline = time.monotonic() + 30
        while db.session.scalar(select(Worker.id)) is None:
            assert time.monotonic() < deadline, "the worker said nothing"
            db.session.rollback()
            time.sleep(0.05)
        yield worker


def test_a_killed_worker_is_heard_of_no_more(beaten: live_server.LiveProcess, test_settings: Settings) -> None:
    seen = db.session.scalars(select(Worker)).one()
    assert (seen.host, seen.pid, seen.stopped_at) == (HERE, beaten.process.pid, None)
    assert worker_alive(test_settings).returncode == 0

    os.kill(beaten.process.pid, signal.SIGKILL)
    beaten.process.wait()
    pass_by(61)

    done = worker_alive(test_settings)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"onecode: no heartbeat of a worker on {HERE} in the last minute; start one: python -m webapp.worker"
    ]


def test_a_worker_that_is_told_to_end_says_so(beaten: live_server.LiveProcess) -> None:
    beaten.process.terminate()
    beaten.process.wait(40)

    assert db.session.scalars(select(Worker).execution_options(populate_existing=True)).one().stopped_at is not None
    assert not monitoring_queries.is_worker_alive(HERE)


def test_a_worker_of_another_machine_is_not_this_ones(app: Flask) -> None:
    monitoring_actions.record_heartbeat(WorkerIdentity("1", host="elsewhere"))

    assert not monitoring_queries.is_worker_alive(HERE)
    assert monitoring_queries.is_worker_alive("elsewhere")


def test_nobody_knows_when_the_database_is_away(test_settings: Settings) -> None:
    nowhere = replace(test_settings, database_url="postgresql+psycopg://nobody@127.0.0.1:1/nothing")

    done = worker_alive(nowhere)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("onecode: nothing answers at 127.0.0.1 port 1, the address in DATABASE_URL; ")


def test_a_beat_tells_since_when_a_worker_is_busy_and_what_it_got_through(app: Flask) -> None:
    me = WorkerIdentity("1")
    monitoring_actions.record_heartbeat(me, busy_seconds=30, periodic_task_ages={"campaigns.sweep": 10})
    monitoring_actions.record_heartbeat(me, busy_seconds=None, periodic_task_ages={"customers.sweep_customers": 5})

    now = db.session.scalars(text("select extract(epoch from now())")).one()
    assert row(me).busy_since is None
    assert {name: round(float(now) - at) for name, at in row(me).swept.items()} == {
        "campaigns.sweep": 10,
        "customers.sweep_customers": 5,
    }


def test_a_task_of_every_minute_is_got_through_only_when_it_did_not_fail(app: Flask) -> None:
    def _works() -> None:
        assert task_queue.longest_running_seconds() is not None

    def _fails() -> None:
        raise RuntimeError

    task_queue._wrap_in_app_context("monitoring.works", _works, is_periodic=True)()
    with pytest.raises(RuntimeError):
        task_queue._wrap_in_app_context("monitoring.fails", _fails, is_periodic=True)()

    assert "monitoring.works" in task_queue.periodic_task_ages()
    assert "monitoring.fails" not in task_queue.periodic_task_ages()
    assert task_queue.longest_running_seconds() is None


def test_a_worker_that_lives_after_all_has_not_ended(app: Flask) -> None:
    me = WorkerIdentity("1")
    monitoring_actions.record_heartbeat(me)
    monitoring_actions.record_shutdown(me)
    assert row(me).stopped_at is not None

    monitoring_actions.record_heartbeat(me)

    assert row(me).stopped_at is None


def test_workers_that_were_silent_for_a_day_are_dropped(app: Flask) -> None:
    monitoring_actions.record_heartbeat(WorkerIdentity("1"))
    pass_by(24 * 60 * 60 + 1)
    young = WorkerIdentity("1")
    monitoring_actions.record_heartbeat(young)

    monitoring_actions.delete_stale_workers()

    assert db.session.scalars(select(Worker.id)).all() == [young.id]
