"""Count the errors of SQLAlchemy's engines by kind, for `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from webapp.core import web_metrics
from webapp.core.database_connections import CommitRefused, StatementTimeout
from webapp.core.database_health import DISCONNECT_SQLSTATES, is_read_only
from webapp.core.web_metrics import DatabaseErrorKind

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ExceptionContext

# By SQLSTATE (appendix A of PostgreSQL's documentation).
KINDS_BY_SQLSTATE: dict[str, DatabaseErrorKind] = {
    "53100": "disk_full",
    "53300": "too_many_connections",
    "55P03": "lock_timeout",
    "57014": "statement_timeout",
    "40001": "conflict",
    "40P01": "conflict",
}
# Errors that the program provokes and handles: invalid values (22) and violated constraints (23).
EXPECTED_SQLSTATES = ("22", "23")


def get_error_kind(error: BaseException | None) -> DatabaseErrorKind | None:
    """Return the kind of a database error; None for errors that the program provokes and handles.

    A commit that was refused has the kind of the error that prevents commits.
    """
    if not isinstance(error, psycopg.Error):
        return None
    if isinstance(error, CommitRefused):
        return get_error_kind(error.__cause__) or "no_response"
    if isinstance(error, StatementTimeout):
        return "no_response"
    if not error.sqlstate:
        # Raised by libpq or psycopg: no server, a lost connection, or a connection that was closed before.
        return "unavailable" if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else None
    if error.sqlstate.startswith(EXPECTED_SQLSTATES):
        return None
    if is_read_only(error):
        return "read_only"
    if kind := KINDS_BY_SQLSTATE.get(error.sqlstate):
        return kind
    return "unavailable" if error.sqlstate.startswith(DISCONNECT_SQLSTATES) else "other"


def count_errors(engine: Engine) -> None:
    """Count the errors of an engine, except for those of checks of pooled connections, which are replaced."""
    event.listen(engine, "handle_error", _count_error)


def _count_error(context: ExceptionContext) -> None:
    kind = None if context.is_pre_ping else get_error_kind(context.original_exception)
    if kind is not None:
        web_metrics.count_database_error(kind)
