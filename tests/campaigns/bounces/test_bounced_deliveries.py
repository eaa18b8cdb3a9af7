"""What a mail that came back does to the figures and answers of its mailing, whatever becomes of that meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from sqlalchemy import event, text

from tests.support.campaigns import (
    Launch,
    create_customers,
    delivery_counts,
    delivery_status,
    expire_leases,
)
from tests.support.smtp_relay import Relay
from webapp.campaigns import stats_queries
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces.reports import BounceReport
from webapp.campaigns.launch import cancellation, transitions
from webapp.campaigns.models import WINDOW_SIZE, Campaign
from webapp.campaigns.sending import batches, completion, sender
from webapp.campaigns.sending import windows as send_windows
from webapp.core.extensions import db

pytestmark = pytest.mark.usefixtures("no_retry_delay")


def bounce(campaign_id: int, customer_id: int) -> str:
    mark = campaign_tokens.build_message_id(campaign_id, customer_id, "example.com")
    return bounce_actions.process_bounce_report(BounceReport("bounce", "5.1.1", "no such user", (), (mark,)))


def all_sent(taken: batches.BatchClaim) -> None:
    """As if the relay had taken one window of a batch."""
    assert send_windows.open_send_window(taken) is not None
    taken.position = taken.sent = min(WINDOW_SIZE, len(taken.customer_ids))


def claimed() -> batches.BatchClaim:
    taken = batches.claim_batch("a worker")
    assert taken is not None
    return taken


def cursors() -> int:
    return int(db.session.execute(text("select count(*) from batch_cursor")).scalar_one())


@contextmanager
def beside(app: Flask, deed: Callable[[], object], when: Callable[[], bool]) -> Iterator[None]:
    """Begin a deed in another thread right before the first commit at which it is so; that commit goes on when the deed
    is done or waits for a lock."""
    waiting = text("select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")

    def run() -> None:
        with app.app_context():
            deed()
            db.session.remove()

    thread = threading.Thread(target=run)

    def start(session: object) -> None:
        if thread.ident is not None or not when():
            return
        thread.start()
        while thread.is_alive() and not db.session.execute(waiting).first():
            db.session.execute(text("select pg_stat_clear_snapshot()"))
            time.sleep(0.01)

    event.listen(db.session, "before_commit", start)
    try:
        yield
    finally:
        event.remove(db.session, "before_commit", start)
    assert thread.ident is not None
    thread.join()


def is_summed() -> bool:
    return db.session.execute(text("select 1 from campaign where sent_in_batches is not null")).first() is not None


def is_failed() -> bool:
    return db.session.execute(text("select 1 from mail_issue where state = 'failed'")).first() is not None


def test_a_mail_that_comes_back_while_the_mailing_is_called_done_is_counted_once(
    app: Flask, launch_campaign: Launch, relay: Relay
) -> None:
    first, _ = create_customers(2)
    campaign = launch_campaign()
    taken = claimed()
    all_sent(taken)
    batches.finish_batch(taken)
    campaign_id = campaign.id
    with beside(app, lambda: bounce(campaign_id, first), is_summed):
        completion.finish_campaigns()
    assert delivery_counts(campaign) == {"total": 2, "sent": 1, "failed": 1}
    assert db.session.execute(text("select sent_in_batches, sum(sent) from campaign, batch group by 1")).all() == [
        (1, 1)
    ]


@pytest.fixture
def cancelled(launch_campaign: Launch, relay: Relay) -> Campaign:
    """Cancelled when fifty of sixty had it; its worker has given the batch back."""
    create_customers(60)
    campaign = launch_campaign()
    taken = claimed()
    all_sent(taken)
    transitions.cancel_campaign(campaign.id, "tests")
    assert send_windows.open_send_window(taken) is None
    return campaign


def test_who_got_it_says_that_a_mail_of_a_cancelled_mailing_came_back(cancelled: Campaign) -> None:
    cancellation.clean_up_cancelled_campaigns()
    assert delivery_counts(cancelled) == {"total": 60, "sent": 50}
    assert [bounce(cancelled.id, n) for n in (1, 50, 51)] == ["suppressed"] * 3
    assert [delivery_status(cancelled, n).state for n in (1, 50, 51)] == ["failed", "failed", "cancelled"]
    assert delivery_status(cancelled, 1).text == "bounced: 5.1.1 no such user"
    assert delivery_counts(cancelled) == {"total": 60, "sent": 48, "failed": 2}
    assert bounce(cancelled.id, 1) == "known"
    assert delivery_counts(cancelled) == {"total": 60, "sent": 48, "failed": 2}


def test_a_mail_that_comes_back_while_a_cancelled_mailing_is_summed_is_counted_once(
    app: Flask, cancelled: Campaign
) -> None:
    campaign_id = cancelled.id
    with beside(app, lambda: bounce(campaign_id, 1), is_summed):
        cancellation.clean_up_cancelled_campaigns()
    assert delivery_counts(cancelled) == {"total": 60, "sent": 49, "failed": 1}


def test_a_cancelled_mailing_that_is_summed_while_a_mail_comes_back_counts_it_once(
    app: Flask, cancelled: Campaign
) -> None:
    with beside(app, cancellation.clean_up_cancelled_campaigns, is_failed):
        bounce(cancelled.id, 1)
    cancellation.clean_up_cancelled_campaigns()
    assert is_summed()
    assert delivery_counts(cancelled) == {"total": 60, "sent": 49, "failed": 1}


def test_a_mail_that_comes_back_while_the_mailing_is_paused_stays_counted_when_it_goes_on(
    launch_campaign: Launch, relay: Relay
) -> None:
    create_customers(60)
    campaign = launch_campaign()
    taken = claimed()
    all_sent(taken)
    transitions.pause_campaign(campaign.id, "tests")
    assert send_windows.open_send_window(taken) is None
    bounce(campaign.id, 1), bounce(campaign.id, 55)
    assert delivery_counts(campaign) == {"total": 60, "sent": 49, "failed": 1}
    transitions.resume_campaign(campaign.id, "tests")
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 60, "sent": 58, "failed": 1, "skipped": 1}
    assert delivery_status(campaign, 1).state == "failed"


def test_while_a_batch_is_being_sent_the_list_alone_tells(launch_campaign: Launch, relay: Relay) -> None:
    create_customers(60)
    campaign = launch_campaign()
    taken = claimed()
    all_sent(taken)
    assert send_windows.open_send_window(taken) is not None
    assert bounce(campaign.id, 1) == "suppressed"
    assert delivery_status(campaign, 1).state == "sent"
    assert stats_queries.get_campaign_stats(campaign.id).sent == 50


def test_a_mail_in_doubt_that_comes_back_is_in_doubt_no_more(launch_campaign: Launch, relay: Relay) -> None:
    create_customers(60)
    campaign = launch_campaign()
    assert send_windows.open_send_window(claimed()) is not None
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    completion.finalize_cancelled_batches("sweep")
    assert delivery_counts(campaign) == {"total": 60, "uncertain": 1}
    bounce(campaign.id, 1), bounce(campaign.id, 2)
    assert [delivery_status(campaign, n).state for n in (1, 2)] == ["failed", "cancelled"]
    assert delivery_counts(campaign) == {"total": 60, "failed": 1}


def test_nothing_is_kept_of_how_far_a_worker_was_in_a_batch_that_is_closed(
    launch_campaign: Launch, relay: Relay
) -> None:
    create_customers(1200)
    campaign = launch_campaign()
    given_back, lost, _ = claimed(), claimed(), claimed()
    for taken in (given_back, lost):
        assert send_windows.open_send_window(taken) is not None
    transitions.cancel_campaign(campaign.id, "tests")
    batches.release_batch(given_back)
    expire_leases()
    completion.finalize_cancelled_batches("sweep")
    assert cursors() == 1
    cancellation.clean_up_cancelled_campaigns()
    assert cursors() == 0
    # Who comes back finds the batch closed, and leaves nothing behind.
    assert send_windows.open_send_window(lost) is None
    assert cursors() == 0
