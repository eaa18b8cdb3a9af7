"""How long the program waits for the database, and that a request does not wait twice.

A request uses the database several times: limits, session, view. On a frozen server each use would wait for its own
timeout, and a customer for all of them. So the first timeout ends them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flask import Flask

# Seconds to wait for the response to one statement, unless `statement_deadline` sets another value.
STATEMENT_SECONDS = 20.0
# For statements over many rows: imports, counts, retention, exports.
LONG_STATEMENT_SECONDS = 600.0
# For changes of the schema, which wait for locks and may rewrite or scan tables.
MIGRATION_STATEMENT_SECONDS = 6 * 3600.0
# Seconds to wait for the response when the pool tests a connection before it is used.
PING_SECONDS = 5.0

_statement_seconds: ContextVar[float] = ContextVar("statement_seconds", default=STATEMENT_SECONDS)
# While the pool tests a connection: it connects anew if that fails, which may lead to another server.
_is_ping: ContextVar[bool] = ContextVar("is_ping", default=False)
# None outside of requests: a task or a command may wait again.
_has_timed_out: ContextVar[bool | None] = ContextVar("has_timed_out", default=None)


def init_app(app: Flask) -> None:
    """Let each request of an app fail at once after its first timeout.

    Called before any hook that uses the database is registered: so this is prepared first and ended last.
    """

    @app.before_request
    def start_request() -> None:
        _has_timed_out.set(False)

    @app.teardown_appcontext
    def end_request(_error: BaseException | None) -> None:
        _has_timed_out.set(None)


def current_seconds() -> float:
    """Return the seconds to wait for a statement in this thread."""
    return _statement_seconds.get()


@contextmanager
def statement_deadline(seconds: float) -> Iterator[None]:
    """Wait up to `seconds` for each statement in the block, in this thread."""
    token = _statement_seconds.set(seconds)
    try:
        yield
    finally:
        _statement_seconds.reset(token)


@contextmanager
def ping_deadline() -> Iterator[None]:
    """Wait up to `PING_SECONDS` for a test of a connection in the block, or less if statements may not take longer."""
    token = _is_ping.set(True)
    try:
        with statement_deadline(min(PING_SECONDS, _statement_seconds.get())):
            yield
    finally:
        _is_ping.reset(token)


def note_timeout() -> None:
    """Note that the database has not responded in time to the current request.

    Without effect outside of requests, and for the test of a pooled connection.
    """
    if _has_timed_out.get() is not None and not _is_ping.get():
        _has_timed_out.set(True)


def allow_new_connection() -> None:
    """Let the current request wait again, for a new connection, which may lead to another server.

    For code that has lost a connection of its own: a pool would have tested that one before it was used.
    """
    if _has_timed_out.get() is not None:
        _has_timed_out.set(False)


def has_request_timed_out() -> bool:
    """Return whether the database has not responded in time to the current request."""
    return bool(_has_timed_out.get())
