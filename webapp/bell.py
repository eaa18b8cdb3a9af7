"""The doorbell: ask a worker to come soon. What there is to do stands in rows, never in the queue."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from flask import Flask

from webapp.extensions import huey

log = logging.getLogger(__name__)

# Set when this process has been asked to end: long work looks at it between two steps and leaves off.
stopping = threading.Event()

_app: Flask | None = None


def init_app(app: Flask) -> None:
    """Name the app in whose context tasks run in this process."""
    global _app
    _app = app
    dsn = app.config["SETTINGS"].libpq_url
    if huey.storage.dsn != dsn:
        huey.storage.close()
        huey.storage.dsn = dsn


def task(function: Callable[..., None]) -> Any:
    """Make a function a Huey task that runs in an app context of its own."""
    return huey.task()(_in_context(function))


def every(schedule: Callable[..., bool], function: Callable[..., None]) -> Any:
    """Make a function a periodic Huey task (`huey.crontab`). It must be harmless when two workers run it at once."""
    return huey.periodic_task(schedule)(_in_context(function))


def ring(task: Any, *ids: int, after: float = 0) -> bool:
    """Enqueue a task after the rows it is about are committed, to be done at once or `after` so many seconds.

    A bell that can't be rung is only logged: for what stands in rows the sweep rings again within a minute, so the
    caller's answer, which is about rows already on disk, stays true.

    :returns: whether it was rung, for whoever has no sweep.
    """
    try:
        if after:
            task.schedule(args=ids, delay=after)
        else:
            task(*ids)
    except psycopg.Error as error:
        log.warning("a bell was not rung: %s", error)
        return False
    return True


def _in_context(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def run(*arguments: int) -> None:
        if _app is None:
            raise RuntimeError("create_app() comes before the first task")
        with _app.app_context():
            function(*arguments)

    return run
