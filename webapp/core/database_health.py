"""Detect and log database outages.

One line is logged when an outage starts, and one when the database has recovered. During an outage at most one rejected
request per second is logged. The database counts as recovered as soon as a connection of the pool works, and after a
commit that timed out, as soon as it accepts writes. Each process notices that when it next uses the database. If only a
single connection was terminated (the queue has its own), both lines follow each other immediately. Other connections
that were terminated in the same outage may be noticed up to a minute later; these are not logged again.
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
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import DBAPIError

from webapp.core import database_connections
from webapp.core.database_connections import CommitRefused, StatementTimeout
from webapp.core.settings import EMBEDDED_SERVER

log = logging.getLogger(__name__)

# SQLSTATE prefixes of a server that shuts down or rejects connections. Errors raised by libpq itself have no SQLSTATE.
DISCONNECT_SQLSTATES = ("08", "57P01", "57P02", "57P03", "53300")

# Severities of an error after which the session has ended; a server that panics stops.
_FATAL_SEVERITIES = ("FATAL", "PANIC")

# Messages of psycopg for a connection that is misused or that the server has closed: alone no evidence of an outage.
_CLOSED_PATTERN = re.compile("(connection|cursor) is closed|already in progress")

_CONNECT_FAILED_PATTERN = re.compile("connection failed|connection timeout")
# Seconds after an outage during which the pool may still contain terminated connections.
STALE_CONNECTION_SECONDS = 60

_lock = threading.Lock()
# All times are those of `time.monotonic`.
_outage_started_at: float | None = None
_recovered_at = -math.inf
# When a rejected request was last logged, and how many have not been logged since the outage started.
_last_logged_at = 0.0
_unlogged_requests = 0


def report_if_outage(error: BaseException | None) -> bool:
    """Return whether an error means that the database is unavailable.

    The first such error starts an outage, which is logged with its reason.
    """
    global _outage_started_at
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    is_fatal = cause.diag.severity_nonlocalized in _FATAL_SEVERITIES
    if cause.sqlstate and not is_fatal and not cause.sqlstate.startswith(DISCONNECT_SQLSTATES):
        return False
    if isinstance(cause, psycopg.InterfaceError) or (not cause.sqlstate and _CLOSED_PATTERN.search(str(cause))):
        return has_recent_outage()
    is_certain = _CONNECT_FAILED_PATTERN.match(str(cause)) or database_connections.are_commits_refused()
    with _lock:
        if _outage_started_at is None and not is_certain and _is_recently_recovered():
            return True
        is_first, _outage_started_at = _outage_started_at is None, _outage_started_at or time.monotonic()
    if is_first:
        log.error(
            "database unavailable or connection closed, retrying: %s",
            explain_connection_error(cause),
        )
    return True


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether the server rejected a statement because its disk is full (SQLSTATE 53100).

    The transaction is then rolled back, so nothing of it was saved. A server that stops for this reason instead, since
    it can't write its log, loses its connections: that is an outage.
    """
    cause = _find_cause(error)
    return isinstance(cause, psycopg.errors.DiskFull) and cause.diag.severity_nonlocalized not in _FATAL_SEVERITIES


def is_read_only(error: BaseException | None) -> bool:
    """Return whether the server rejected a statement because it is a standby or a former primary.

    It rejects writes (SQLSTATE 25006), and a standby also reads of unlogged tables. The transaction is then rolled
    back, so nothing of it was saved. The connection counts as lost.
    """
    cause = _find_cause(error)
    if isinstance(cause, psycopg.errors.FeatureNotSupported):
        # Many features share this SQLSTATE (0A000), and messages are translated. In this function of PostgreSQL only
        # the error "cannot access temporary or unlogged relations during recovery" has it.
        return cause.diag.source_function == "get_relation_info"
    return isinstance(cause, psycopg.errors.ReadOnlySqlTransaction)


def _find_cause(error: BaseException | None) -> BaseException | None:
    """Return the error of the driver; if a commit was not sent, the error of the check that prevented it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause.__cause__ if isinstance(cause, CommitRefused) else cause


@event.listens_for(Engine, "handle_error")
def _replace_read_only_connection(context: ExceptionContext) -> None:
    # A new connection may lead to the new primary.
    if is_read_only(context.original_exception):
        context.is_disconnect = True


def is_statement_timeout(error: BaseException | None) -> bool:
    """Return whether a statement got no response in time: the database does not respond, or the statement is slow."""
    return isinstance(error.orig if isinstance(error, DBAPIError) else error, StatementTimeout)


def is_commit_refused(error: BaseException | None) -> bool:
    """Return whether a commit was not sent, because the database has not completed an earlier one."""
    return isinstance(error.orig if isinstance(error, DBAPIError) else error, CommitRefused)


def is_commit_rejected(error: psycopg.Error) -> bool:
    """Return whether a commit that has failed has saved nothing; otherwise that is not known.

    A server that ends the session or panics may have written the commit before.
    """
    if isinstance(error, CommitRefused):
        return True
    # Class 08 is a lost connection, as reported by a connection pooler.
    is_connection_lost = (error.sqlstate or "").startswith("08")
    return error.diag.severity_nonlocalized == "ERROR" and not is_connection_lost


def is_commit_unconfirmed(error: BaseException | None) -> bool:
    """Return whether a commit has failed, and whether it has saved anything is not known."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, psycopg.Error) and "is_of_commit" in cause.__dict__ and not is_commit_rejected(cause)


def is_connection_lost(error: psycopg.Error) -> bool:
    """Return whether the server or the network ended an open connection.

    A new connection may work at once, unlike after a timeout, at which Onecode closes the connection.
    """
    return (
        isinstance(error, psycopg.OperationalError)
        and not isinstance(error, (StatementTimeout, CommitRefused))
        and (not error.sqlstate or error.sqlstate.startswith(("08", "57P01", "57P02")))
        and not _CONNECT_FAILED_PATTERN.match(str(error))
    )


def _is_recently_recovered() -> bool:
    return time.monotonic() - _recovered_at < STALE_CONNECTION_SECONDS


def mark_recovered() -> None:
    """Log the recovery of the database, if there was an outage."""
    global _outage_started_at, _unlogged_requests, _recovered_at
    with _lock:
        started_at, unlogged, _outage_started_at, _unlogged_requests = _outage_started_at, _unlogged_requests, None, 0
        _recovered_at = time.monotonic() if started_at is not None else _recovered_at
    if started_at is not None:
        requests = "1 rejected request was" if unlogged == 1 else f"{unlogged} rejected requests were"
        log.warning(
            # A process notices the recovery when it next uses the database.
            "the database has recovered after at most %.0f s%s",
            time.monotonic() - started_at,
            f"; {requests} not logged" if unlogged else "",
        )


def is_database_unavailable() -> bool:
    """Return whether there is an outage."""
    return _outage_started_at is not None


def has_recent_outage() -> bool:
    """Return whether there is an outage, or the last one ended less than a minute ago."""
    return is_database_unavailable() or _is_recently_recovered()


def should_log_rejected_request() -> bool:
    """Return whether to log a request that the outage has rejected: one per second."""
    global _last_logged_at, _unlogged_requests
    with _lock:
        if _outage_started_at is None or time.monotonic() - _last_logged_at >= 1:
            _last_logged_at = time.monotonic()
            return True
        _unlogged_requests += 1
        return False


@event.listens_for(Engine, "checkout")
def _on_connection_checkout(*connection: object) -> None:
    """End the outage, unless commits are refused.

    A connection that leaves the pool is new or has just passed its pre-ping.
    """
    if _outage_started_at is not None and not database_connections.are_commits_refused():
        mark_recovered()


# Messages of libpq (which never contain the password) and what to do; {} is replaced by the matched groups.
CONNECTION_ERROR_HINTS = (
    (
        r"could not translate host name \"([^\"]*)\"|failed to resolve host '([^']*)'",
        "the host {} cannot be resolved; check the name in DATABASE_URL",
    ),
    (r"password authentication failed for user \"([^\"]*)\"", "the password for {} in DATABASE_URL is wrong"),
    (r"no password supplied", "the database asks for a password; DATABASE_URL must be postgresql://user:password@…"),
    (
        r"database \"([^\"]*)\" does not exist",
        "there is no database {} on the server of DATABASE_URL; create it: createdb {}",
    ),
    (
        r"role \"([^\"]*)\" does not exist",
        "there is no user {} on the server of DATABASE_URL; create it: createuser --pwprompt {}",
    ),
    (
        r"unsupported startup parameter(?: in options)?: (\w+)",
        "the connection pooler of DATABASE_URL rejects the parameter {}; remove it from DATABASE_URL, or add it to "
        "ignore_startup_parameters of PgBouncer",
    ),
    (
        r"definition of service \"([^\"]*)\" not found",
        "there is no service {} in the service file of libpq; check PGSERVICEFILE and the name in DATABASE_URL",
    ),
    (r"service file \"([^\"]*)\" not found", "the service file {} of libpq does not exist; check PGSERVICEFILE"),
    (
        r"session is read-only|server is in hot standby",
        "the server of DATABASE_URL does not accept writes (a standby?); set DATABASE_URL to the primary server",
    ),
    (
        r"no pg_hba.conf entry .*(?:SSL off|no encryption)",
        "the database rejects unencrypted connections; add ?sslmode=require to DATABASE_URL, or a line to pg_hba.conf",
    ),
    (
        r"no pg_hba.conf entry",
        "the database rejects connections from this host; add a line for it to the server's pg_hba.conf",
    ),
    (
        r"does not support SSL",
        "sslmode requires SSL, which the server of DATABASE_URL does not support; enable ssl there, or remove sslmode",
    ),
    (
        r"server at \"([^\"]*)\"(?: \([^)]*\))?, port (\d+) failed: (?:Connection refused|.*timed?.?out|No route)",
        "nothing answers at {}, the address in DATABASE_URL; is PostgreSQL running there and reachable from this host?",
    ),
    (
        r"permission denied for (\w+ \w+)",
        "the user of DATABASE_URL has no permission for {}; grant it, or create another database: createdb onecode",
    ),
    (r"timeout expired", "nothing answers at the address in DATABASE_URL; is it reachable from this host?"),
)


# A line of psycopg about one of several attempts.
_ATTEMPT_PATTERN = re.compile(r"^- host: '?(.*?)'?, port: '?(.*?)'?, hostaddr: '?(.*?)'?: (.*)$", re.M)


def explain_connection_error(error: psycopg.Error) -> str:
    """Return one line about a failed connection and its remedy; never a password.

    It names the setting with the address, which `database_connections.connect` has stored in the error, or the folder
    of the embedded server.
    """
    name = error.__dict__.get("setting", "DATABASE_URL")
    attempts = {
        # One host name may have several addresses. A connection string may contain no port.
        (host if address in (host, "None") else f"{host} ({address})")
        + (f" port {port}" if port not in ("", "None") else ""): reason
        for host, port, address, reason in _ATTEMPT_PATTERN.findall(str(error))
    }
    if len(attempts) > 1:
        reasons = (
            f"{server}: {shorten(reason.rpartition('failed: ')[2], 100, placeholder=' …')}"
            for server, reason in attempts.items()
        )
        return f"none of the servers of {name} can be used: {'; '.join(reasons)}"
    message = " ".join(str(error).split())
    if name.startswith(EMBEDDED_SERVER):
        return f"{name} cannot be used ({shorten(message, 200, placeholder=' …')}); see its log, postgresql.log"
    for pattern, hint in CONNECTION_ERROR_HINTS:
        if match := re.search(pattern, message):
            groups = " port ".join(group for group in match.groups() if group)
            return hint.replace("DATABASE_URL", name).replace("{}", groups)
    return f"the database of {name} cannot be used: {shorten(message, 300)}"
