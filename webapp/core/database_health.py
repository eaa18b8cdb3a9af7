"""The database is away: what a process says of it. One line when it goes, one when it is back, whoever notices first,
and meanwhile of the requests that are refused at most one a second.

It counts as back as soon as a connection of the pool answers. So where only a single connection was ended, of which
the queue has its own, both lines come one after the other. Of others that ended with it some are found later, up to a
minute, and are no news.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from textwrap import shorten

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

# What a server says that ends or can't begin (SQLSTATE); of what never came to its end libpq says it without one.
DISCONNECT_SQLSTATES = ("08", "57P01", "57P02", "57P03", "53300")

# What psycopg says of its own that is used wrongly, or after the server has ended it: no sign of the latter by itself.
_CLOSED_PATTERN = re.compile("(connection|cursor) is closed|already in progress")

_CONNECT_FAILED_PATTERN = re.compile("connection failed|connection timeout")
# For so many seconds connections are found that ended with the outage before.
STALE_CONNECTION_SECONDS = 60

_lock = threading.Lock()
# Since when it is away and when a refused request was last told of, by `time.monotonic`; how many were not told of.
_outage_started_at: float | None = None
# When it was last back.
_recovered_at = -math.inf
_last_logged_at = 0.0
_unlogged_requests = 0


def detect_outage(error: BaseException | None) -> bool:
    """Whether an error is about a database that is away. The first says so, and why."""
    global _outage_started_at
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    if cause.sqlstate and not cause.sqlstate.startswith(DISCONNECT_SQLSTATES):
        return False
    if isinstance(cause, psycopg.InterfaceError) or (not cause.sqlstate and _CLOSED_PATTERN.search(str(cause))):
        return is_database_unavailable() or _is_recently_recovered()
    with _lock:
        if _outage_started_at is None and not _CONNECT_FAILED_PATTERN.match(str(cause)) and _is_recently_recovered():
            return True
        is_first, _outage_started_at = _outage_started_at is None, _outage_started_at or time.monotonic()
    if is_first:
        log.error(
            "the database is away or has ended a connection; it is tried again until it answers: %s",
            explain_connection_error(cause),
        )
    return True


def _is_recently_recovered() -> bool:
    return time.monotonic() - _recovered_at < STALE_CONNECTION_SECONDS


def mark_recovered() -> None:
    """Say that it is back, if it was away."""
    global _outage_started_at, _unlogged_requests, _recovered_at
    with _lock:
        since, untold, _outage_started_at, _unlogged_requests = _outage_started_at, _unlogged_requests, None, 0
        _recovered_at = time.monotonic() if since is not None else _recovered_at
    if since is not None:
        more = f"; {untold} refused requests are not told of" if untold else ""
        log.warning("the database is back after %.0f s%s", time.monotonic() - since, more)


def is_database_unavailable() -> bool:
    return _outage_started_at is not None


def should_log_rejected_request() -> bool:
    """Whether a line may be written of a request that was refused for it: one a second."""
    global _last_logged_at, _unlogged_requests
    with _lock:
        if _outage_started_at is None or time.monotonic() - _last_logged_at >= 1:
            _last_logged_at = time.monotonic()
            return True
        _unlogged_requests += 1
        return False


@event.listens_for(Engine, "checkout")
def _on_connection_checkout(*connection: object) -> None:
    """A connection that is taken out of the pool is new or has just been asked whether it lives."""
    if _outage_started_at is not None:
        mark_recovered()


# What libpq says (it never says the password), and what to do; {} is what stands in its words.
CONNECTION_ERROR_HINTS = (
    (
        r"could not translate host name \"([^\"]*)\"|failed to resolve host '([^']*)'",
        "there is no machine {}; check the name in DATABASE_URL",
    ),
    (r"password authentication failed for user \"([^\"]*)\"", "the password for {} in DATABASE_URL is wrong"),
    (r"no password supplied", "the database asks for a password; DATABASE_URL must be postgresql://user:password@…"),
    (
        r"database \"([^\"]*)\" does not exist",
        "there is no database {} on the server of DATABASE_URL; make it: createdb {}",
    ),
    (
        r"role \"([^\"]*)\" does not exist",
        "there is no user {} on the server of DATABASE_URL; make one: createuser --pwprompt {}",
    ),
    (
        r"unsupported startup parameter",
        "a pooler such as pgbouncer stands in front of the database; let DATABASE_URL name PostgreSQL itself",
    ),
    (
        r"no pg_hba.conf entry .*(?:SSL off|no encryption)",
        "the database lets nobody in like this; add ?sslmode=require to DATABASE_URL, or a line to its pg_hba.conf",
    ),
    (
        r"no pg_hba.conf entry",
        "the database does not let this machine in; add a line for it to the server's pg_hba.conf",
    ),
    (
        r"does not support SSL",
        "the server of DATABASE_URL has no SSL and sslmode asks for it; turn ssl on there, or leave sslmode out",
    ),
    (
        r"server at \"([^\"]*)\"(?: \([^)]*\))?, port (\d+) failed: (?:Connection refused|.*time.?out|No route)",
        "nothing answers at {}, where DATABASE_URL leads; is PostgreSQL running there, and open to this machine?",
    ),
    (
        r"permission denied for (\w+ \w+)",
        "the user of DATABASE_URL may not read {} there; let its owner allow it, or make another: createdb onecode",
    ),
    (r"timeout expired", "nothing answers at the address of DATABASE_URL; is it open to this machine?"),
)


def explain_connection_error(error: psycopg.Error) -> str:
    """One line about a database that does not let us in, with the one thing to do; never a password."""
    words = " ".join(str(error).split())
    for pattern, todo in CONNECTION_ERROR_HINTS:
        if found := re.search(pattern, words):
            return todo.replace("{}", " port ".join(part for part in found.groups() if part))
    return f"the database of DATABASE_URL can't be used: {shorten(words, 300)}"
