"""Effects of a bounce on the figures and delivery states of its campaign."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from sqlalchemy import event, select, text

from tests.support.campaigns import (
    LaunchCampaign,
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
from webapp.customers.models import Suppression

pytestmark = pytest.mark.usefixtures("no_retry_delay")


def report_bounce(campaign_id: int, customer_id: int) -> str:
    message_id = campaign_tokens.build_message_id(campaign_id, customer_id, "example.com")
    return bounce_actions.process_bounce_report(BounceReport("bounce", "5.1.1", "no such user", (), (message_id,)))


def send_one_window(claim: batches.BatchClaim) -> None:
    """Record one window of a batch as sent."""
    assert send_windows.open_send_window(claim) is not None
    claim.position = claim.sent = min(WINDOW_SIZE, len(claim.customer_ids))


def claim_next_batch() -> batches.BatchClaim:
    claim = batches.claim_batch("a worker")
    assert claim is not None
    return claim


def count_cursors() -> int:
    return int(db.session.execute(text("select count(*) from batch_cursor")).scalar_one())


@contextmanager
def run_concurrently(app: Flask, action: Callable[[], object], when: Callable[[], bool]) -> Iterator[None]:
    """Run an action in another thread at the first commit where a condition holds.

    That commit continues when the action has finished or waits for a lock.
    """
    lock_waits = text("select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")

    def run() -> None:
        with app.app_context():
            action()
            db.session.remove()

    thread = threading.Thread(target=run)

    def start(session: object) -> None:
        if thread.ident is not None or not when():
            return
        thread.start()
        while thread.is_alive() and not db.session.execute(lock_waits).first():
            db.session.execute(text("select pg_stat_clear_snapshot()"))
            time.sleep(0.01)

    event.listen(db.session, "before_commit", start)
    try:
        yield
    finally:
        event.remove(db.session, "before_commit", start)
    assert thread.ident is not None
    thread.join()


def totals_are_stored() -> bool:
    return db.session.execute(text("select 1 from campaign where sent_in_batches is not null")).first() is not None


def a_delivery_has_failed() -> bool:
    return db.session.execute(text("select 1 from mail_issue where state = 'failed'")).first() is not None


def test_a_bounce_while_the_campaign_is_finished_is_counted_once(
    app: Flask, launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    first, _ = create_customers(2)
    campaign = launch_campaign()
    claim = claim_next_batch()
    send_one_window(claim)
    batches.finish_batch(claim)
    campaign_id = campaign.id
    with run_concurrently(app, lambda: report_bounce(campaign_id, first), totals_are_stored):
        completion.finish_campaigns()
    assert delivery_counts(campaign) == {"total": 2, "sent": 1, "failed": 1}
    assert db.session.execute(text("select sent_in_batches, sum(sent) from campaign, batch group by 1")).all() == [
        (1, 1)
    ]


@pytest.fixture
def cancelled(launch_campaign: LaunchCampaign, relay: Relay) -> Campaign:
    """A campaign cancelled after 50 of 60 emails; its worker has released the batch."""
    create_customers(60)
    campaign = launch_campaign()
    claim = claim_next_batch()
    send_one_window(claim)
    transitions.cancel_campaign(campaign.id, "tests")
    assert send_windows.open_send_window(claim) is None
    return campaign


def test_a_bounce_of_a_cancelled_campaign_marks_the_delivery_as_failed(cancelled: Campaign) -> None:
    cancellation.clean_up_cancelled_campaigns()
    assert delivery_counts(cancelled) == {"total": 60, "sent": 50}
    assert [report_bounce(cancelled.id, n) for n in (1, 50, 51)] == ["suppressed"] * 3
    assert [delivery_status(cancelled, n).state for n in (1, 50, 51)] == ["failed", "failed", "cancelled"]
    assert delivery_status(cancelled, 1).text == "bounced: 5.1.1 no such user"
    assert delivery_counts(cancelled) == {"total": 60, "sent": 48, "failed": 2}
    assert report_bounce(cancelled.id, 1) == "known"
    assert delivery_counts(cancelled) == {"total": 60, "sent": 48, "failed": 2}


def test_a_bounce_during_the_cleanup_of_a_cancelled_campaign_is_counted_once(app: Flask, cancelled: Campaign) -> None:
    campaign_id = cancelled.id
    with run_concurrently(app, lambda: report_bounce(campaign_id, 1), totals_are_stored):
        cancellation.clean_up_cancelled_campaigns()
    assert delivery_counts(cancelled) == {"total": 60, "sent": 49, "failed": 1}


def test_a_cleanup_of_a_cancelled_campaign_during_a_bounce_counts_it_once(app: Flask, cancelled: Campaign) -> None:
    with run_concurrently(app, cancellation.clean_up_cancelled_campaigns, a_delivery_has_failed):
        report_bounce(cancelled.id, 1)
    cancellation.clean_up_cancelled_campaigns()
    assert totals_are_stored()
    assert delivery_counts(cancelled) == {"total": 60, "sent": 49, "failed": 1}


def test_a_bounce_during_a_pause_stays_counted_after_resuming(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(60)
    campaign = launch_campaign()
    claim = claim_next_batch()
    send_one_window(claim)
    transitions.pause_campaign(campaign.id, "tests")
    assert send_windows.open_send_window(claim) is None
    report_bounce(campaign.id, 1), report_bounce(campaign.id, 55)
    assert delivery_counts(campaign) == {"total": 60, "sent": 49, "failed": 1}
    transitions.resume_campaign(campaign.id, "tests")
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 60, "sent": 58, "failed": 1, "skipped": 1}
    assert delivery_status(campaign, 1).state == "failed"


def test_a_bounce_during_sending_only_suppresses_the_address(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(60)
    campaign = launch_campaign()
    claim = claim_next_batch()
    send_one_window(claim)
    assert send_windows.open_send_window(claim) is not None
    assert report_bounce(campaign.id, 1) == "suppressed"
    assert delivery_status(campaign, 1).state == "sent"
    assert stats_queries.get_campaign_stats(campaign.id).sent == 50


def test_a_bounce_resolves_an_uncertain_delivery(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(60)
    campaign = launch_campaign()
    assert send_windows.open_send_window(claim_next_batch()) is not None
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    completion.close_cancelled_batches("sweep")
    assert delivery_counts(campaign) == {"total": 60, "uncertain": 1}
    report_bounce(campaign.id, 1), report_bounce(campaign.id, 2)
    assert [delivery_status(campaign, n).state for n in (1, 2)] == ["failed", "cancelled"]
    assert delivery_counts(campaign) == {"total": 60, "failed": 1}


def test_the_cursor_of_a_closed_batch_is_deleted(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(1200)
    campaign = launch_campaign()
    released, lost, _ = claim_next_batch(), claim_next_batch(), claim_next_batch()
    for claim in (released, lost):
        assert send_windows.open_send_window(claim) is not None
    transitions.cancel_campaign(campaign.id, "tests")
    batches.release_batch(released)
    expire_leases()
    completion.close_cancelled_batches("sweep")
    assert count_cursors() == 1
    cancellation.clean_up_cancelled_campaigns()
    assert count_cursors() == 0
    # A worker that returns finds the batch closed and writes no cursor.
    assert send_windows.open_send_window(lost) is None
    assert count_cursors() == 0


def test_an_uncertain_email_of_another_campaign_does_not_show_that_this_one_was_sent(
    launch_campaign: LaunchCampaign,
) -> None:
    first, _ = create_customers(2)
    sent, queued = launch_campaign("ONE1"), launch_campaign("TWO2")
    statement = "insert into mail_issue (campaign_id, customer_id, state) values (:campaign, :customer, 'uncertain')"
    db.session.execute(text(statement), {"campaign": sent.id, "customer": first})
    db.session.commit()
    report_bounce(queued.id, first)
    assert [delivery_status(campaign, first).state for campaign in (sent, queued)] == ["uncertain", "waiting"]


def test_a_complaint_does_not_change_the_delivery(launch_campaign: LaunchCampaign) -> None:
    first, _ = create_customers(2)
    campaign = launch_campaign()
    claim = claim_next_batch()
    send_one_window(claim)
    batches.finish_batch(claim)
    message_id = campaign_tokens.build_message_id(campaign.id, first, "example.com")
    for kind in ("complaint", "unsubscribe"):
        bounce_actions.process_bounce_report(BounceReport(kind, tokens=(message_id,)))
    suppressed = db.session.scalars(select(Suppression)).one()
    assert (suppressed.reason, suppressed.campaign_id) == ("complained", campaign.id)
    assert delivery_status(campaign, first).state == "sent"
    assert delivery_counts(campaign) == {"total": 2, "sent": 2}
