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
from webapp.monitoring.actions import Myself

log = logging.getLogger(__name__)

# Seconds between two beats. The table is unlogged, so nothing of it reaches the disk's log but that it was written.
EVERY = 20
# And before the next try when one could not be written down.
SOON = 2


@contextmanager
def beating(app: Flask, version: str) -> Iterator[Myself]:
    """Beat from now on, for as long as the block runs; then say that this worker ended because it was told to."""
    me = Myself(version)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(app, me, ended), name="heart", daemon=True)
    thread.start()
    try:
        yield me
    finally:
        ended.set()
        # Not for longer than a beat may take: where the database is away, so be it.
        thread.join(EVERY)


def _beat(app: Flask, me: Myself, ended: threading.Event) -> None:
    was_written = True
    while not ended.is_set():
        error = _write(app, lambda: monitoring_actions.beat(me, task_queue.busy(), task_queue.swept()))
        if error and was_written and not database_health.noticed(error):
            log.warning("this worker can't write down that it lives, and goes on trying: %s", _words(error))
        was_written = error is None
        ended.wait(EVERY if was_written else SOON)
    _write(app, lambda: monitoring_actions.stop(me))


def _write(app: Flask, write: Callable[[], None]) -> SQLAlchemyError | None:
    try:
        with app.app_context():
            write()
    except SQLAlchemyError as error:
        return error
    return None


def _words(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
