"""The storage of the task queue: Huey's tables, on connections on which every wait ends.

No task is lost while commits do not complete, for example because a synchronous standby is missing. What takes a task
from the queue runs in a transaction, because a cancelled statement with autocommit takes effect although its result is
lost. When the database does not confirm that the task has been taken, it runs nevertheless, and may run twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

import psycopg
from huey.storage import PostgresStorage

from webapp.core import database_connections, database_health
from webapp.core.database_connections import DeadlineConnection

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Seconds to wait for the response to one statement of the queue. All of them process a few rows.
QUEUE_STATEMENT_SECONDS = 5.0
# Seconds to wait until another thread has finished with the connection that they share.
QUEUE_LOCK_SECONDS = 5.0


class QueueBusy(psycopg.InterfaceError):
    """Other threads of this process have used the connection to the queue for too long.

    Alone this is no evidence of an outage: the thread that waits for the database finds it.
    """


@contextmanager
def _transaction(connection: DeadlineConnection) -> Iterator[None]:
    """Run the block in a transaction of a connection with autocommit."""
    connection.execute("begin")
    try:
        yield
    except BaseException:
        # After a timeout the connection is closed.
        with suppress(psycopg.Error):
            connection.rollback()
        raise
    connection.commit()


@contextmanager
def _closed_if_read_only(connection: DeadlineConnection) -> Iterator[None]:
    """Close a connection whose server is a standby or only reads: the next one may lead to the new primary."""
    try:
        yield
    except psycopg.Error as error:
        if database_health.is_read_only(error):
            connection.close()
        raise


class _TimedLock:
    """A lock as a context manager that does not wait forever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=QUEUE_LOCK_SECONDS):
            raise QueueBusy(f"other threads have used the connection to the queue for {QUEUE_LOCK_SECONDS:g} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class QueueStorage(PostgresStorage):  # type: ignore[misc]
    """Huey's storage with deadlines.

    All threads of a process share one connection, for which Huey lets them wait without a limit. Threads that process
    tasks have another connection each, which listens for new tasks; they also take their tasks from the queue on it. So
    they do not wait for each other, and a listening connection that has lost its server is noticed: it would only
    receive nothing.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lock = _TimedLock()
        # The name of the setting with the connection string.
        self.setting = "DATABASE_URL"
        # By action: since when, by `time.monotonic`, it has failed in every thread.
        self._failing_since: dict[str, float] = {}

    def _connect(self) -> DeadlineConnection:
        return database_connections.connect(
            self.dsn, setting=self.setting, statement_seconds=QUEUE_STATEMENT_SECONDS, autocommit=True
        )

    _create_connection = _connect

    @contextmanager
    def db(self, commit: bool = False, close: bool = False) -> Iterator[psycopg.Cursor[Any]]:
        """Use the shared connection in the block.

        Unlike Huey's own method, the error of a connection that is closed then is not hidden by that of a rollback.

        :param commit: whether the block is a transaction; otherwise each statement is one.
        :param close: whether to close the connection afterwards.
        """
        with self.lock:
            connection = self.conn
            with (
                _closed_if_read_only(connection),
                connection.cursor() as cursor,
                _transaction(connection) if commit else nullcontext(),
            ):
                yield cursor
            if close:
                connection.close()

    def dequeue(self) -> bytes | None:
        """Take a task from the queue; wait up to `read_timeout` seconds for one."""
        data: bytes | None = self._track_failures("dequeue", super().dequeue)
        return data

    def _dequeue(self) -> bytes | None:
        connection, row = self._listen_conn(), None
        try:
            with _closed_if_read_only(connection), _transaction(connection):
                row = connection.execute(
                    f"delete from {self.table_task} where id = ("  # noqa: S608
                    f"select id from {self.table_task} where queue = %s order by priority desc, id limit 1 "
                    "for update skip locked) returning data",
                    (self.name,),
                ).fetchone()
                if row is None:
                    connection.rollback()
        except psycopg.Error as error:
            if row is None or database_health.is_commit_rejected(error):
                raise
            database_health.report_if_outage(error)
            log.warning("a task runs, perhaps twice: the database has not confirmed that it was taken from the queue")
        return bytes(row[0]) if row is not None else None

    def add_to_schedule(self, data: bytes, ts: datetime) -> None:
        """Schedule a task for a time."""
        statement = f"insert into {self.table_schedule} (queue, data, timestamp) values (%s, %s, %s)"  # noqa: S608
        self.sql(statement, (self.name, data, ts.timestamp()), commit=True)

    def read_schedule(self, ts: datetime) -> list[bytes]:
        """Move the tasks that are due from the schedule to the queue.

        :returns: none of them: Huey would enqueue what this returned, and lose it if that failed.
        """
        self._track_failures("read_schedule", lambda: self._enqueue_due_tasks(ts))
        return []

    def _enqueue_due_tasks(self, ts: datetime) -> None:
        with self.db(commit=True) as cursor:
            cursor.execute(
                "with due as ("  # noqa: S608
                f"delete from {self.table_schedule} where id in (select id from {self.table_schedule} "
                "where queue = %s and timestamp <= %s for update skip locked) returning id, timestamp, data) "
                f"insert into {self.table_task} (queue, data) select %s, data from due order by timestamp, id",
                (self.name, ts.timestamp(), self.name),
            )
            if cursor.rowcount:
                cursor.execute("select pg_notify(%s, '')", (self.channel,))
            else:
                cursor.connection.rollback()

    def peek_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return no values: these keys would belong to revoked tasks, and Onecode revokes none.

        Huey looks them up before it runs a task that it has taken: the task would be lost if that failed.
        """
        return {}

    def delete_data(self, key: str) -> bool:
        """Delete nothing, for the same reason: Huey deletes such a key after each task."""
        return False

    def failing_seconds(self) -> float:
        """Return for how many seconds this process has been unable to take tasks or to read the schedule; 0 if it can.

        A thread that fails while another one succeeds does not count.
        """
        since = list(self._failing_since.values())
        return time.monotonic() - min(since) if since else 0.0

    def _track_failures(self, name: str, action: Callable[[], Result]) -> Result:
        try:
            result = action()
        except Exception:
            self._failing_since.setdefault(name, time.monotonic())
            raise
        self._failing_since.pop(name, None)
        return result
