"""No task of the queue is lost while a synchronous standby is missing, and the queue continues with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from tests.support.chaos import replicated_database
from tests.support.chaos.replicated_database import ReplicatedDatabase
from tests.support.live_server import wait_until
from webapp.accounts import access_counts
from webapp.accounts.access_counts import Access
from webapp.core import database_connections, database_timeouts
from webapp.core.database_connections import CommitRefused, StatementTimeout
from webapp.core.extensions import db
from webapp.core.queue_storage import QueueStorage
from webapp.core.rate_limit import TableStorage

pytestmark = pytest.mark.slow

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def servers() -> Iterator[ReplicatedDatabase]:
    with replicated_database.start_replicated_database(1) as servers:
        yield servers


@pytest.fixture
def storage(servers: ReplicatedDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueStorage]:
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", 0)
    url = servers.database.settings.direct_libpq_url
    storage = QueueStorage("onecode", dsn=url, create_tables=False, blocking=False)
    yield storage
    replicated_database.resume(servers.standby)
    storage.close()


def take(storage: QueueStorage) -> bytes | None:
    """Take a task; None also while commits do not complete."""
    with suppress(CommitRefused):
        return storage.dequeue()
    return None


def test_a_task_that_is_taken_is_not_lost(servers: ReplicatedDatabase, storage: QueueStorage) -> None:
    for task in (b"first", b"second"):
        storage.enqueue(task)
    replicated_database.freeze(servers.standby)

    # Whether it has been taken is not known, so it runs.
    assert storage.dequeue() == b"first"
    # The others stay in the queue.
    with pytest.raises(CommitRefused):
        storage.dequeue()
    replicated_database.resume(servers.standby)

    wait_until(lambda: take(storage) == b"second")
    assert storage.queue_size() == 0


def test_a_task_that_is_due_is_not_lost(servers: ReplicatedDatabase, storage: QueueStorage) -> None:
    for number in (2, 1):
        storage.add_to_schedule(b"due %d" % number, NOW - timedelta(seconds=9 - number))
    storage.add_to_schedule(b"later", NOW + timedelta(hours=1))
    replicated_database.freeze(servers.standby)

    with pytest.raises(StatementTimeout):
        storage.read_schedule(NOW)
    with pytest.raises(CommitRefused):
        storage.add_to_schedule(b"refused", NOW)
    replicated_database.resume(servers.standby)

    wait_until(lambda: take(storage) == b"due 1")
    assert [storage.dequeue(), storage.dequeue()] == [b"due 2", None]
    assert storage.scheduled_items() == [b"later"]
    storage.flush_schedule()


def test_counters_do_not_wait(servers: ReplicatedDatabase) -> None:
    """They are written with autocommit, which is not refused: each would hold a thread."""
    with servers.database.connect() as connection:
        # The next statement that reads the description of the table writes it to the log, with hint bits.
        connection.execute("alter table rate_hit set (autovacuum_enabled = false)")
        connection.execute("checkpoint")
    replicated_database.freeze(servers.standby)
    try:
        with servers.database.context(), database_timeouts.statement_deadline(5):
            assert TableStorage().incr("key", 60) == 1
            access_counts.count_accesses([Access("api_key.refused", "203.0.113.7")])
            assert db.session.scalar(text("select sum(n) from access_count")) == 1
    finally:
        replicated_database.resume(servers.standby)
