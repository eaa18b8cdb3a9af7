"""Storing the position in a batch, also after losing connection or table."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import NotSupportedError

from tests.support.rejected_writes import rejected_writes
from tests.support.server_errors import build_unlogged_table_error
from webapp.campaigns import timing
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import batches
from webapp.campaigns.sending import windows as send_windows
from webapp.campaigns.sending.batches import BatchClaim
from webapp.campaigns.sending.progress import SendProgress
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer


@pytest.fixture
def claim(app: Flask, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]) -> BatchClaim:
    """A batch claimed by this process, with its first window open."""
    for n in range(5):
        make_customer(f"c{n}@example.com")
    draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    preparation.prepare_campaign(launch_actions.launch_announcement(1, "tests").campaign.id)
    batch = batches.claim_batch("us")
    assert batch is not None
    assert send_windows.open_send_window(batch) is not None
    return batch


def stored_cursor() -> int | None:
    db.session.rollback()
    return db.session.execute(text("select cursor from batch_cursor")).scalar()


def lose_connections() -> None:
    """Let the server terminate the other connections that moved a cursor."""
    db.session.execute(
        text(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid() and query like '%move%'"
        )
    )
    db.session.rollback()


def test_the_cursor_moves(claim: BatchClaim) -> None:
    with SendProgress() as progress:
        progress.start_move(claim, 2)
        assert progress.finish_move()
    assert stored_cursor() == 2


def test_finishing_without_a_move_changes_nothing(claim: BatchClaim) -> None:
    with SendProgress() as progress:
        assert progress.finish_move()
    assert stored_cursor() == 0


@pytest.mark.parametrize("when", ["before the move", "after"])
def test_a_lost_connection_is_reopened(claim: BatchClaim, caplog: pytest.LogCaptureFixture, when: str) -> None:
    with SendProgress() as progress:
        progress.start_move(claim, 1)
        assert progress.finish_move()
        if when == "after":
            progress.start_move(claim, 2)
            lose_connections()
        else:
            lose_connections()
            progress.start_move(claim, 2)
        assert progress.finish_move()
        progress.start_move(claim, 3)
        assert progress.finish_move()
        assert progress._connection is not None
        driver_connection = cast("psycopg.Connection[object]", progress._connection.connection.dbapi_connection)
    assert stored_cursor() == 3
    assert driver_connection.closed
    # A lost connection is not rolled back, which would fail with a traceback.
    assert [record.getMessage() for record in caplog.records if record.name.startswith("sqlalchemy.pool")] == []


def test_the_owner_restores_its_row_in_an_emptied_table(claim: BatchClaim) -> None:
    db.session.execute(text("truncate batch_cursor"))
    db.session.commit()
    with SendProgress() as progress:
        progress.start_move(claim, 2)
        assert progress.finish_move()
    assert stored_cursor() == 2


def test_a_former_owner_moves_nothing_in_an_emptied_table(claim: BatchClaim) -> None:
    db.session.execute(text("update batch set epoch = epoch + 1"))
    db.session.execute(text("truncate batch_cursor"))
    db.session.commit()
    with SendProgress() as progress:
        progress.start_move(claim, 2)
        assert not progress.finish_move()
    assert stored_cursor() is None


def test_moves_commit_asynchronously(claim: BatchClaim) -> None:
    with SendProgress() as progress:
        progress.start_move(claim, 1)
        progress.finish_move()
        assert progress._connection is not None
        assert progress._connection.exec_driver_sql("show synchronous_commit").scalar() == "off"


def test_a_full_disk_is_shown_while_the_cursor_can_not_move(claim: BatchClaim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEASE_DURATION", 0)
    with SendProgress() as progress:
        with rejected_writes("batch_cursor", "disk_full"):
            progress.start_move(claim, 2)
            with pytest.raises(psycopg.OperationalError, match="the write was rejected"):
                progress.finish_move()
        assert "disk" in (db.session.execute(text("select trouble from campaign")).scalar() or "")
        assert progress.finish_move()
    assert stored_cursor() == 2


def test_a_write_is_repeated_when_the_server_was_read_only(claim: BatchClaim, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    @batches.retry_while_database_unavailable
    def write() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            with rejected_writes("batch", "read_only_sql_transaction"):
                db.session.execute(text("update batch set status = status"))
        if len(attempts) == 2:
            raise NotSupportedError("select", {}, build_unlogged_table_error())

    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    write()

    assert len(attempts) == 3
