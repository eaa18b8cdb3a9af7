"""Timeouts of the database: deadlines of statements, and one timeout of connecting per request.

A request uses the database several times: limits, session, view. While the database or the name server does not
respond, each use would wait until connecting times out, and a customer for all of them. So after the first timeout a
request opens no other connection. Those that are open can be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import psycopg
from flask import Flask

# Seconds to wait for the response to one statement, unless `statement_deadline` sets another value.
STATEMENT_SECONDS = 20.0
# For statements over many rows: imports, counts, retention, exports.
LONG_STATEMENT_SECONDS = 600.0
# For changes of the schema, which wait for locks and may rewrite or scan tables.
MIGRATION_STATEMENT_SECONDS = 6 * 3600.0
# Seconds to wait for a commit, unless the deadline of statements is shorter. After statements over many rows, a
# synchronous standby may need more than `STATEMENT_SECONDS` to receive the rest of their log.
COMMIT_SECONDS = 60.0
# Seconds to wait for the response when the pool tests a connection before it is used.
PING_SECONDS = 5.0
# A connection attempt that fails after this many seconds has waited for the database or the name server.
SLOW_CONNECT_SECONDS = 1.0

_statement_seconds: ContextVar[float] = ContextVar("statement_seconds", default=STATEMENT_SECONDS)
# The connection strings with which connecting has timed out; None outside of requests: a task or a command tries again.
_timed_out_urls: ContextVar[frozenset[str] | None] = ContextVar("timed_out_urls", default=None)


def init_app(app: Flask) -> None:
    """Let each request of an app open no connection after connecting has timed out.

    Called before any hook that uses the database is registered: so this is prepared first and ended last.
    """

    @app.before_request
    def start_request() -> None:
        _timed_out_urls.set(frozenset())

    @app.teardown_appcontext
    def end_request(_error: BaseException | None) -> None:
        _timed_out_urls.set(None)


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
    with statement_deadline(min(PING_SECONDS, _statement_seconds.get())):
        yield


def note_connect_timeout(url: str) -> None:
    """Note that connecting with a connection string has timed out; without effect outside of requests."""
    urls = _timed_out_urls.get()
    if urls is not None:
        _timed_out_urls.set(urls | {url})


def note_connect_error(url: str, error: psycopg.Error, seconds: float) -> None:
    """Note a failed connection attempt as a timeout if another one would probably make the request wait, too.

    :param error: the error of `psycopg.connect`, which resolves host names itself.
    :param seconds: how long the attempt took.
    """
    # Texts of psycopg, which are not translated. A name server may be slow at any time.
    has_waited = any(text in str(error) for text in ("timeout expired", "failed to resolve host"))
    if has_waited or seconds > SLOW_CONNECT_SECONDS:
        note_connect_timeout(url)


def has_connecting_timed_out(url: str) -> bool:
    """Return whether connecting with a connection string has timed out in the current request."""
    return url in (_timed_out_urls.get() or ())
