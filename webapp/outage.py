"""The database is away: what a process says of it. One line when it goes, one when it is back, whoever notices first,
and meanwhile of the requests that are refused at most one a second.
"""

from __future__ import annotations

import logging
import threading
import time

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from webapp import preflight

log = logging.getLogger(__name__)

# What a server says that ends or can't begin (SQLSTATE); of what never came to its end libpq says it without one.
GONE = ("08", "57P01", "57P02", "57P03", "53300")

_lock = threading.Lock()
# Since when it is away and when a refused request was last told of, by `time.monotonic`; how many were not told of.
_since: float | None = None
_told = 0.0
_untold = 0


def noticed(error: BaseException | None) -> bool:
    """Whether an error is about a database that is away. The first says so, and why."""
    global _since
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    if cause.sqlstate and not cause.sqlstate.startswith(GONE):
        return False
    with _lock:
        is_first, _since = _since is None, _since or time.monotonic()
    if is_first:
        log.error("the database is away, and is tried again until it is back: %s", preflight.why_not(cause))
    return True


def is_over() -> None:
    """Say that it is back, if it was away."""
    global _since, _untold
    with _lock:
        since, untold, _since, _untold = _since, _untold, None, 0
    if since is not None:
        more = f"; {untold} refused requests are not told of" if untold else ""
        log.warning("the database is back after %.0f s%s", time.monotonic() - since, more)


def is_on() -> bool:
    return _since is not None


def may_be_told() -> bool:
    """Whether a line may be written of a request that was refused for it: one a second."""
    global _told, _untold
    with _lock:
        if _since is None or time.monotonic() - _told >= 1:
            _told = time.monotonic()
            return True
        _untold += 1
        return False


@event.listens_for(Engine, "connect")
def _connected(connection: object, record: object) -> None:
    """All connections of before are gone, so the first sign of a database that is back is a new one."""
    if _since is not None:
        is_over()
