"""A worker's heart: a thread that writes down three times a minute that the worker lives, and hinders nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from webapp.core import database_health, task_queue
from webapp.monitoring import actions as monitoring_actions
from webapp.monitoring.actions import WorkerIdentity

log = logging.getLogger(__name__)

# Seconds between two beats. The table is unlogged, so nothing of it reaches the disk's log but that it was written.
INTERVAL_SECONDS = 20
# And before the next try when one could not be written down.
RETRY_SECONDS = 2


@contextmanager
def send_heartbeats(app: Flask, version: str) -> Iterator[WorkerIdentity]:
    """Beat from now on, for as long as the block runs; then say that this worker ended because it was told to."""
    me = WorkerIdentity(version)
    ended = threading.Event()
    thread = threading.Thread(target=_heartbeat_loop, args=(app, me, ended), name="heart", daemon=True)
    thread.start()
    try:
        yield me
    finally:
        ended.set()
        # Not for longer than a beat may take: where the database is away, so be it.
        thread.join(INTERVAL_SECONDS)


def _heartbeat_loop(app: Flask, me: WorkerIdentity, ended: threading.Event) -> None:
    was_written = True
    while not ended.is_set():
        error = _run_in_app_context(
            app,
            lambda: monitoring_actions.record_heartbeat(
                me, task_queue.longest_running_seconds(), task_queue.periodic_task_ages()
            ),
        )
        if error and was_written and not database_health.detect_outage(error):
            log.warning("this worker can't write down that it lives, and goes on trying: %s", _first_error_line(error))
        was_written = error is None
        ended.wait(INTERVAL_SECONDS if was_written else RETRY_SECONDS)
    _run_in_app_context(app, lambda: monitoring_actions.record_shutdown(me))


def _run_in_app_context(app: Flask, write: Callable[[], None]) -> SQLAlchemyError | None:
    try:
        with app.app_context():
            write()
    except SQLAlchemyError as error:
        return error
    return None


def _first_error_line(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
