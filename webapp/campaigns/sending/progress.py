"""How far the owner of a batch has come inside its window: the cursor, moved once for each mail.

Nearly all that sending a mail costs in the database is here, so it goes round SQLAlchemy: a prepared statement, sent
while the relay has something to do, on a connection of its own that does not wait for the disk. Nothing is lost by
that when a worker is killed; after a crash of the database the table is empty in any case, for it is unlogged.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, cast

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from webapp.campaigns import timing
from webapp.core.extensions import db

# The row of a batch has the epoch of whoever took it over last, so that a former owner's finds nothing.
_MOVE_CURSOR_SQL = "update batch_cursor set cursor = $1 where batch_id = $2 and epoch = $3"
# There is none before the first window, and none after a crash of the database: whoever owns the batch makes it anew.
_UPSERT_CURSOR_SQL = """
    insert into batch_cursor (batch_id, epoch, cursor)
    select id, epoch, %(cursor)s from batch where id = %(batch)s and owner = %(owner)s and epoch = %(epoch)s
    on conflict (batch_id) do update set epoch = excluded.epoch, cursor = excluded.cursor
    where batch_cursor.epoch <= excluded.epoch
"""


class OwnedBatch(Protocol):
    """A batch that somebody owns."""

    @property
    def ownership_params(self) -> dict[str, Any]:
        """`batch`, `owner` and `epoch`."""
        ...


def move_cursor(connection: Connection, taken: OwnedBatch, cursor: int) -> bool:
    """Move the cursor within the caller's transaction; False when the batch is somebody else's by now."""
    return connection.exec_driver_sql(_UPSERT_CURSOR_SQL, {"cursor": cursor, **taken.ownership_params}).rowcount == 1


@contextmanager
def _raise_psycopg_errors() -> Iterator[None]:
    """A database that is away is one kind of error here, whoever meets it."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise psycopg.OperationalError(str(error)) from error


class SendProgress:
    """Keeps the cursors of one pump. Moving one is begun and, when the relay has been talked to meanwhile, done."""

    def __enter__(self) -> SendProgress:
        self._connection: Connection | None = None
        self._pending_move: tuple[OwnedBatch, int] | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_connection()

    def start_move(self, taken: OwnedBatch, cursor: int) -> None:
        """The mails before `cursor` are accepted: write that down, but don't wait for it. `done` has to follow."""
        self._pending_move = taken, cursor
        try:
            self._send_move()
        except (psycopg.OperationalError, psycopg.InterfaceError):
            # It is begun anew, with time to wait, by `done`.
            self._close_connection()

    def finish_move(self) -> bool:
        """What was begun is written down; False when the batch is somebody else's by now.

        :raises psycopg.Error: when the database has been away for as long as a lease lasts.
        """
        deadline = time.monotonic() + timing.LEASE_DURATION
        while self._pending_move is not None:
            try:
                if self._connection is None:
                    self._send_move()
                moved = self._read_move_result() or self._move_in_transaction(*self._pending_move)
                self._pending_move = None
                return moved
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self._close_connection()
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        return True

    def _send_move(self) -> None:
        assert self._pending_move is not None  # noqa: S101
        taken, cursor = self._pending_move
        values = (cursor, taken.ownership_params["batch"], taken.ownership_params["epoch"])
        connection = self._open_connection()
        connection.send_query_prepared(b"move", [b"%d" % value for value in values])
        connection.flush()

    def _read_move_result(self) -> bool:
        """Whether the cursor stands where it was sent to."""
        connection, moved = self._open_connection(), False
        while (result := self._next_result(connection)) is not None:
            if result.status != ExecStatus.COMMAND_OK:
                raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace"))
            moved = result.command_tuples == 1
        if connection.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection is lost")
        return moved

    @staticmethod
    def _next_result(connection: PGconn) -> PGresult | None:
        """The next part of the answer. Asked for only when it has come: libpq's own waiting would hold the lock of the
        interpreter, and with it every other thread, perhaps the very one that is waited for."""
        deadline = time.monotonic() + timing.CURSOR_TIMEOUT
        ready = select.poll()
        ready.register(connection.socket, select.POLLIN)
        while connection.is_busy():
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise psycopg.OperationalError("no answer in time")
            connection.consume_input()
        return connection.get_result()

    def _move_in_transaction(self, taken: OwnedBatch, cursor: int) -> bool:
        assert self._connection is not None  # noqa: S101
        with _raise_psycopg_errors():
            return move_cursor(self._connection, taken, cursor)

    def _open_connection(self) -> PGconn:
        if self._connection is None:
            with _raise_psycopg_errors():
                kept = db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                # It never goes back to the pool: its setting must not reach transactions that have to be on disk.
                kept.detach()
                kept.exec_driver_sql("set synchronous_commit = off")
                kept.exec_driver_sql(f"set lock_timeout = {int(timing.CURSOR_TIMEOUT * 1000)}")
                kept.exec_driver_sql(f"prepare move (int, bigint, int) as {_MOVE_CURSOR_SQL}")
            self._connection = kept
        return cast("psycopg.Connection[object]", self._connection.connection.dbapi_connection).pgconn

    def _close_connection(self) -> None:
        kept, self._connection = self._connection, None
        if kept is not None:
            # What is broken can't be rolled back, but there is nothing to roll back.
            with suppress(SQLAlchemyError):
                kept.close()
