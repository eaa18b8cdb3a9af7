"""Connections to the database on which every wait ends.

A server can stop responding in three ways: it rejects connections, its machine vanishes (nothing acknowledges the
packets), or its processes are frozen while the kernel still acknowledges everything. TCP timeouts end the second; only
a deadline in the client ends the third, because `statement_timeout` is enforced by the frozen server itself. All parts
of the program connect here: the pool, the queue, the readiness check, and the commands.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout
from psycopg.pq import TransactionStatus
from psycopg.waiting import Wait
from sqlalchemy import Connection

from webapp.core import database_hosts, database_timeouts
from webapp.core.database_urls import build_connection_parameters
from webapp.core.write_check import check_writes

Result = TypeVar("Result")
PsycopgError = TypeVar("PsycopgError", bound=psycopg.Error)

# Seconds to wait until the server has received the request to cancel an overdue statement.
CANCEL_SECONDS = 1.0

# While a statement may take longer than `database_timeouts.STATEMENT_SECONDS`: seconds without data until it is checked
# whether the server still runs it, and seconds that this may take.
SERVER_CHECK_INTERVAL_SECONDS = 10.0
SERVER_CHECK_SECONDS = 5.0
# After a commit has timed out: seconds to wait for a check whether the database accepts writes, and between two checks.
COMMIT_CHECK_SECONDS = 2.0
COMMIT_CHECK_INTERVAL_SECONDS = 1.0


class StatementTimeout(psycopg.OperationalError):
    """The server did not respond to a statement in time.

    The connection is closed. The statement may have taken effect, or may still do so if the server is only slow.
    """


class _StatementLost(Exception):
    """The server is no longer at work on the statement."""


class CommitRefused(psycopg.OperationalError):
    """The commit was not sent, because the database has not completed an earlier one; nothing is saved."""


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection that stops waiting for a statement at a deadline.

    Each wait for the server has its own deadline: a statement, a commit, a fetch from a server-side cursor, a block of
    a COPY. `notifies` ends at the timeout of its caller instead.
    """

    # A deadline for all statements of this connection; by default that of `database_timeouts` applies.
    statement_seconds: float | None = None
    # SQL that starts each transaction of SQLAlchemy, see `database_engines.set_transaction_start`.
    transaction_start_sql = b""
    # The connection string of `connect`, and the name of the setting with it.
    url = ""
    setting = "DATABASE_URL"
    _is_committing = False

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Wait until an operation on the connection is complete.

        :raises StatementTimeout: when the server did not respond in time; the connection is closed then.
        """
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        seconds = self.statement_seconds or database_timeouts.current_seconds()
        if self._is_committing:
            seconds = min(seconds, database_timeouts.COMMIT_SECONDS)
        try:
            if seconds > database_timeouts.STATEMENT_SECONDS:
                try:
                    state = next(gen)
                except StopIteration as end:
                    # Nothing to wait for: most rows of a COPY have arrived with the one before.
                    done: Result = end.value
                    return done
                gen = self._watch(gen, state)
            return super().wait(gen, interval, seconds)
        except _WaitTimeout:
            self._cancel_and_close()
            raise self._name_setting(StatementTimeout(f"no response from the database within {seconds:g} s")) from None
        except _StatementLost:
            self._cancel_and_close()
            message = "the database no longer runs the statement, or does not respond at all"
            raise self._name_setting(StatementTimeout(message)) from None
        except psycopg.Error as error:
            self._name_setting(error)
            raise

    def commit(self) -> None:
        """Commit the transaction. Without one, does nothing: with autocommit, each statement has been committed.

        :raises StatementTimeout: when the server did not respond in time; whether it has committed is unknown then.
        :raises CommitRefused: see `check_commits`.
        """
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            super().commit()
            return
        self.check_commits()
        self._is_committing = True
        try:
            super().commit()
        except psycopg.Error as error:
            if isinstance(error, StatementTimeout):
                _commit_guard.refuse_commits()
            # For `database_health.is_commit_unconfirmed`.
            error.__dict__["is_of_commit"] = True
            raise
        finally:
            self._is_committing = False

    def check_commits(self) -> None:
        """Check that commits are allowed; asks the server only after a commit has timed out.

        :raises CommitRefused: when an earlier commit has timed out and the database still does not accept writes; the
            transaction is rolled back then.
        """
        try:
            _commit_guard.check(self)
        except CommitRefused as error:
            self._name_setting(error)
            # Otherwise the next transaction of this connection would commit this one, too.
            with suppress(psycopg.Error):
                self.rollback()
            raise

    def _watch(self, gen: PQGen[Result], state: Wait) -> PQGen[Result]:
        """Run an operation that may take minutes; end it when the server is no longer at work on it.

        :param state: what the operation waits for first.
        :raises _StatementLost: when two checks in a row have failed.
        """
        check_at = time.monotonic() + SERVER_CHECK_INTERVAL_SECONDS
        try:
            while True:
                ready = yield state
                # Nothing is ready at the end of each `interval`.
                if ready or time.monotonic() >= check_at:
                    if not ready and not self._is_session_alive() and not self._is_session_alive():
                        raise _StatementLost
                    check_at = time.monotonic() + SERVER_CHECK_INTERVAL_SECONDS
                state = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _is_session_alive(self) -> bool:
        """Return whether the server still has the session of this connection, asked over a new connection.

        A frozen server does not answer. Behind an address that leads to the current primary server, another server may
        answer, which does not have the session. A connection pooler hides which session it is.
        """
        info = self.info
        server: dict[str, Any] = {"host": info.host, "hostaddr": info.hostaddr or None, "port": info.port}
        try:
            with closing(
                connect(
                    self.url,
                    statement_seconds=SERVER_CHECK_SECONDS,
                    autocommit=True,
                    **server,
                    connect_timeout=math.ceil(SERVER_CHECK_SECONDS),
                    target_session_attrs="any",
                    ignore_earlier_timeout=True,
                )
            ) as other:
                row = other.execute(
                    "select pg_backend_pid(), exists (select from pg_stat_activity where pid = %s)",
                    [self.info.backend_pid],
                ).fetchone()
                return row is not None and bool(row[0] != other.info.backend_pid or row[1])
        except (StatementTimeout, psycopg.errors.ConnectionTimeout):
            return False
        except psycopg.Error:
            # For example, the server accepts no more connections.
            return True

    def _name_setting(self, error: PsycopgError) -> PsycopgError:
        """Store in an error which setting leads to the database, for `database_health.explain_connection_error`."""
        error.__dict__["setting"] = self.setting
        return error

    def _cancel_and_close(self) -> None:
        """Close the connection; ask the server to cancel the statement, so that a slow one releases its locks.

        A commit is never cancelled. With synchronous replication, that would make rows visible which the standby does
        not have: another request could confirm them, and a failover would then lose them.
        """
        try:
            # Older versions of libpq can only cancel without a timeout.
            if not self._is_committing and psycopg.capabilities.has_cancel_safe():
                with suppress(psycopg.Error):
                    self.cancel_safe(timeout=CANCEL_SECONDS)
        finally:
            self.close()


@contextmanager
def long_statements(connection: Connection) -> Iterator[None]:
    """Let the statements of one connection take up to `database_timeouts.LONG_STATEMENT_SECONDS` in the block.

    For generators, in which `statement_deadline` would also apply to the code between two items.
    """
    driver = cast("DeadlineConnection", connection.connection.driver_connection)
    before, driver.statement_seconds = driver.statement_seconds, database_timeouts.LONG_STATEMENT_SECONDS
    try:
        yield
    finally:
        driver.statement_seconds = before


def connect(
    url: str,
    *,
    setting: str = "DATABASE_URL",
    statement_seconds: float | None = None,
    ignore_earlier_timeout: bool = False,
    **parameters: Any,
) -> DeadlineConnection:
    """Connect to the database.

    :param url: a connection string of libpq.
    :param setting: the name of the setting with the connection string, for `database_health.explain_connection_error`;
        for the embedded server `Settings.url_setting`.
    :param statement_seconds: a deadline for all statements of this connection, instead of that of `database_timeouts`.
    :param ignore_earlier_timeout: whether to connect although an earlier attempt in this request was slow to fail.
    :param parameters: of `psycopg.connect`; they take precedence over those in `url`.
    :raises psycopg.OperationalError: when no server has accepted the connection within its timeout, now or before in
        this request (`StatementTimeout`).
    """
    arguments = {**database_hosts.order_hosts(url, build_connection_parameters(url)), **parameters}
    started_at = time.monotonic()
    try:
        if not ignore_earlier_timeout and database_timeouts.has_connecting_timed_out(url):
            raise StatementTimeout("an earlier connection attempt in this request has failed")
        connection = DeadlineConnection.connect(**arguments)
    except psycopg.Error as error:
        if not ignore_earlier_timeout:
            database_timeouts.note_connect_error(url, error, time.monotonic() - started_at)
        error.__dict__["setting"] = setting
        raise
    if "host" not in parameters:
        database_hosts.note_host(url, connection.info.host, connection.info.hostaddr, connection.info.port)
    connection.statement_seconds = statement_seconds
    connection.url, connection.setting = url, setting
    return connection


class _CommitGuard:
    """Refuses commits after one has timed out, until the database accepts writes.

    A commit that waits for a missing standby leaves a server process that waits, also when its connection is closed.
    Without a limit, there would soon be as many as the server accepts connections, and reads would fail as well.
    """

    def __init__(self) -> None:
        self.is_refusing = False
        self._lock = threading.Lock()
        # The error of the last check, and when it has failed, by `time.monotonic`.
        self._failure: psycopg.Error | None = None
        self._failed_at = -math.inf

    def refuse_commits(self) -> None:
        """Refuse commits from now on."""
        self.is_refusing = True

    def check(self, connection: DeadlineConnection) -> None:
        """Return if commits are allowed; otherwise check whether the database of a connection accepts writes again.

        One thread checks, at most once a second; the others are refused at once.

        :raises CommitRefused: when it does not, from the error of the last check; or when it does, but no connection
            was left for the check, so that the transaction of this one was rolled back.
        """
        if not self.is_refusing:
            return
        if not self._lock.acquire(blocking=False):
            raise CommitRefused("the database does not complete commits") from self._failure
        try:
            if time.monotonic() - self._failed_at < COMMIT_CHECK_INTERVAL_SECONDS:
                raise CommitRefused("the database does not complete commits") from self._failure
            is_rolled_back = self._check_writes(connection)
            self.is_refusing, self._failure = False, None
        except CommitRefused:
            raise
        except psycopg.Error as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise CommitRefused(f"the database does not complete commits: {error}") from error
        finally:
            self._lock.release()
        if is_rolled_back:
            raise CommitRefused("the transaction was rolled back to check whether the database accepts writes")

    @staticmethod
    def _check_writes(connection: DeadlineConnection) -> bool:
        """Check writes on a new connection, or if none can be opened, on the given one without its transaction.

        :returns: whether a transaction was rolled back.
        """
        seconds = COMMIT_CHECK_SECONDS
        try:
            other = connect(
                connection.url,
                setting=connection.setting,
                statement_seconds=seconds,
                ignore_earlier_timeout=True,
                autocommit=True,
            )
        except psycopg.Error:
            # For example, the server accepts no more connections: a commit on this one may succeed.
            is_rolled_back = connection.pgconn.transaction_status != TransactionStatus.IDLE
            connection.rollback()
            before = connection.autocommit, connection.statement_seconds
            connection.autocommit, connection.statement_seconds = True, seconds
            try:
                check_writes(connection)
            finally:
                # After a timeout, the connection is closed.
                if not connection.closed:
                    connection.autocommit, connection.statement_seconds = before
            return is_rolled_back
        with closing(other):
            check_writes(other)
        return False


_commit_guard = _CommitGuard()


def are_commits_refused() -> bool:
    """Return whether a commit has timed out, and the database has not accepted writes since."""
    return _commit_guard.is_refusing
