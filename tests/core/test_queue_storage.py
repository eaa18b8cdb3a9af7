"""The storage of the queue: order, schedule, and other queues in the same tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from webapp.core import queue_storage, task_queue
from webapp.core.extensions import db, huey
from webapp.core.queue_storage import QueueStorage

NOW = datetime.now(UTC)


@pytest.fixture
def queue(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueStorage]:
    """The storage of the queue, which does not wait for tasks."""
    huey.storage.close()
    monkeypatch.setattr(huey.storage, "blocking", False)
    yield huey.storage
    huey.storage.close()


@pytest.fixture
def other_queue(queue: QueueStorage) -> Iterator[QueueStorage]:
    """Another queue in the same tables."""
    other = QueueStorage("other", dsn=queue.dsn, create_tables=False, blocking=False)
    yield other
    other.close()


def take_all(queue: QueueStorage) -> list[bytes]:
    return list(iter(queue.dequeue, None))


def test_tasks_are_taken_once_in_the_order_of_their_priority_and_their_age(
    queue: QueueStorage, other_queue: QueueStorage
) -> None:
    other_queue.enqueue(b"of the other queue")
    for task, priority in ((b"first", 0), (b"urgent", 5), (b"second", 0)):
        queue.enqueue(task, priority)

    assert take_all(queue) == [b"urgent", b"first", b"second"]
    assert take_all(other_queue) == [b"of the other queue"]


def test_a_task_that_another_worker_is_taking_is_skipped(queue: QueueStorage) -> None:
    for task in (b"first", b"second"):
        queue.enqueue(task)
    with psycopg.connect(queue.dsn) as worker:
        worker.execute("select from huey_task order by id limit 1 for update")
        # Without SKIP LOCKED, taking a task would wait, and this makes it fail instead.
        queue._listen_conn().execute("set lock_timeout = '100ms'")

        assert take_all(queue) == [b"second"]


def test_tasks_that_are_due_are_enqueued_in_the_order_of_their_times(
    queue: QueueStorage, other_queue: QueueStorage
) -> None:
    other_queue.add_to_schedule(b"of the other queue", NOW)
    for task, minutes in ((b"now", 0), (b"before", -1), (b"later", 1)):
        queue.add_to_schedule(task, NOW + timedelta(minutes=minutes))

    assert queue.read_schedule(NOW) == []
    assert take_all(queue) == [b"before", b"now"]
    assert queue.scheduled_items() == [b"later"]
    assert other_queue.scheduled_items() == [b"of the other queue"]


def test_a_worker_that_waits_is_woken_for_a_task_that_is_due(queue: QueueStorage) -> None:
    queue.add_to_schedule(b"due", NOW)
    with psycopg.connect(queue.dsn, autocommit=True) as worker:
        worker.execute(f'listen "{queue.channel}"')
        queue.read_schedule(NOW)

        found = worker.notifies(timeout=60, stop_after=1)
        assert [notification.channel for notification in found] == [queue.channel]


def test_a_failed_statement_leaves_the_connection_usable(queue: QueueStorage) -> None:
    db.session.execute(text("alter table huey_schedule rename to later"))
    db.session.commit()
    try:
        with pytest.raises(psycopg.errors.UndefinedTable):
            queue.read_schedule(NOW)
        assert queue.failing_seconds() > 0
    finally:
        db.session.execute(text("alter table later rename to huey_schedule"))
        db.session.commit()

    queue.enqueue(b"task")
    queue.read_schedule(NOW)
    assert take_all(queue) == [b"task"]
    assert queue.failing_seconds() == 0


def reject_writes(*connections: psycopg.Connection) -> None:
    """Let the server reject the writes of sessions, as a standby does."""
    for connection in connections:
        connection.execute("set default_transaction_read_only = on")


def test_connections_whose_server_rejects_writes_are_replaced(queue: QueueStorage) -> None:
    reject_writes(queue.conn, queue._listen_conn())
    for action in (queue.dequeue, lambda: queue.enqueue(b"lost")):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            action()

    queue.enqueue(b"task")
    assert take_all(queue) == [b"task"]
    assert queue.failing_seconds() == 0


def test_a_task_is_enqueued_although_the_connection_leads_to_a_standby(queue: QueueStorage) -> None:
    reject_writes(queue.conn)

    assert task_queue.enqueue("campaigns.prepare", 5)
    assert queue.queue_size() == 1


def test_the_longest_failure_counts(queue: QueueStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(queue_storage, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def fail() -> None:
        raise psycopg.OperationalError

    for action in ("dequeue", "read_schedule", "dequeue"):
        with pytest.raises(psycopg.OperationalError):
            queue._track_failures(action, fail)

    assert queue.failing_seconds() == 10
