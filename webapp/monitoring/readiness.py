"""Readiness: whether this web process can read from and write to the database.

Health checks run every few seconds, also while the database hangs. They must not use up the threads and connections of
the web server, so one background thread at a time runs the check on connections of its own, and requests wait for its
result for a short time only.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from flask import Flask

from webapp.core import database_connections, database_health, pooler_check, write_check
from webapp.core.database_connections import DeadlineConnection
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings

# Seconds after the start of a check at which requests stop waiting for it.
CHECK_SECONDS = 1.5
# Seconds between two checks whether a connection pooler has the right mode.
POOLING_CHECK_INTERVAL_SECONDS = 60.0

UNAVAILABLE = "the database or the queue is unavailable"
NO_RESPONSE = "the database does not respond to writes in time"
READ_ONLY = "the database is read-only"
DISK_FULL = "the disk of the database is full"
WRONG_POOLING = "the connection pooler pools transactions, but the queue needs sessions"


class ServerSilent(database_connections.StatementTimeout):
    """The server has not responded at all; otherwise it may only be unable to complete writes."""


@dataclass
class _Check:
    """One run of the check. `error` is set before `is_finished`, `has_response` after the first response."""

    started_at: float = field(default_factory=time.monotonic)
    is_finished: threading.Event = field(default_factory=threading.Event)
    has_response: bool = False
    error: BaseException | None = None


class ReadinessCheck:
    """The readiness check of a process: writes over both connection strings, and the mode of a connection pooler."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._current: _Check | None = None
        # By connection string. Used by the thread of the current check only, as all that follows.
        self._connections: dict[str, DeadlineConnection] = {}
        # The last check of the pooling: when it started, by `time.monotonic`, its thread, and its result.
        self._pooling_checked_at = -math.inf
        self._pooling_thread: threading.Thread | None = None
        self._pooling_error: SettingsError | None = None

    def run(self) -> BaseException | None:
        """Check whether the database accepts writes; return the error if it does not.

        Takes at most `CHECK_SECONDS`. A request that arrives during a check gets the result of that check.

        :returns: `StatementTimeout` without a result in time (`ServerSilent` without any response), `RuntimeError` when
            the check could not be started.
        """
        with self._lock:
            if self._current is None or self._current.is_finished.is_set():
                check = _Check()
                try:
                    threading.Thread(target=self._run, args=(check,), name="readiness", daemon=True).start()
                except RuntimeError as error:
                    # The limit of threads is reached. The next request tries again.
                    return error
                self._current = check
            check = self._current
        if not check.is_finished.wait(max(0.0, check.started_at + CHECK_SECONDS - time.monotonic())):
            timeout = database_connections.StatementTimeout if check.has_response else ServerSilent
            return timeout(f"no response from the database within {CHECK_SECONDS:g} s")
        return check.error

    def _run(self, check: _Check) -> None:
        try:
            self._execute(check)
        except BaseException as error:
            check.error = error
        finally:
            check.is_finished.set()

    def _execute(self, check: _Check) -> None:
        try:
            for url in dict.fromkeys((self._settings.libpq_url, self._settings.direct_libpq_url)):
                self._check_writes(url, check)
            self._start_pooling_check()
        except BaseException:
            self._close()
            raise
        if self._pooling_error is not None:
            raise self._pooling_error

    def _check_writes(self, url: str, check: _Check) -> None:
        connection = self._connections.get(url) or self._connect(url)
        try:
            connection.execute("select 1")
            check.has_response = True
            write_check.check_writes(connection)
        except psycopg.OperationalError as error:
            # The server may have restarted since the last check. After a timeout, the next check connects again.
            if not connection.closed or isinstance(error, database_connections.StatementTimeout):
                raise
            connection = self._connect(url)
            check.has_response = True
            write_check.check_writes(connection)

    def _start_pooling_check(self) -> None:
        """Start to check whether the connections of the queue keep their session, if that is due.

        The mode of a pooler can change at any time. A busy one may answer later than requests wait for this check, so
        the result is that of the last check that has finished.
        """
        is_due = time.monotonic() - self._pooling_checked_at >= POOLING_CHECK_INTERVAL_SECONDS
        if (self._pooling_thread and self._pooling_thread.is_alive()) or not (is_due or self._pooling_error):
            return
        self._pooling_checked_at = time.monotonic()
        if pooler_check.is_pooled(self._connections[self._settings.direct_libpq_url]):
            self._pooling_thread = threading.Thread(target=self._check_pooling, name="pooling", daemon=True)
            self._pooling_thread.start()
        else:
            self._pooling_error = None

    def _check_pooling(self) -> None:
        try:
            pooler_check.check_pooling(self._settings)
            self._pooling_error = None
        except SettingsError as error:
            self._pooling_error = error
        except psycopg.Error:
            # Unknown: the last result stays.
            pass

    def _connect(self, url: str) -> DeadlineConnection:
        self._pooling_checked_at = -math.inf
        connection = self._connections[url] = database_connections.connect(
            url,
            statement_seconds=CHECK_SECONDS,
            autocommit=True,
            # The next transaction may have another session, which lacks prepared statements.
            prepare_threshold=None,
            connect_timeout=2,
            application_name="onecode readiness",
        )
        return connection

    def _close(self) -> None:
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            with suppress(psycopg.Error):
                connection.close()


def init_app(app: Flask) -> None:
    """Create the readiness check of this app."""
    app.extensions["readiness"] = ReadinessCheck(app.config["SETTINGS"])


def describe_problem(error: BaseException) -> str:
    """Return the status for an error of the check, in one line that reveals nothing about the installation."""
    if isinstance(error, database_connections.StatementTimeout):
        return NO_RESPONSE
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return READ_ONLY
    if isinstance(error, psycopg.errors.DiskFull):
        return DISK_FULL
    if isinstance(error, SettingsError):
        return WRONG_POOLING
    return UNAVAILABLE


def check_readiness(app: Flask) -> BaseException | None:
    """Check whether the database accepts writes; return the error if it does not. Takes at most `CHECK_SECONDS`."""
    check: ReadinessCheck = app.extensions["readiness"]
    error = check.run()
    if error is None and database_health.is_database_unavailable():
        database_health.mark_recovered()
    return error
