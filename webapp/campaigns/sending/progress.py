"""Send progress inside a window: the cursor of a batch, moved once per email.

This is nearly the whole database cost of sending an email, so it bypasses SQLAlchemy: a prepared statement, sent while
the relay is processing a command, on a separate connection with asynchronous commit. Asynchronous commit loses nothing
when a worker is killed; after a crash of the database the table is always empty, because it is unlogged.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, cast

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from webapp.campaigns import timing
from webapp.campaigns.sending.disk_warning import store_disk_warning
from webapp.core.database_engines import get_direct_engine
from webapp.core.database_health import is_disk_full

# The row has the epoch of the latest owner, so the update of a former owner matches nothing.
_MOVE_CURSOR_SQL = "update batch_cursor set cursor = $1 where batch_id = $2 and epoch = $3"
# The row is missing before the first window and after a crash of the database; the batch's owner then inserts it.
_UPSERT_CURSOR_SQL = """
    insert into batch_cursor (batch_id, epoch, cursor)
    select id, epoch, %(cursor)s from batch where id = %(batch)s and owner = %(owner)s and epoch = %(epoch)s
    on conflict (batch_id) do update set epoch = excluded.epoch, cursor = excluded.cursor
    where batch_cursor.epoch <= excluded.epoch
"""


class OwnedBatch(Protocol):
    """A batch that is owned by a worker."""

    @property
    def ownership_params(self) -> dict[str, Any]:
        """The batch, its owner and its epoch, as parameters of a statement."""
        ...


def move_cursor(connection: Connection, batch: OwnedBatch, cursor: int) -> bool:
    """Move the cursor within the caller's transaction.

    :returns: False when another worker owns the batch.
    """
    return connection.exec_driver_sql(_UPSERT_CURSOR_SQL, {"cursor": cursor, **batch.ownership_params}).rowcount == 1


@contextmanager
def _raise_psycopg_errors() -> Iterator[None]:
    """Convert SQLAlchemy's errors about an unavailable database to psycopg's.

    Then one handler covers both.
    """
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise psycopg.OperationalError(str(error)) from error


class SendProgress:
    """The cursors of one sender.

    A move is started, the sender talks to the relay, then the move is finished.
    """

    def __enter__(self) -> SendProgress:
        self._connection: Connection | None = None
        self._pending_move: tuple[OwnedBatch, int] | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_connection()

    def start_move(self, batch: OwnedBatch, cursor: int) -> None:
        """Start to record that all emails before `cursor` are accepted, without waiting.

        Call `finish_move` next.
        """
        self._pending_move = batch, cursor
        try:
            self._send_move()
        except (psycopg.OperationalError, psycopg.InterfaceError):
            # `finish_move` sends it again and can wait.
            self._close_connection()

    def finish_move(self) -> bool:
        """Wait until the started move is recorded.

        :returns: False when another worker owns the batch.
        :raises psycopg.Error: when the database has been unavailable for `timing.LEASE_DURATION`.
        """
        deadline = time.monotonic() + timing.LEASE_DURATION
        while self._pending_move is not None:
            try:
                if self._connection is None:
                    self._send_move()
                moved = self._read_move_result() or self._move_in_transaction(*self._pending_move)
                self._pending_move = None
                return moved
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                self._close_connection()
                if is_disk_full(error.__cause__):
                    store_disk_warning()
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        return True

    def _send_move(self) -> None:
        assert self._pending_move is not None  # noqa: S101
        batch, cursor = self._pending_move
        values = (cursor, batch.ownership_params["batch"], batch.ownership_params["epoch"])
        connection = self._open_connection()
        connection.send_query_prepared(b"move", [b"%d" % value for value in values])
        connection.flush()

    def _read_move_result(self) -> bool:
        """Return whether the update moved the cursor."""
        connection, moved = self._open_connection(), False
        while (result := self._next_result(connection)) is not None:
            if result.status != ExecStatus.COMMAND_OK:
                reason = psycopg.errors.error_from_result(result)
                raise psycopg.OperationalError(str(reason)) from reason
            moved = result.command_tuples == 1
        if connection.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection is lost")
        return moved

    @staticmethod
    def _next_result(connection: PGconn) -> PGresult | None:
        """Return the next result once it has arrived.

        Polls, because waiting inside libpq would hold the GIL and with it block every other thread, possibly the one
        whose transaction the update waits for.
        """
        deadline = time.monotonic() + timing.CURSOR_TIMEOUT
        ready = select.poll()
        ready.register(connection.socket, select.POLLIN)
        while connection.is_busy():
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise psycopg.OperationalError("no response before the timeout")
            connection.consume_input()
        return connection.get_result()

    def _move_in_transaction(self, batch: OwnedBatch, cursor: int) -> bool:
        assert self._connection is not None  # noqa: S101
        with _raise_psycopg_errors():
            return move_cursor(self._connection, batch, cursor)

    def _open_connection(self) -> PGconn:
        if self._connection is None:
            with _raise_psycopg_errors():
                connection = get_direct_engine().connect().execution_options(isolation_level="AUTOCOMMIT")
                # It never returns to a pool: its settings must not reach transactions that have to be durable.
                connection.detach()
                connection.exec_driver_sql("set synchronous_commit = off")
                connection.exec_driver_sql(f"set lock_timeout = {int(timing.CURSOR_TIMEOUT * 1000)}")
                connection.exec_driver_sql(f"prepare move (int, bigint, int) as {_MOVE_CURSOR_SQL}")
            self._connection = connection
        return _get_driver_connection(self._connection).pgconn

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if not connection.invalidated:
            # Each statement commits itself, so there is nothing to roll back. Otherwise SQLAlchemy would try, and log
            # an error with a traceback if the connection is lost.
            driver_connection = _get_driver_connection(connection)
            connection.invalidate()
            driver_connection.close()
        connection.close()


def _get_driver_connection(connection: Connection) -> psycopg.Connection[object]:
    return cast("psycopg.Connection[object]", connection.connection.dbapi_connection)
