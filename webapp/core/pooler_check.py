"""Detect a connection pooler that pools transactions."""

from __future__ import annotations

import functools
from contextlib import closing, suppress
from typing import LiteralString

import psycopg

from webapp.core import database_connections
from webapp.core.database_connections import DeadlineConnection
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings

# Attempts to see two transactions of one connection in different sessions of the server; the first one is enough
# unless other clients use the pool at the same time.
ATTEMPTS = 5
# Seconds to wait for one answer. A pool of sessions that is full gives the second connection none.
ANSWER_SECONDS = 3.0


def check_pooling(settings: Settings) -> None:
    """Check that the connections of the settings keep their session where Onecode needs that. Writes nothing.

    :raises SettingsError: when one leads through a pooler of transactions that it must not use.
    :raises psycopg.Error: when the database is unavailable.
    """
    if not _pools_transactions(settings.direct_libpq_url, settings.direct_url_setting):
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


def is_pooled(connection: DeadlineConnection) -> bool:
    """Return whether a connection leads through a pooler, which gives its clients process ids of its own."""
    row = connection.execute("select pg_backend_pid()").fetchone()
    return row is not None and row[0] != connection.info.backend_pid


def _pools_transactions(url: str, setting: str) -> bool:
    """Return whether two transactions of a connection may have different sessions of the server.

    If it leads through a pooler, the session of one connection is watched while another one is in a transaction: a
    pooler of transactions gives it the session that was just used.

    :param setting: the name of the setting with the connection string.
    :raises psycopg.Error: when the database is unavailable.
    """
    open_connection = functools.partial(
        database_connections.connect, url, setting=setting, statement_seconds=ANSWER_SECONDS, autocommit=True
    )
    # Not the context managers of the connections: these would commit, and wait for a statement without an answer.
    with closing(open_connection()) as first:
        if not is_pooled(first):
            return False
        with closing(open_connection()) as second:
            return _changes_session(first, second)


def _changes_session(first: DeadlineConnection, second: DeadlineConnection) -> bool:
    for _attempt in range(ATTEMPTS):
        before = _find_session(first)
        # One request, so that the answer is of the transaction that stays open.
        other = _find_session(second, "begin; select pg_backend_pid()")
        if before is None or other is None:
            return False
        if before == other:
            return True
        after = _find_session(first)
        if after is None or before != after:
            return after is not None
        second.execute("rollback")
    return False


def _find_session(connection: DeadlineConnection, statement: LiteralString = "select pg_backend_pid()") -> int | None:
    """Return the process id of the server for a connection; None without an answer before the deadline."""
    try:
        cursor = connection.execute(statement)
    except database_connections.StatementTimeout:
        return None
    while cursor.nextset():
        pass
    row = cursor.fetchone()
    return row[0] if row else None
