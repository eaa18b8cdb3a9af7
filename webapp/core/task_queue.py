"""The doorbell: ask a worker to come soon. What there is to do stands in rows, never in the queue."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from flask import Flask

from webapp.core import database_health, logs
from webapp.core.extensions import huey

log = logging.getLogger(__name__)

# Set when this process has been asked to end: long work looks at it between two steps and leaves off.
stopping = threading.Event()

_app: Flask | None = None

# For the worker's heart, by `time.monotonic`: when each thread began what it is at, and when each task of every minute
# was last got through.
_begun: dict[int, float] = {}
_swept: dict[str, float] = {}


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
    return huey.periodic_task(schedule)(_in_context(function, periodic=True))


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
        if not database_health.noticed(error):
            log.warning("a bell was not rung: %s", error)
        return False
    return True


def busy() -> float | None:
    """For how many seconds this process has been at the task that it began first; None when it is at nothing."""
    begun = list(_begun.values())
    return time.monotonic() - min(begun) if begun else None


def swept() -> dict[str, float]:
    """How many seconds ago this process got through each periodic task, by name; those that it has not are missing."""
    return {name: time.monotonic() - at for name, at in list(_swept.items())}


def _in_context(function: Callable[..., None], periodic: bool = False) -> Callable[..., None]:
    # Such as campaigns.sweep, whatever underscores and file names are around it.
    name = f"{function.__module__.split('.')[1]}.{function.__name__.strip('_')}"

    @functools.wraps(function)
    def run(*arguments: int) -> None:
        if _app is None:
            raise RuntimeError("create_app() comes before the first task")
        _begun[threading.get_ident()] = time.monotonic()
        try:
            with logs.about(task=name), _app.app_context():
                _run(function, arguments)
        finally:
            _begun.pop(threading.get_ident(), None)
        if periodic:
            _swept[name] = time.monotonic()

    return run


def _run(function: Callable[..., None], arguments: tuple[int, ...]) -> None:
    try:
        function(*arguments)
    except Exception as error:
        # Here, where it is known what it was about; Huey sees to it that the worker goes on.
        if not database_health.noticed(error):
            log.exception("a task failed", extra=getattr(error, "about", None))
        # Huey tells of it once more, without what it was about (`logs`).
        error.__dict__["told"] = True
        raise
