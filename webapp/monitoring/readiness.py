"""Readiness: whether this web process can read from and write to the database.

Health checks run every few seconds, also while the database hangs. They must not use up the threads and connections of
the web server, so one background thread at a time runs the check on a connection of its own, and requests wait for its
result for a short time only.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from flask import Flask

from webapp.core import database_connections, database_health

# Seconds after the start of a check at which requests stop waiting for it.
CHECK_SECONDS = 1.5

UNAVAILABLE = "the database or the queue is unavailable"
NO_RESPONSE = "the database does not respond to writes in time"
READ_ONLY = "the database is read-only"
DISK_FULL = "the disk of the database is full"


@dataclass
class _Check:
    """One run of the check. `error` is set before `is_finished`."""

    started_at: float = field(default_factory=time.monotonic)
    is_finished: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class ReadinessCheck:
    """The readiness check of a process.

    :param database_url: as libpq expects it.
    """

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._lock = threading.Lock()
        self._current: _Check | None = None
        # Used by the thread of the current check only.
        self._connection: database_connections.DeadlineConnection | None = None

    def run(self) -> BaseException | None:
        """Check whether the database accepts writes; return the error if it does not.

        Takes at most `CHECK_SECONDS`. A request that arrives during a check gets the result of that check.

        :returns: `StatementTimeout` when there is no result in time.
        """
        with self._lock:
            if self._current is None or self._current.is_finished.is_set():
                self._current = _Check()
                threading.Thread(target=self._run, args=(self._current,), name="readiness", daemon=True).start()
            check = self._current
        if not check.is_finished.wait(max(0.0, check.started_at + CHECK_SECONDS - time.monotonic())):
            return database_connections.StatementTimeout(f"no response from the database within {CHECK_SECONDS:g} s")
        return check.error

    def _run(self, check: _Check) -> None:
        try:
            self._execute()
        except BaseException as error:
            check.error = error
        finally:
            check.is_finished.set()

    def _execute(self) -> None:
        try:
            connection = self._connection or self._connect()
            try:
                database_connections.check_writes(connection)
            except psycopg.OperationalError as error:
                # The server may have restarted since the last check. After a timeout, the next check connects again.
                if not connection.closed or isinstance(error, database_connections.StatementTimeout):
                    raise
                database_connections.check_writes(self._connect())
        except BaseException:
            self._close()
            raise

    def _connect(self) -> database_connections.DeadlineConnection:
        self._close()
        self._connection = database_connections.connect(
            self._database_url,
            statement_seconds=CHECK_SECONDS,
            autocommit=True,
            connect_timeout=2,
            application_name="onecode readiness",
        )
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def init_app(app: Flask) -> None:
    """Create the readiness check of this app."""
    app.extensions["readiness"] = ReadinessCheck(app.config["SETTINGS"].libpq_url)


def describe_problem(error: BaseException) -> str:
    """Return the status for an error of the check, in one line that reveals nothing about the installation."""
    if isinstance(error, database_connections.StatementTimeout):
        return NO_RESPONSE
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return READ_ONLY
    if isinstance(error, psycopg.errors.DiskFull):
        return DISK_FULL
    return UNAVAILABLE


def check_readiness(app: Flask) -> BaseException | None:
    """Check whether the database accepts writes; return the error if it does not. Takes at most `CHECK_SECONDS`."""
    check: ReadinessCheck = app.extensions["readiness"]
    error = check.run()
    if error is None and database_health.is_database_unavailable():
        database_health.mark_recovered()
    return error
