"""Keeping the place in a batch, also when the connection or the table is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import text

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
def taken(app: Flask, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]) -> BatchClaim:
    """A batch that is ours, its first window open."""
    for n in range(5):
        make_customer(f"c{n}@example.com")
    draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    preparation.prepare_campaign(launch_actions.launch_announcement(1, "tests").campaign.id)
    found = batches.claim_batch("us")
    assert found is not None
    assert send_windows.open_send_window(found) is not None
    return found


def cursor() -> int | None:
    db.session.rollback()
    return db.session.execute(text("select cursor from batch_cursor")).scalar()


def lose_connections() -> None:
    """Whatever other connections this process has, the server ends them."""
    db.session.execute(
        text(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid() and query like '%move%'"
        )
    )
    db.session.rollback()


def test_the_cursor_moves(taken: BatchClaim) -> None:
    with SendProgress() as place:
        place.start_move(taken, 2)
        assert place.finish_move()
    assert cursor() == 2


def test_nothing_begun_is_done(taken: BatchClaim) -> None:
    with SendProgress() as place:
        assert place.finish_move()
    assert cursor() == 0


@pytest.mark.parametrize("when", ["before it is begun", "after"])
def test_a_lost_connection_is_made_anew(taken: BatchClaim, when: str) -> None:
    with SendProgress() as place:
        place.start_move(taken, 1)
        assert place.finish_move()
        if when == "after":
            place.start_move(taken, 2)
            lose_connections()
        else:
            lose_connections()
            place.start_move(taken, 2)
        assert place.finish_move()
        place.start_move(taken, 3)
        assert place.finish_move()
    assert cursor() == 3


def test_a_table_that_a_crash_has_emptied_is_written_anew_by_whoever_owns_the_batch(taken: BatchClaim) -> None:
    db.session.execute(text("truncate batch_cursor"))
    db.session.commit()
    with SendProgress() as place:
        place.start_move(taken, 2)
        assert place.finish_move()
    assert cursor() == 2


def test_a_former_owner_moves_nothing_in_an_emptied_table(taken: BatchClaim) -> None:
    db.session.execute(text("update batch set epoch = epoch + 1"))
    db.session.execute(text("truncate batch_cursor"))
    db.session.commit()
    with SendProgress() as place:
        place.start_move(taken, 2)
        assert not place.finish_move()
    assert cursor() is None


def test_it_waits_for_no_disk(taken: BatchClaim) -> None:
    with SendProgress() as place:
        place.start_move(taken, 1)
        place.finish_move()
        assert place._connection is not None
        assert place._connection.exec_driver_sql("show synchronous_commit").scalar() == "off"
