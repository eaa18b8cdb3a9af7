"""How far the owner of a batch has come inside its window: the cursor, moved once for each mail.

Nearly all that sending a mail costs in the database is here, so it goes round SQLAlchemy: a prepared statement on a
connection of its own that does not wait for the disk. Nothing is lost by that when a worker is killed; after a crash
of the database the table is empty in any case, for it is unlogged.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol, cast

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from webapp.campaigns import times
from webapp.extensions import db

# The row of a batch has the epoch of whoever took it over last, so that a former owner's finds nothing.
_MOVE = "update batch_cursor set cursor = %(cursor)s where batch_id = %(batch)s and epoch = %(epoch)s"
# There is none before the first window, and none after a crash of the database: whoever owns the batch makes it anew.
_PLACE = """
    insert into batch_cursor (batch_id, epoch, cursor)
    select id, epoch, %(cursor)s from batch where id = %(batch)s and owner = %(owner)s and epoch = %(epoch)s
    on conflict (batch_id) do update set epoch = excluded.epoch, cursor = excluded.cursor
    where batch_cursor.epoch <= excluded.epoch
"""


class Owned(Protocol):
    """A batch that somebody owns."""

    @property
    def guard(self) -> dict[str, Any]:
        """`batch`, `owner` and `epoch`."""
        ...


def put(connection: Connection, taken: Owned, cursor: int) -> bool:
    """Move the cursor within the caller's transaction; False when the batch is somebody else's by now."""
    return connection.exec_driver_sql(_PLACE, {"cursor": cursor, **taken.guard}).rowcount == 1


class Place:
    """Keeps the cursors of one pump."""

    def __enter__(self) -> Place:
        self._kept: Connection | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def move(self, taken: Owned, cursor: int) -> bool:
        """The mails before `cursor` are accepted; False when the batch is somebody else's by now.

        :raises psycopg.Error: when the database has been away for as long as a lease lasts.
        """
        deadline = time.monotonic() + times.LEASE
        where = {"cursor": cursor, **taken.guard}
        while True:
            try:
                connection = self._open()
                if connection.execute(_MOVE, where, prepare=True).rowcount == 1:
                    return True
                return connection.execute(_PLACE, where).rowcount == 1
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self._drop()
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _open(self) -> psycopg.Connection[Any]:
        if self._kept is None:
            try:
                kept = db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            except OperationalError as error:
                raise psycopg.OperationalError(str(error.orig)) from error
            # It never goes back to the pool: its setting must not reach transactions that have to be on disk.
            kept.detach()
            kept.exec_driver_sql("set synchronous_commit = off")
            self._kept = kept
        return cast("psycopg.Connection[Any]", self._kept.connection.dbapi_connection)

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None
