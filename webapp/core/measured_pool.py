"""A connection pool that measures waits, and the count of database errors by kind."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from webapp.core import web_metrics
from webapp.core.database_connections import CommitRefused, StatementTimeout
from webapp.core.web_metrics import DatabaseErrorKind

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry

# By SQLSTATE (appendix A of PostgreSQL's documentation).
KINDS_BY_SQLSTATE: dict[str, DatabaseErrorKind] = {
    "53100": "disk_full",
    "25006": "read_only",
    "53300": "too_many_connections",
    "55P03": "lock_timeout",
    "57014": "statement_timeout",
    "40001": "conflict",
    "40P01": "conflict",
}
UNAVAILABLE_SQLSTATES = ("08", "57P01", "57P02", "57P03")
# Errors that the program provokes and handles: invalid values (22) and violated constraints (23).
EXPECTED_SQLSTATES = ("22", "23")

# SQLAlchemy names the logger of a pool after its class: without this, its messages would be logged like the program's.
logging.getLogger(f"{__name__}.MeasuredQueuePool").setLevel(logging.WARNING)


class MeasuredQueuePool(QueuePool):
    """A pool that counts how long requests wait for a connection, including the time to open one."""

    def _do_get(self) -> ConnectionPoolEntry:
        started_at = time.perf_counter()
        try:
            return super()._do_get()
        except PoolTimeoutError:
            web_metrics.count_database_error("pool_timeout")
            raise
        finally:
            web_metrics.count_wait(time.perf_counter() - started_at)


def get_error_kind(error: BaseException | None) -> DatabaseErrorKind | None:
    """Return the kind of a database error; None for errors that the program provokes and handles."""
    if not isinstance(error, psycopg.Error):
        return None
    if isinstance(error, (StatementTimeout, CommitRefused)):
        return "no_response"
    if not error.sqlstate:
        # Raised by libpq or psycopg: no server, a lost connection, or a connection that was closed before.
        return "unavailable" if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else None
    if error.sqlstate.startswith(EXPECTED_SQLSTATES):
        return None
    if error.sqlstate.startswith(UNAVAILABLE_SQLSTATES):
        return "unavailable"
    return KINDS_BY_SQLSTATE.get(error.sqlstate, "other")


@event.listens_for(Engine, "handle_error")
def _count_error(context: ExceptionContext) -> None:
    """Count an error, unless it is that of a check of a pooled connection, which is replaced without harm."""
    kind = None if context.is_pre_ping else get_error_kind(context.original_exception)
    if kind is not None:
        web_metrics.count_database_error(kind)
