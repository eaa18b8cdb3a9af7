"""Heartbeat of a worker: a thread that records regularly that it is alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask

from webapp.core import database_health, task_queue
from webapp.monitoring import actions as monitoring_actions
from webapp.monitoring.actions import WorkerIdentity

log = logging.getLogger(__name__)

# Seconds between two heartbeats.
HEARTBEAT_INTERVAL_SECONDS = 20
# Seconds before the next attempt when a heartbeat could not be recorded.
HEARTBEAT_RETRY_SECONDS = 2
# A worker that has been unable to reach the queue for this many seconds sends no heartbeat: it processes nothing.
MAX_QUEUE_FAILURE_SECONDS = 15


@contextmanager
def send_heartbeats(app: Flask, version: str) -> Iterator[WorkerIdentity]:
    """Send heartbeats while the block runs; then record the shutdown."""
    worker = WorkerIdentity(version)
    stop_requested = threading.Event()
    thread = threading.Thread(target=_heartbeat_loop, args=(app, worker, stop_requested), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        stop_requested.set()
        # Wait at most one interval. If the database is unavailable, the shutdown is not recorded.
        thread.join(HEARTBEAT_INTERVAL_SECONDS)


def _heartbeat_loop(app: Flask, worker: WorkerIdentity, stop_requested: threading.Event) -> None:
    has_failed = False
    while not stop_requested.is_set():
        error: Exception | None = _check_queue()
        if error is None:
            error = _try_in_app_context(
                app,
                lambda: monitoring_actions.record_heartbeat(
                    worker, task_queue.longest_running_seconds(), task_queue.periodic_task_ages()
                ),
            )
        if error and not has_failed and not database_health.report_if_outage(error):
            log.warning("heartbeat could not be recorded, retrying: %s", _first_error_line(error))
        has_failed = error is not None
        stop_requested.wait(HEARTBEAT_RETRY_SECONDS if has_failed else HEARTBEAT_INTERVAL_SECONDS)
    _try_in_app_context(app, lambda: monitoring_actions.record_shutdown(worker))


def _check_queue() -> TimeoutError | None:
    """Return an error when this worker has been unable to reach the queue for a while."""
    seconds = task_queue.failing_seconds()
    if seconds <= MAX_QUEUE_FAILURE_SECONDS:
        return None
    return TimeoutError(f"the queue has been unavailable for {seconds:.0f} s")


def _try_in_app_context(app: Flask, action: Callable[[], None]) -> Exception | None:
    """Run an action in an app context; return its error, if any: none may end the thread."""
    try:
        with app.app_context():
            action()
    except Exception as error:
        return error
    return None


def _first_error_line(error: Exception) -> str:
    lines = str(getattr(error, "orig", error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
