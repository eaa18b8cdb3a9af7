"""Retrying an email: its lease, its outcome, and uncertain deliveries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import campaign_status, issue_states, launch_to, send_until_idle
from tests.support.live_server import wait_until
from tests.support.redemptions import count_lock_waiters
from tests.support.smtp_relay import Relay
from webapp.campaigns import timing
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import batches, completion, outcomes, retries, sender
from webapp.campaigns.sending import progress as send_progress
from webapp.campaigns.sending import windows as send_windows
from webapp.campaigns.sending.retries import DueRetry
from webapp.campaigns.sending.throttle import SendThrottle
from webapp.core.extensions import db
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail.smtp import SmtpOutcome
from webapp.offers.models import Offer

C0 = "c0@example.com"
LATER = SmtpOutcome("deferred", 450, "4.7.1 later", "RCPT")
REFUSED = SmtpOutcome("failed", 550, "no", "RCPT")
ABORTED = SmtpOutcome("aborted")
ACCEPTED = SmtpOutcome("accepted", 250, "ok", "body")


@pytest.fixture(params=["resend", "hold"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deferred_campaign(app: Flask, make_offer: Callable[..., Offer], policy: str) -> Campaign:
    """A campaign with one recipient, whose email was deferred and is due."""
    campaign = launch_to(make_offer, [C0])
    db.session.execute(text("update campaign set uncertain_policy = :policy"), {"policy": policy})
    db.session.commit()
    batch = batches.claim_batch("first")
    assert batch is not None
    window = send_windows.open_send_window(batch)
    assert window is not None
    outcomes.record_outcome(batch, window.recipients[0], LATER)
    batches.finish_batch(batch)
    make_due()
    return campaign


def make_due() -> None:
    db.session.execute(text("update mail_issue set next_at = now() - interval '1 second' where next_at is not null"))
    db.session.commit()


def claim_retry() -> DueRetry:
    retry = retries.claim_due_retry()
    assert retry is not None
    return retry


def count_attempts() -> int:
    db.session.rollback()
    return int(db.session.execute(text("select attempts from mail_issue")).scalar_one())


def test_a_late_outcome_of_an_earlier_attempt_is_ignored(deferred_campaign: Campaign, policy: str) -> None:
    first = claim_retry()
    make_due()
    if policy == "hold":
        delivery_actions.resend_deliveries(deferred_campaign.id, DeliverySelection("uncertain"), "staff")
    second = claim_retry()
    retries.record_retry_outcome(first, LATER)
    retries.release_retry(first)
    retries.record_retry_outcome(second, ACCEPTED)
    assert issue_states(deferred_campaign) == {C0: ("sent_later", 250)}


def test_a_retry_that_outlives_its_lease_is_not_lost(deferred_campaign: Campaign) -> None:
    due = claim_retry()
    make_due()
    completion.finish_campaigns()
    retries.record_retry_outcome(due, LATER)
    completion.finish_campaigns()
    assert campaign_status(deferred_campaign)[0] == "sending"
    make_due()
    assert claim_retry().customer_id == due.customer_id


def test_a_campaign_is_not_done_during_a_retry(deferred_campaign: Campaign) -> None:
    claim_retry()
    completion.finish_campaigns()
    assert campaign_status(deferred_campaign)[0] == "sending"


def test_an_aborted_retry_does_not_count(deferred_campaign: Campaign) -> None:
    before = count_attempts()
    retries.release_retry(claim_retry())
    assert (issue_states(deferred_campaign), count_attempts()) == ({C0: ("deferred", 450)}, before)


def test_a_deferred_email_is_sent_over_a_slow_relay(
    deferred_campaign: Campaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    send_until_idle()
    assert (issue_states(deferred_campaign)[C0][0], relay.recipients) == ("sent_later", {C0: 1})


def test_a_relay_that_rejects_the_sender_at_a_retry_pauses_the_campaign(
    deferred_campaign: Campaign, relay: Relay
) -> None:
    relay.behaviour.mail = "553 5.7.1 not from you"
    sender.send_pending_emails()
    reason = "the mail relay rejects email from this server: 553 5.7.1 not from you"
    assert campaign_status(deferred_campaign) == ("paused", reason)
    assert issue_states(deferred_campaign) == {C0: ("deferred", 553)}


def test_a_retry_is_aborted_when_the_campaign_is_paused(
    deferred_campaign: Campaign, relay: Relay, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    due = claim_retry()
    transitions.pause_campaign(deferred_campaign.id, "tests")
    assert not retries.renew_retry_lease(due)


def test_the_batch_lease_is_checked_before_each_reconnection(
    app: Flask, make_offer: Callable[..., Offer], relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    monkeypatch.setattr(timing, "RECONNECT_DELAYS", (0.0, 0.0, 0.0))
    campaign = launch_to(make_offer, [C0])
    relay.behaviour.rcpt[C0] = "drop"
    rule = relay.rule

    def pause_first(rules: dict[str, str], to: str) -> str:
        with app.app_context():
            transitions.pause_campaign(campaign.id, "tests")
        return rule(rules, to)

    monkeypatch.setattr(relay, "rule", pause_first)
    sender.send_pending_emails()
    assert (relay.connections, issue_states(campaign), campaign_status(campaign)[0]) == (1, {}, "paused")


# --- uncertain deliveries --------------------------------------------------------------------------


@pytest.fixture
def uncertain_campaign(deferred_campaign: Campaign) -> Campaign:
    """A campaign whose deferred email was retried without receiving a reply."""
    retries.record_retry_outcome(claim_retry(), SmtpOutcome("uncertain", None, "no answer", "body"))
    return deferred_campaign


def test_a_refused_second_copy_stays_uncertain(uncertain_campaign: Campaign) -> None:
    delivery_actions.resend_deliveries(uncertain_campaign.id, DeliverySelection("uncertain"), "staff")
    retries.record_retry_outcome(claim_retry(), REFUSED)
    assert issue_states(uncertain_campaign) == {C0: ("uncertain", 550)}


def test_an_uncertain_recipient_who_unsubscribes_is_not_skipped(uncertain_campaign: Campaign) -> None:
    delivery_actions.resend_deliveries(uncertain_campaign.id, DeliverySelection("uncertain"), "staff")
    suppression_actions.add_suppression(C0, "unsubscribed", "staff")
    db.session.commit()
    assert retries.claim_due_retry() is None
    reason = db.session.execute(text("select text from mail_issue")).scalar_one()
    assert (issue_states(uncertain_campaign)[C0][0], reason) == ("uncertain", "no answer; not sent again: unsubscribed")


def test_the_doubt_about_a_first_copy_is_kept_after_resending(uncertain_campaign: Campaign) -> None:
    delivery_actions.resend_deliveries(uncertain_campaign.id, DeliverySelection("uncertain"), "staff")
    retries.record_retry_outcome(claim_retry(), ACCEPTED)
    assert db.session.execute(text("select state, doubt from mail_issue")).one() == ("sent_later", True)


def test_a_retry_whose_worker_was_killed_is_uncertain(deferred_campaign: Campaign, policy: str) -> None:
    claim_retry()
    make_due()
    if policy == "hold":
        delivery_actions.resend_deliveries(deferred_campaign.id, DeliverySelection("uncertain"), "staff")
        db.session.rollback()
    else:
        claim_retry()
    assert db.session.execute(text("select doubt from mail_issue")).scalar_one()


# --- leases and cursors ----------------------------------------------------------------------------


@pytest.fixture
def other_connection(app: Flask, database_url: str) -> Iterator[psycopg.Connection[object]]:
    """A second connection that can lock rows."""
    with psycopg.connect(database_url) as connection:
        yield connection


def test_a_worker_does_not_overestimate_its_lease(
    app: Flask, make_offer: Callable[..., Offer], other_connection: psycopg.Connection[object]
) -> None:
    launch_to(make_offer, [C0])
    batch = batches.claim_batch("us")
    assert batch is not None
    other_connection.execute("select 1 from batch for update")
    # Longer than the clock resolution.
    unlock = threading.Timer(0.5, other_connection.commit)
    unlock.start()
    assert batches.renew_batch_lease(batch)
    unlock.join()
    remaining = db.session.execute(text("select extract(epoch from lease_until - now()) from batch")).scalar_one()
    assert timing.LEASE_DURATION - (time.monotonic() - batch.lease_renewed_at) <= float(remaining) + 0.1


def test_a_former_owners_cursor_update_that_waited_is_discarded(
    app: Flask, make_offer: Callable[..., Offer], other_connection: psycopg.Connection[object]
) -> None:
    launch_to(make_offer, [C0, "c1@example.com"])
    former = batches.claim_batch("former")
    assert former is not None
    moved = []

    def move_late() -> None:
        with app.app_context():
            moved.append(send_progress.move_cursor(db.session.connection(), former, 2))
            db.session.commit()

    other_connection.execute("update batch_cursor set epoch = epoch + 1, cursor = 1")
    other_connection.execute("update batch set epoch = epoch + 1, owner = 'next'")
    thread = threading.Thread(target=move_late)
    thread.start()

    def is_waiting() -> bool:
        db.session.rollback()
        return count_lock_waiters("transactionid") > 0

    wait_until(is_waiting)
    other_connection.commit()
    thread.join()
    db.session.rollback()
    assert moved == [False]
    assert db.session.execute(text("select epoch, cursor from batch_cursor")).one() == (2, 1)


def test_expired_send_slots_are_discarded(app: Flask) -> None:
    throttle = SendThrottle(10)
    assert throttle.try_acquire(50) == 0
    # As if the sender had stalled for nine seconds.
    throttle._next_slot_at -= 9
    reserved = db.session.execute(text("select free_at from mail_pace")).scalar_one()
    db.session.rollback()
    throttle.try_acquire(50)
    assert db.session.execute(text("select free_at from mail_pace")).scalar_one() > reserved
