"""Trying a mail again: whose it is meanwhile, for how long, and what is remembered of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import campaign_status, issue_states, launch_to
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
CALLED_OFF = SmtpOutcome("aborted")
ACCEPTED = SmtpOutcome("accepted", 250, "ok", "body")


@pytest.fixture(params=["resend", "hold"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def put_off(app: Flask, make_offer: Callable[..., Offer], policy: str) -> Campaign:
    """A campaign to one, whose mail was put off and is due."""
    campaign = launch_to(make_offer, [C0])
    db.session.execute(text("update campaign set uncertain_policy = :policy"), {"policy": policy})
    db.session.commit()
    taken = batches.claim_batch("first")
    assert taken is not None
    window = send_windows.open_send_window(taken)
    assert window is not None
    outcomes.record_outcome(taken, window.recipients[0], LATER)
    batches.finish_batch(taken)
    due_now()
    return campaign


def due_now() -> None:
    db.session.execute(text("update mail_issue set next_at = now() - interval '1 second' where next_at is not null"))
    db.session.commit()


def claimed() -> DueRetry:
    found = retries.claim_due_retry()
    assert found is not None
    return found


def attempts() -> int:
    db.session.rollback()
    return int(db.session.execute(text("select attempts from mail_issue")).scalar_one())


def test_a_late_word_about_an_earlier_try_changes_nothing(put_off: Campaign, policy: str) -> None:
    first = claimed()
    due_now()
    if policy == "hold":
        delivery_actions.retry_deliveries(put_off.id, DeliverySelection("uncertain"), "staff")
    second = claimed()
    retries.record_retry_outcome(first, LATER)
    retries.release_retry(first)
    retries.record_retry_outcome(second, ACCEPTED)
    assert issue_states(put_off) == {C0: ("sent_later", 250)}


def test_a_try_that_outlives_its_lease_is_not_lost(put_off: Campaign) -> None:
    due = claimed()
    due_now()
    completion.finish_campaigns()
    retries.record_retry_outcome(due, LATER)
    completion.finish_campaigns()
    assert campaign_status(put_off)[0] == "sending"
    due_now()
    assert claimed().customer_id == due.customer_id


def test_a_campaign_is_not_done_while_a_mail_of_it_is_tried(put_off: Campaign) -> None:
    claimed()
    completion.finish_campaigns()
    assert campaign_status(put_off)[0] == "sending"


def test_a_try_that_was_called_off_does_not_count(put_off: Campaign) -> None:
    before = attempts()
    retries.release_retry(claimed())
    assert (issue_states(put_off), attempts()) == ({C0: ("deferred", 450)}, before)


def test_a_slow_relay_gets_a_mail_that_was_put_off(
    put_off: Campaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    while sender.send_pending_emails():
        pass
    assert (issue_states(put_off)[C0][0], relay.recipients) == ("sent_later", {C0: 1})


def test_a_try_is_called_off_when_the_campaign_is_paused_meanwhile(
    put_off: Campaign, relay: Relay, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    due = claimed()
    transitions.pause_campaign(put_off.id, "tests")
    assert not retries.renew_retry_lease(due)


def test_a_batch_is_looked_after_before_each_new_connection(
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


# --- doubt -----------------------------------------------------------------------------------------


@pytest.fixture
def in_doubt(put_off: Campaign) -> Campaign:
    """The mail that was put off was tried, and no answer came."""
    retries.record_retry_outcome(claimed(), SmtpOutcome("uncertain", None, "no answer", "body"))
    return put_off


def test_a_second_copy_that_is_refused_is_no_failure(in_doubt: Campaign) -> None:
    delivery_actions.retry_deliveries(in_doubt.id, DeliverySelection("uncertain"), "staff")
    retries.record_retry_outcome(claimed(), REFUSED)
    assert issue_states(in_doubt) == {C0: ("uncertain", 550)}


def test_who_may_have_it_is_not_called_left_out(in_doubt: Campaign) -> None:
    delivery_actions.retry_deliveries(in_doubt.id, DeliverySelection("uncertain"), "staff")
    suppression_actions.add_suppression(C0, "unsubscribed", "staff")
    db.session.commit()
    assert retries.claim_due_retry() is None
    words = db.session.execute(text("select text from mail_issue")).scalar_one()
    assert (issue_states(in_doubt)[C0][0], words) == ("uncertain", "no answer; not sent again: unsubscribed")


def test_that_it_may_have_arrived_is_remembered_when_it_is_sent_again(in_doubt: Campaign) -> None:
    delivery_actions.retry_deliveries(in_doubt.id, DeliverySelection("uncertain"), "staff")
    retries.record_retry_outcome(claimed(), ACCEPTED)
    assert db.session.execute(text("select state, doubt from mail_issue")).one() == ("sent_later", True)


def test_a_try_whose_worker_was_killed_is_in_doubt(put_off: Campaign, policy: str) -> None:
    claimed()
    due_now()
    if policy == "hold":
        delivery_actions.retry_deliveries(put_off.id, DeliverySelection("uncertain"), "staff")
        db.session.rollback()
    else:
        claimed()
    assert db.session.execute(text("select doubt from mail_issue")).scalar_one()


# --- leases and cursors ----------------------------------------------------------------------------


@pytest.fixture
def held(app: Flask, database_url: str) -> Iterator[psycopg.Connection[object]]:
    """Somebody else's connection, to hold rows with."""
    with psycopg.connect(database_url) as connection:
        yield connection


def test_a_worker_does_not_think_its_lease_longer_than_it_is(
    app: Flask, make_offer: Callable[..., Offer], held: psycopg.Connection[object]
) -> None:
    launch_to(make_offer, [C0])
    taken = batches.claim_batch("us")
    assert taken is not None
    held.execute("select 1 from batch for update")
    # Longer than any clock is read.
    waiting = threading.Timer(0.5, held.commit)
    waiting.start()
    assert batches.renew_batch_lease(taken)
    waiting.join()
    left = db.session.execute(text("select extract(epoch from lease_until - now()) from batch")).scalar_one()
    assert timing.LEASE_DURATION - (time.monotonic() - taken.lease_renewed_at) <= float(left) + 0.1


def test_a_former_owners_cursor_that_waited_for_the_new_one_is_not_put(
    app: Flask, make_offer: Callable[..., Offer], held: psycopg.Connection[object]
) -> None:
    launch_to(make_offer, [C0, "c1@example.com"])
    former = batches.claim_batch("former")
    assert former is not None
    found = []

    def late() -> None:
        with app.app_context():
            found.append(send_progress.move_cursor(db.session.connection(), former, 2))
            db.session.commit()

    held.execute("update batch_cursor set epoch = epoch + 1, cursor = 1")
    held.execute("update batch set epoch = epoch + 1, owner = 'next'")
    thread = threading.Thread(target=late)
    thread.start()
    while not db.session.execute(text("select 1 from pg_stat_activity where wait_event_type = 'Lock'")).all():
        db.session.rollback()
    held.commit()
    thread.join()
    db.session.rollback()
    assert found == [False]
    assert db.session.execute(text("select epoch, cursor from batch_cursor")).one() == (2, 1)


def test_turns_that_came_too_late_are_given_back(app: Flask) -> None:
    pace = SendThrottle(10)
    assert pace.try_acquire(50) == 0
    # As after a stall of nine seconds.
    pace._next_slot_at -= 9
    reserved = db.session.execute(text("select free_at from mail_pace")).scalar_one()
    db.session.rollback()
    pace.try_acquire(50)
    assert db.session.execute(text("select free_at from mail_pace")).scalar_one() > reserved
