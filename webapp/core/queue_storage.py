"""The storage of the task queue: Huey's tables, on connections on which every wait ends."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import psycopg
from huey.storage import PostgresStorage

from webapp.core import database_connections

# Seconds to wait for the response to one statement of the queue. All of them process a few rows.
QUEUE_STATEMENT_SECONDS = 5.0
# Seconds to wait until another thread has finished with the connection that they share.
QUEUE_LOCK_SECONDS = 5.0


class _TimedLock:
    """A lock as a context manager that does not wait forever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=QUEUE_LOCK_SECONDS):
            raise psycopg.OperationalError("connection timeout: other threads still wait for the queue")

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
        # By thread: since when, by `time.monotonic`, taking tasks or reading the schedule has failed.
        self._failing_since: dict[int, float] = {}

    def _connect(self) -> database_connections.DeadlineConnection:
        return database_connections.connect(self.dsn, statement_seconds=QUEUE_STATEMENT_SECONDS, autocommit=True)

    _create_connection = _connect

    def _dequeue(self) -> bytes | None:
        row = (
            self._listen_conn()
            .execute(
                f"delete from {self.table_task} where id = ("  # noqa: S608
                f"select id from {self.table_task} where queue = %s order by priority desc, id limit 1 "
                "for update skip locked) returning data",
                (self.name,),
            )
            .fetchone()
        )
        return bytes(row[0]) if row is not None else None

    def dequeue(self) -> bytes | None:
        """Take a task from the queue; wait up to `read_timeout` seconds for one."""
        data: bytes | None = self._track_failures(super().dequeue)
        return data

    def read_schedule(self, ts: Any) -> list[bytes]:
        """Take the tasks that are due from the schedule."""
        tasks: list[bytes] = self._track_failures(lambda: super(QueueStorage, self).read_schedule(ts))
        return tasks

    def failing_seconds(self) -> float:
        """Return for how many seconds a thread of this process has been unable to reach the queue; 0 if all can."""
        since = list(self._failing_since.values())
        return time.monotonic() - min(since) if since else 0.0

    def _track_failures(self, action: Any) -> Any:
        thread = threading.get_ident()
        try:
            result = action()
        except Exception:
            self._failing_since.setdefault(thread, time.monotonic())
            raise
        self._failing_since.pop(thread, None)
        return result
