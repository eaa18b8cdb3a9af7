"""While the database does not complete commits, they are refused at once, and that is one outage in the logs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from io import StringIO

import psycopg
import pytest
from flask import Flask
from psycopg.pq import TransactionStatus
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.frozen_server import frozen_process
from tests.support.logs import captured_logs
from tests.support.server_errors import build_server_error
from webapp.core import database_connections, database_health, database_timeouts, task_queue, write_check
from webapp.core.database_connections import CommitRefused, DeadlineConnection, StatementTimeout
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.redemptions.errors import RedemptionUnavailable
from webapp.redemptions.group_commit import GroupCommitter
from webapp.redemptions.rules import RedemptionRequest

CHECK_WRITES = write_check._CHECK_WRITES_SQL


@pytest.fixture
def stream(
    app: Flask,
    test_settings: Settings,
    commit_guard: database_connections._CommitGuard,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StringIO]:
    """Lets the database only read; returns what is logged."""
    database_health.mark_recovered()
    monkeypatch.setattr(database_health, "_recovered_at", -math.inf)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(write_check, "_CHECK_WRITES_SQL", "select 1 / 0")
    commit_guard.refuse_commits()
    with captured_logs(test_settings, "text") as stream:
        yield stream
    database_health.mark_recovered()


def logged_messages(stream: StringIO) -> list[str]:
    """Return the beginning of each line."""
    return [line.split(" ", 3)[3][:20] for line in stream.getvalue().splitlines()]


def read_and_commit() -> None:
    """Read on a connection that leaves the pool, and commit; report an error as an error handler does."""
    db.session.execute(text("select 1"))
    try:
        db.session.commit()
    except OperationalError as error:
        database_health.report_if_outage(error)
        raise
    finally:
        db.session.rollback()


@pytest.fixture
def last_connection(
    commit_guard: database_connections._CommitGuard, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DeadlineConnection]:
    """A connection while commits are refused and no other connection can be opened."""
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_SECONDS", 120)
    with closing(database_connections.connect(test_settings.libpq_url)) as connection:
        connection.url = psycopg.conninfo.make_conninfo(test_settings.libpq_url, dbname="nowhere")
        commit_guard.refuse_commits()
        yield connection


def test_without_another_connection_the_last_one_is_checked(last_connection: DeadlineConnection) -> None:
    """The check needs a transaction of its own; the next one is committed."""
    last_connection.execute("insert into huey_kv values ('q', 'refused', '')")
    with pytest.raises(CommitRefused, match="was rolled back"):
        last_connection.commit()

    last_connection.execute("insert into huey_kv values ('q', 'saved', '')")
    last_connection.commit()
    assert last_connection.execute("delete from huey_kv returning key").fetchall() == [("saved",)]
    last_connection.commit()


def test_a_connection_without_a_transaction_is_checked_as_it_is(
    last_connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_check, "_CHECK_WRITES_SQL", "select 1 / 0")
    with pytest.raises(CommitRefused):
        last_connection.check_commits()
    monkeypatch.setattr(write_check, "_CHECK_WRITES_SQL", CHECK_WRITES)

    last_connection.check_commits()

    assert (last_connection.autocommit, last_connection.statement_seconds) == (False, None)


def test_a_commit_after_long_statements_has_a_deadline_of_its_own(
    test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_timeouts, "COMMIT_SECONDS", 0.5)
    with closing(database_connections.connect(test_settings.libpq_url)) as connection:
        connection.execute("delete from huey_kv")
        connection.statement_seconds = 15
        with frozen_process(connection.info.backend_pid), pytest.raises(StatementTimeout, match=r"within 0\.5 s"):
            connection.commit()


@pytest.mark.parametrize("seconds_since_recovery", [0, math.inf])
def test_the_outage_lasts_although_reads_work(
    stream: StringIO, monkeypatch: pytest.MonkeyPatch, seconds_since_recovery: float
) -> None:
    monkeypatch.setattr(database_health, "_recovered_at", time.monotonic() - seconds_since_recovery)
    for _attempt in range(3):
        with pytest.raises(OperationalError):
            read_and_commit()
        assert database_health.is_database_unavailable()

    monkeypatch.setattr(write_check, "_CHECK_WRITES_SQL", CHECK_WRITES)
    read_and_commit()
    read_and_commit()

    assert not database_health.is_database_unavailable()
    assert logged_messages(stream) == ["database unavailable", "the database has rec"]


@pytest.mark.parametrize("is_frozen", [False, True])
def test_refused_redemptions_are_one_outage(
    stream: StringIO,
    commit_guard: database_connections._CommitGuard,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    is_frozen: bool,
) -> None:
    """The first redemption of an offer commits a second transaction, which freezes the offer."""
    commit_guard.is_refusing = False
    make_offer("SUMMER25")
    emails = [make_customer(f"c{number}@example.com").email for number in range(4)]
    committer = GroupCommitter()

    def redeem(email: str) -> object:
        (result,) = committer._redeem_group([RedemptionRequest(channel="form", code="SUMMER25", email=email)])
        return result

    if is_frozen:
        redeem(emails[0])
    commit_guard.refuse_commits()
    for email in emails[1:]:
        assert isinstance(redeem(email), RedemptionUnavailable)
    committer.close()

    assert database_health.is_database_unavailable()
    assert logged_messages(stream) == ["database unavailable"]


@pytest.mark.parametrize(
    ("error", "is_rolled_back"),
    [
        (CommitRefused("no commits"), True),
        (build_server_error(psycopg.errors.DiskFull), True),
        (build_server_error(psycopg.errors.DiskFull, severity="PANIC"), False),
        (StatementTimeout("no response"), False),
        (psycopg.OperationalError("server closed the connection unexpectedly"), False),
        (psycopg.errors.ProtocolViolation("server conn crashed?"), False),
    ],
)
def test_a_task_runs_unless_taking_it_was_rolled_back(
    app: Flask, monkeypatch: pytest.MonkeyPatch, error: psycopg.Error, is_rolled_back: bool
) -> None:
    """Otherwise it would be lost if the commit has taken effect nevertheless."""
    task_queue.enqueue("campaigns.prepare", 5)
    monkeypatch.setattr(huey.storage, "blocking", False)

    def fail_to_commit(connection: DeadlineConnection) -> None:
        if connection.info.transaction_status == TransactionStatus.INTRANS:
            raise error

    monkeypatch.setattr(DeadlineConnection, "commit", fail_to_commit)
    try:
        if is_rolled_back:
            with pytest.raises(type(error)):
                huey.storage.dequeue()
        else:
            assert huey.storage.dequeue() is not None
    finally:
        huey.storage.close()
        database_health.mark_recovered()


def test_a_task_that_was_taken_runs_although_other_connections_are_lost(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setitem(task_queue._functions, "campaigns.prepare", calls.append)
    monkeypatch.setattr(huey.storage, "blocking", False)
    task_queue.enqueue("campaigns.prepare", 5)
    task = huey.dequeue()
    shared = huey.storage.conn
    db.session.execute(text("select pg_terminate_backend(:pid, 5000)"), {"pid": shared.info.backend_pid})

    try:
        huey.execute(task)
    finally:
        huey.storage.close()

    assert calls == [5]
