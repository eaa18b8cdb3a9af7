"""Every wait for the database ends, also when the server is frozen and its kernel still acknowledges packets."""

from __future__ import annotations

import ast
import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from flask import Flask, current_app
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from local import commands
from tests.support.frozen_server import Relay, frozen_connection, frozen_process, relay_to
from tests.support.live_server import wait_until
from webapp.core import (
    csv_export,
    database_connections,
    database_health,
    database_timeouts,
    database_urls,
    migrations,
    queue_storage,
    task_queue,
    write_check,
)
from webapp.core.database_connections import CommitRefused, DeadlineConnection, StatementTimeout
from webapp.core.extensions import db, huey
from webapp.core.queue_storage import QueueStorage
from webapp.core.settings import ROOT, Settings
from webapp.customers.imports import claims

# Seconds for statements that cannot succeed. All others may take long on a busy machine.
DEADLINE = 0.3
LONG = 120.0
# Seconds that a statement usually may take, and that one takes which may take longer.
USUAL_DEADLINE, EXCEEDED = 1.0, 1.5


@pytest.fixture
def connection(test_settings: Settings) -> Iterator[DeadlineConnection]:
    with database_connections.connect(test_settings.libpq_url, statement_seconds=LONG) as connection:
        yield connection


def execute(connection: DeadlineConnection) -> None:
    connection.execute("select 1")


def fetch_from_server(connection: DeadlineConnection) -> None:
    with connection.cursor("numbers") as cursor:
        cursor.execute("select * from generate_series(1, 10)").fetchall()


def copy_out(connection: DeadlineConnection) -> None:
    with connection.cursor().copy("copy (select 1) to stdout") as copy:
        list(copy)


def copy_in(connection: DeadlineConnection) -> None:
    with connection.cursor().copy("copy huey_kv from stdin") as copy:
        copy.write(b"")


def use_pipeline(connection: DeadlineConnection) -> None:
    with connection.pipeline():
        connection.execute("select 1")


@pytest.mark.parametrize("use", [execute, fetch_from_server, copy_out, copy_in, use_pipeline])
def test_a_statement_on_a_frozen_server_ends(
    connection: DeadlineConnection, use: Callable[[DeadlineConnection], None]
) -> None:
    with frozen_connection(connection), pytest.raises(psycopg.OperationalError, match="no response"):
        use(connection)

    assert connection.closed


def test_a_copy_on_a_frozen_server_ends(connection: DeadlineConnection) -> None:
    def write_until_buffers_are_full() -> None:
        with connection.cursor().copy("copy huey_kv from stdin") as copy, frozen_connection(connection):
            for _block in range(1000):
                copy.write(b"q\tk\t\\\\x00\n" * 10_000)

    with pytest.raises(StatementTimeout):
        write_until_buffers_are_full()

    assert connection.closed


def test_a_commit_on_a_frozen_server_ends(connection: DeadlineConnection) -> None:
    connection.execute("delete from huey_kv")
    with frozen_connection(connection), pytest.raises(StatementTimeout):
        connection.commit()

    assert connection.closed


def test_an_overdue_statement_is_cancelled(connection: DeadlineConnection, test_settings: Settings) -> None:
    pid = connection.info.backend_pid
    connection.statement_seconds = DEADLINE
    with pytest.raises(StatementTimeout):
        connection.execute("select pg_sleep(1000)")

    with psycopg.connect(test_settings.libpq_url, autocommit=True) as other:
        # The server process ends; a sleeping one would not notice the closed connection.
        wait_until(lambda: not other.execute("select 1 from pg_stat_activity where pid = %s", [pid]).fetchone())


def test_a_commit_is_not_cancelled(connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled commit would make rows visible that a synchronous standby does not have."""
    monkeypatch.setattr(DeadlineConnection, "cancel_safe", lambda self, **options: pytest.fail("cancelled"))
    connection.execute("delete from huey_kv")
    with frozen_connection(connection), pytest.raises(StatementTimeout):
        connection.commit()


def test_after_a_hanging_commit_no_other_is_sent_until_writes_succeed(
    connection: DeadlineConnection, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would leave a server process that waits."""
    connection.execute("delete from huey_kv")
    with frozen_connection(connection), pytest.raises(StatementTimeout):
        connection.commit()
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_SECONDS", LONG)
    with database_connections.connect(test_settings.libpq_url) as other, monkeypatch.context() as read_only:
        other.execute("insert into huey_kv values ('q', 'k', '')")
        read_only.setattr(write_check, "_CHECK_WRITES_SQL", "select 1 / 0")
        with pytest.raises(CommitRefused):
            other.commit()
        read_only.undo()
        other.commit()
        # The refused transaction was not committed by the next one.
        assert other.execute("delete from huey_kv").rowcount == 0


def test_while_commits_are_refused_a_connection_without_a_transaction_can_be_used(
    test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy and Huey call `commit` also with autocommit, when each statement has been committed already."""
    monkeypatch.setattr(write_check, "_CHECK_WRITES_SQL", "select 1 / 0")
    database_connections._commit_guard.refuse_commits()
    with database_connections.connect(test_settings.libpq_url, autocommit=True) as connection:
        connection.execute("delete from huey_kv")
        connection.commit()
        connection.execute("begin; delete from huey_kv")
        with pytest.raises(CommitRefused):
            connection.commit()


@pytest.mark.parametrize("folder", ["webapp", "local", "migrations"])
def test_all_parts_connect_and_commit_with_a_deadline(folder: str) -> None:
    """`Connection.transaction` would commit without calling `commit`, so that the commit could be cancelled."""
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / folder).rglob("*.py")}

    assert not [file for file, source in sources.items() if avoids_deadlines(source)]


@pytest.mark.parametrize(
    "source",
    [
        "psycopg.connect(url)",
        "connect = psycopg.connect",
        "from psycopg import (\n  connect,\n)",
        "from psycopg import Connection as PsycopgConnection",
        "psycopg.Connection.connect(url)",
        "with connection.transaction(force_rollback=True): pass",
    ],
)
def test_a_connection_or_commit_without_a_deadline_is_found(source: str) -> None:
    assert avoids_deadlines(source)


def avoids_deadlines(source: str) -> bool:
    """Return whether a module can connect without `database_connections`, or commit without calling `commit`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "psycopg":
            if {alias.name for alias in node.names} & {"connect", "Connection", "AsyncConnection"}:
                return True
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr == "transaction" or (
                node.attr == "connect" and owner in ("psycopg", "psycopg.Connection", "psycopg.AsyncConnection")
            ):
                return True
    return False


def test_a_deadline_applies_in_its_block_only(test_settings: Settings) -> None:
    connection = database_connections.connect(test_settings.libpq_url, autocommit=True)
    with database_timeouts.statement_deadline(DEADLINE), pytest.raises(StatementTimeout):
        connection.execute("select pg_sleep(1000)")
    with database_connections.connect(test_settings.libpq_url, autocommit=True) as connection:
        connection.execute("select pg_sleep(%s)", [DEADLINE * 2])


@pytest.fixture
def relay(test_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setattr(database_connections, "SERVER_CHECK_INTERVAL_SECONDS", DEADLINE / 3)
    monkeypatch.setattr(database_connections, "SERVER_CHECK_SECONDS", LONG)
    with relay_to(test_settings.libpq_url) as relay:
        yield relay


def connect_for_long_statements(relay: Relay) -> DeadlineConnection:
    seconds = database_timeouts.LONG_STATEMENT_SECONDS
    return database_connections.connect(relay.url, statement_seconds=seconds, autocommit=True)


def test_a_long_statement_on_a_frozen_server_ends(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline is ten minutes, but the server is checked while it runs."""
    monkeypatch.setattr(database_connections, "SERVER_CHECK_SECONDS", DEADLINE)
    with closing(connect_for_long_statements(relay)) as connection:
        relay.freeze()
        with pytest.raises(StatementTimeout, match="no longer runs"):
            connection.execute("select 1")
        assert connection.closed


def test_a_long_statement_ends_when_another_server_has_taken_over(relay: Relay, test_settings: Settings) -> None:
    """The client may not notice, because the old server cannot close its connections."""
    with closing(connect_for_long_statements(relay)) as connection:
        relay.freeze(accepts_new=True)
        with psycopg.connect(test_settings.libpq_url) as other:
            other.execute("select pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with pytest.raises(StatementTimeout, match="no longer runs"):
            connection.execute("select 1")


def run_until_checked(
    connection: DeadlineConnection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """Run a statement that ends once the server has been checked three times; return the results of the checks."""
    checks: list[bool] = []
    is_session_alive = DeadlineConnection._is_session_alive
    with psycopg.connect(settings.libpq_url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(1)")

        def record_check(connection: DeadlineConnection) -> bool:
            checks.append(is_session_alive(connection))
            if len(checks) == 3:
                other.execute("select pg_advisory_unlock(1)")
            return checks[-1]

        monkeypatch.setattr(DeadlineConnection, "_is_session_alive", record_check)
        connection.execute("select pg_advisory_lock(1)")
    return checks


def test_a_long_statement_continues_while_the_server_runs_it(
    relay: Relay, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connect_for_long_statements(relay)) as connection:
        assert set(run_until_checked(connection, test_settings, monkeypatch)) == {True}


def test_a_server_that_rejects_connections_still_runs_the_statement(
    relay: Relay, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connect_for_long_statements(relay)) as connection:
        connection.url = psycopg.conninfo.make_conninfo(relay.url, dbname="nowhere")
        assert set(run_until_checked(connection, test_settings, monkeypatch)) == {True}


def test_rows_that_have_arrived_are_read_without_a_wait(
    test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline of each row would double the cost of an export."""
    waits = 0
    watch = DeadlineConnection._watch

    def count_waits(*arguments: Any) -> Any:
        nonlocal waits
        waits += 1
        return watch(*arguments)

    monkeypatch.setattr(DeadlineConnection, "_watch", count_waits)
    seconds = database_timeouts.LONG_STATEMENT_SECONDS
    with (
        closing(database_connections.connect(test_settings.libpq_url, statement_seconds=seconds)) as connection,
        connection.cursor().copy("copy (select generate_series(1, 10000)) to stdout") as copy,
    ):
        assert sum(1 for _row in copy) == 10_000

    assert 0 < waits < 1000


@pytest.mark.parametrize("is_timeout", [True, False])
def test_an_error_of_a_connection_names_its_setting(test_settings: Settings, is_timeout: bool) -> None:
    url, setting = test_settings.libpq_url, "DATABASE_DIRECT_URL"
    connection = database_connections.connect(url, setting=setting, statement_seconds=DEADLINE * 10, autocommit=True)
    with pytest.raises(psycopg.OperationalError) as raised:
        connection.execute("select pg_sleep(1000)" if is_timeout else "select pg_terminate_backend(pg_backend_pid())")

    assert setting in database_health.explain_connection_error(raised.value)


def use_export() -> None:
    list(csv_export.stream_csv("select pg_sleep(%(seconds)s)", {"seconds": EXCEEDED}))


def use_import_connection() -> None:
    with closing(claims.open_connection()) as connection:
        connection.execute("select pg_sleep(%s)", [EXCEEDED])


def use_migration_lock() -> None:
    """Wait for another process that migrates."""
    settings: Settings = current_app.config["SETTINGS"]
    with psycopg.connect(settings.libpq_url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(hashtext('onecode.migrate'))")
        releasing = threading.Thread(
            target=other.execute, args=("select pg_sleep(%s), pg_advisory_unlock_all()", [EXCEEDED])
        )
        releasing.start()
        commands._upgrade_schema()
        releasing.join()


@pytest.mark.parametrize("use", [use_export, use_import_connection, use_migration_lock])
def test_what_may_take_long_has_another_deadline(app: Flask, use: Callable[[], None]) -> None:
    migrations.init_app(app)
    # A new connection is not tested.
    db.session.remove()
    db.engine.dispose()
    with database_timeouts.statement_deadline(USUAL_DEADLINE):
        use()
        # The deadline of the block applies to what follows.
        with pytest.raises(OperationalError, match="no response"):
            db.session.execute(text("select pg_sleep(1000)"))


def test_a_notification_timeout_is_no_error(connection: DeadlineConnection) -> None:
    assert list(connection.notifies(timeout=DEADLINE / 3)) == []
    execute(connection)


def test_connecting_to_a_server_that_does_not_respond_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            database_connections.connect(f"postgresql://nobody@127.0.0.1:{port}/x", connect_timeout=2)


def test_the_pool_replaces_a_frozen_connection(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool tests a connection before it is used, with a deadline of its own."""
    monkeypatch.setattr(database_timeouts, "PING_SECONDS", DEADLINE)
    pids: list[int] = []

    def read_pid() -> None:
        with app.app_context(), database_timeouts.statement_deadline(database_timeouts.LONG_STATEMENT_SECONDS):
            pids.append(db.session.scalar(text("select pg_backend_pid()")) or 0)

    db.session.remove()
    db.engine.dispose()
    read_pid()
    with frozen_process(pids[0]):
        thread = threading.Thread(target=read_pid)
        thread.start()
        # Much longer than the test of the connection takes.
        thread.join(LONG)
        is_done = not thread.is_alive()
    thread.join()
    assert is_done
    assert pids[0] != pids[1]


def test_a_statement_of_the_pool_on_a_frozen_server_ends(app: Flask) -> None:
    pid = db.session.scalar(text("select pg_backend_pid()")) or 0
    with (
        frozen_process(pid),
        database_timeouts.statement_deadline(DEADLINE),
        pytest.raises(OperationalError, match="no response"),
    ):
        db.session.execute(text("select 1"))


@pytest.mark.parametrize("name", ["connect_timeout", "keepalives", "keepalives_idle", "tcp_user_timeout"])
def test_connections_have_timeouts_unless_the_url_sets_them(test_settings: Settings, name: str) -> None:
    with database_connections.connect(test_settings.libpq_url) as connection:
        assert _parameters(connection)[name] == database_urls.DEFAULT_PARAMETERS[name]
    given = psycopg.conninfo.make_conninfo(test_settings.libpq_url, **{name: 7})
    with database_connections.connect(given) as connection:
        assert _parameters(connection)[name] == "7"


def _parameters(connection: psycopg.Connection) -> dict[str, str]:
    return {option.keyword.decode(): (option.val or b"").decode() for option in connection.pgconn.info}


@pytest.fixture
def queue(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueStorage]:
    """The storage of the queue, which does not wait for tasks."""
    huey.storage.close()
    monkeypatch.setattr(queue_storage, "QUEUE_STATEMENT_SECONDS", LONG)
    monkeypatch.setattr(huey.storage, "blocking", False)
    yield huey.storage
    huey.storage.close()


def test_a_worker_leaves_a_frozen_connection_of_the_queue(queue: QueueStorage) -> None:
    queue.dequeue()
    with frozen_connection(queue._listen_conn()):
        with pytest.raises(StatementTimeout):
            queue.dequeue()
        assert queue.failing_seconds() > 0
        assert queue.dequeue() is None
    assert queue.failing_seconds() == 0


def test_a_worker_reaches_the_queue_while_one_of_its_threads_does(queue: QueueStorage) -> None:
    queue.dequeue()
    with frozen_connection(queue._listen_conn()), pytest.raises(StatementTimeout):
        queue.dequeue()
    with ThreadPoolExecutor(1) as other:
        other.submit(queue.dequeue).result()
        assert queue.failing_seconds() == 0
        queue.queue_size()
        with frozen_connection(queue.conn), pytest.raises(StatementTimeout):
            queue.read_schedule(datetime.now(UTC))
        # Taking tasks does not make up for the schedule.
        other.submit(queue.dequeue).result()
        assert queue.failing_seconds() > 0
        queue.read_schedule(datetime.now(UTC))
    assert queue.failing_seconds() == 0


def test_enqueueing_on_a_frozen_server_is_tried_once(
    queue: QueueStorage, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second attempt would hold the request for the timeout of a new connection to each host, too."""
    monkeypatch.setattr(queue, "dsn", relay.url)
    assert task_queue.enqueue("campaigns.prepare", 5)
    before = relay.count_connections()
    relay.freeze()
    queue.conn.statement_seconds = DEADLINE
    try:
        assert not task_queue.enqueue("campaigns.prepare", 6)
    finally:
        database_health.mark_recovered()

    # Only the request to cancel the statement.
    assert relay.count_connections() == before + 1


def test_enqueueing_over_a_frozen_connection_ends(queue: QueueStorage) -> None:
    queue.queue_size()
    with frozen_connection(queue.conn):
        with pytest.raises(StatementTimeout):
            queue.queue_size()
        assert queue.queue_size() == 0


def test_threads_do_not_wait_for_the_queue_without_a_limit(
    queue: QueueStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_storage, "QUEUE_LOCK_SECONDS", DEADLINE)
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)
    is_locked, is_done = threading.Event(), threading.Event()

    def hold_lock() -> None:
        with queue.lock:
            is_locked.set()
            is_done.wait()

    holder = threading.Thread(target=hold_lock)
    holder.start()
    is_locked.wait()
    try:
        with pytest.raises(queue_storage.QueueBusy) as raised:
            queue.queue_size()
    finally:
        is_done.set()
        holder.join()
    # The database may well respond: the thread that waits for it finds an outage.
    assert not database_health.report_if_outage(raised.value)
    assert not database_health.is_database_unavailable()
