"""A worker's heart: a thread that writes down three times a minute that the worker lives, and hinders nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from webapp import bell
from webapp.monitoring import actions
from webapp.monitoring.actions import Myself

log = logging.getLogger(__name__)

AWAY = "this worker can't write down that it lives: the database does not answer; it goes on trying"
BACK = "the database answers again"
# Seconds between two beats. The table is unlogged, so nothing of it reaches the disk's log but that it was written.
EVERY = 20


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
        is_written = _written(app, lambda: actions.beat(me, bell.busy(), bell.swept()))
        if is_written is not was_written:
            log.log(*((logging.INFO, BACK) if is_written else (logging.WARNING, AWAY)))
        was_written = is_written
        ended.wait(EVERY)
    _written(app, lambda: actions.stop(me))


def _written(app: Flask, write: Callable[[], None]) -> bool:
    try:
        with app.app_context():
            write()
    except SQLAlchemyError:
        return False
    return True
