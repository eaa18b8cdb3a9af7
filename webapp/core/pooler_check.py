"""Detect a connection pooler that pools transactions."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from contextlib import closing, suppress

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings

# Attempts to see two transactions of one connection in different sessions of the server; the first one is enough
# unless other clients use the pool at the same time.
ATTEMPTS = 5
# Seconds to wait for one answer. A pool of sessions that is full does not answer the second connection.
ANSWER_TIMEOUT = 3.0


def check_pooling(settings: Settings) -> None:
    """Check that the connections of the settings keep their session where Onecode needs that. Writes nothing.

    :raises SettingsError: when one leads through a pooler of transactions that it must not use.
    :raises psycopg.Error: when the database is unavailable.
    """
    if not pools_transactions(settings.direct_connection_parameters):
        return
    if settings.database_direct_url:
        raise SettingsError(
            "DATABASE_DIRECT_URL leads to a connection pooler that pools transactions; set it to PostgreSQL itself"
        )
    raise SettingsError(
        "DATABASE_URL leads to a connection pooler that pools transactions; set DATABASE_DIRECT_URL to PostgreSQL "
        "itself as well, or let the pooler pool sessions (PgBouncer: pool_mode = session)"
    )


def check_pooling_if_available(settings: Settings) -> None:
    """Check the pooling as `check_pooling` does, unless the database is unavailable.

    The web server and workers also start during an outage.

    :raises SettingsError: when a connection leads through a pooler of transactions that it must not use.
    """
    with suppress(psycopg.Error):
        check_pooling(settings)


def pools_transactions(parameters: Mapping[str, str]) -> bool:
    """Return whether two transactions of a connection may have different sessions of the server.

    A pooler gives its clients process ids of its own. With that sign, the session of one connection is watched while
    another one is in a transaction: a pooler of transactions gives it the session that was just used.

    :raises psycopg.Error: when the database is unavailable.
    """
    address = make_conninfo(**parameters)
    # Not the context managers of the connections: these would commit, and wait for a statement without an answer.
    with closing(psycopg.connect(address, autocommit=True)) as first:
        if _ask(first.pgconn, b"select pg_backend_pid()") == str(first.info.backend_pid):
            return False
        with closing(psycopg.connect(address, autocommit=True)) as second:
            return _changes_session(first.pgconn, second.pgconn)


def _changes_session(first: PGconn, second: PGconn) -> bool:
    for _attempt in range(ATTEMPTS):
        before = _ask(first, b"select pg_backend_pid()")
        # One request, so that the answer is of the transaction that stays open.
        other = _ask(second, b"begin; select pg_backend_pid()")
        if before is None or other is None:
            # A pool of sessions with no session left for the second connection.
            return False
        if before == other:
            return True
        after = _ask(first, b"select pg_backend_pid()")
        if after is None or before != after:
            return after is not None
        _ask(second, b"rollback")
    return False


def _ask(connection: PGconn, statement: bytes) -> str | None:
    """Return the last value of a statement; None without one before the timeout."""
    deadline = time.monotonic() + ANSWER_TIMEOUT
    connection.send_query(statement)
    connection.flush()
    ready = select.poll()
    ready.register(connection.socket, select.POLLIN)
    value = None
    while True:
        while connection.is_busy():
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            connection.consume_input()
        result = connection.get_result()
        if result is None:
            return value
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace"))
        if result.ntuples:
            value = (result.get_value(0, 0) or b"").decode()
