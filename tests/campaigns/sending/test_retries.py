"""Trying a mail again: whose it is meanwhile, for how long, and what is remembered of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import Launch, campaign_status, create_customers, issue_states, launch_to
from tests.support.smtp_relay import Relay
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import timing
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import batches, completion, retries, sender
from webapp.campaigns.sending import progress as send_progress
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
def put_off(app: Flask, offer: Callable[..., Offer], policy: str) -> Campaign:
    """A campaign to one, whose mail was put off and is due."""
    campaign = launch_to(offer, [C0])
    db.session.execute(text("update campaign set uncertain_policy = :policy"), {"policy": policy})
    db.session.commit()
    taken = batches.claim_batch("first")
    assert taken is not None
    window = batches.open_send_window(taken)
    assert window is not None
    batches.record_outcome(taken, window.recipients[0], LATER)
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
    app: Flask, offer: Callable[..., Offer], relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    monkeypatch.setattr(timing, "RECONNECT_DELAYS", (0.0, 0.0, 0.0))
    campaign = launch_to(offer, [C0])
    relay.behaviour.rcpt[C0] = "drop"
    rule = relay.rule

    def pause_first(rules: dict[str, str], to: str) -> str:
        with app.app_context():
            transitions.pause_campaign(campaign.id, "tests")
        return rule(rules, to)

    monkeypatch.setattr(relay, "rule", pause_first)
    sender.send_pending_emails()
    assert (relay.connections, issue_states(campaign), campaign_status(campaign)[0]) == (1, {}, "paused")


# --- which retry, and until when -------------------------------------------------------------------


def row() -> dict[str, Any]:
    db.session.rollback()
    return dict(db.session.execute(text("select * from mail_issue")).mappings().one())


def first_deferred(ago: str) -> None:
    """As if the email had been deferred for the first time so long ago."""
    db.session.execute(text("update mail_issue set at = now() - cast(:ago as interval)"), {"ago": ago})
    db.session.commit()
    due_now()


def test_each_deferral_keeps_the_time_of_the_first(put_off: Campaign) -> None:
    first_deferred("30 hours")
    at = row()["at"]
    for attempt in range(2, 5):
        due = claimed()
        assert not due.is_last_attempt
        retries.record_retry_outcome(due, LATER)
        assert (row()["state"], row()["at"], row()["attempts"]) == ("deferred", at, attempt)
        due_now()


def test_an_email_is_given_up_two_days_after_its_first_deferral(put_off: Campaign) -> None:
    first_deferred("30 hours")
    retries.record_retry_outcome(claimed(), LATER)
    db.session.execute(text("update mail_issue set at = at - interval '19 hours'"))
    db.session.commit()
    due_now()
    retries.record_retry_outcome(claimed(), LATER)
    assert (row()["state"], row()["next_at"]) == ("failed", None)
    completion.finish_campaigns()
    assert campaign_status(put_off)[0] == "done"


def test_an_email_that_is_resent_by_staff_has_two_days_again(put_off: Campaign) -> None:
    first_deferred("3 days")
    retries.record_retry_outcome(claimed(), LATER)
    assert row()["state"] == "failed"
    delivery_actions.retry_deliveries(put_off.id, DeliverySelection("failed"), "staff")
    due = claimed()
    assert (due.is_last_attempt, due.attempts) == (False, 1)


@pytest.mark.parametrize("outcome", [ACCEPTED, REFUSED, SmtpOutcome("uncertain", None, "no answer", "body")])
def test_a_final_outcome_is_dated_and_not_retried(put_off: Campaign, outcome: SmtpOutcome) -> None:
    first_deferred("30 hours")
    retries.record_retry_outcome(claimed(), outcome)
    age = db.session.execute(text("select now() - at from mail_issue")).scalar_one()
    assert (row()["next_at"], age < timedelta(hours=1)) == (None, True)
    assert not retries.has_due_retry()


def test_a_retry_is_not_due_before_its_time(put_off: Campaign) -> None:
    db.session.execute(text("update mail_issue set next_at = now() + interval '1 minute'"))
    db.session.commit()
    assert not retries.has_due_retry()
    assert not campaign_queries.has_pending_sends()
    assert retries.claim_due_retry() is None


@pytest.mark.parametrize("stop", [transitions.pause_campaign, transitions.cancel_campaign])
def test_only_retries_of_sending_campaigns_are_claimed(
    put_off: Campaign, offer: Callable[..., Offer], stop: Callable[[int, str], Campaign]
) -> None:
    stop(put_off.id, "tests")
    assert not retries.has_due_retry()
    assert not campaign_queries.has_pending_sends()
    assert retries.claim_due_retry() is None
    assert (row()["state"], row()["attempts"], row()["epoch"]) == ("deferred", 1, 0)


def test_a_paused_campaign_keeps_its_retries_beside_a_sending_one(launched: Launch) -> None:
    create_customers(1)
    paused, live = launched("ONE1"), launched("TWO2")
    for _ in range(2):
        defer_next()
    transitions.pause_campaign(paused.id, "tests")
    due_now()
    assert claimed().campaign_id == live.id
    assert not retries.has_due_retry()
    assert retries.claim_due_retry() is None


def defer_next() -> None:
    """Defer the email of the next batch, of one recipient."""
    taken = batches.claim_batch("us")
    assert taken is not None
    window = batches.open_send_window(taken)
    assert window is not None
    batches.record_outcome(taken, window.recipients[0], LATER)
    batches.finish_batch(taken)


def test_what_has_been_due_longest_is_retried_first(launched: Launch) -> None:
    create_customers(1)
    campaigns = [launched(code).id for code in ("ONE1", "TWO2", "THREE3")]
    for _ in campaigns:
        defer_next()
    for campaign_id, minutes in zip(campaigns, (2, 3, 1), strict=True):
        db.session.execute(
            text("update mail_issue set next_at = now() - make_interval(mins => :m) where campaign_id = :c"),
            {"m": minutes, "c": campaign_id},
        )
    db.session.commit()
    order = [campaigns[1], campaigns[0], campaigns[2]]
    assert [claimed().campaign_id for _ in campaigns] == order


def test_a_retry_that_another_worker_is_claiming_is_not_waited_for(
    launched: Launch, other_worker: psycopg.Connection[object]
) -> None:
    create_customers(1)
    first, second = launched("ONE1"), launched("TWO2")
    defer_next(), defer_next()
    due_now()
    other_worker.execute("select from mail_issue where campaign_id = %s for update", [first.id])
    assert claimed().campaign_id == second.id


@pytest.mark.parametrize("policy", ["hold"], indirect=True)
def test_a_held_email_whose_retry_was_lost_is_not_claimed_again(put_off: Campaign) -> None:
    claimed()
    due_now()
    assert not retries.has_due_retry()
    assert not campaign_queries.has_pending_sends()
    assert retries.claim_due_retry() is None


def test_a_renewed_lease_keeps_the_retry(put_off: Campaign) -> None:
    due = claimed()
    due_now()
    assert retries.renew_retry_lease(due)
    assert retries.claim_due_retry() is None
    left = db.session.execute(text("select next_at - now() from mail_issue")).scalar_one()
    assert left > timedelta(seconds=timing.LEASE_DURATION / 2)


def test_a_lost_retry_is_not_renewed(put_off: Campaign, policy: str) -> None:
    first = claimed()
    due_now()
    if policy == "hold":
        delivery_actions.retry_deliveries(put_off.id, DeliverySelection("uncertain"), "staff")
    claimed()
    assert not retries.renew_retry_lease(first)


# --- the campaign of a retry ------------------------------------------------------------------------


def finish_too_early(campaign: Campaign) -> None:
    """As if the campaign had been completed while its last retry took longer than its lease."""
    db.session.execute(text("update campaign set status = 'done', finished_at = now()"))
    db.session.commit()


def test_an_aborted_retry_reopens_a_completed_campaign(put_off: Campaign) -> None:
    due = claimed()
    finish_too_early(put_off)
    retries.release_retry(due)
    assert (campaign_status(put_off)[0], put_off.finished_at) == ("sending", None)


def test_a_deferred_retry_reopens_a_completed_campaign(put_off: Campaign) -> None:
    due = claimed()
    finish_too_early(put_off)
    retries.record_retry_outcome(due, LATER)
    assert (campaign_status(put_off)[0], put_off.finished_at) == ("sending", None)


def test_a_final_outcome_leaves_a_completed_campaign_done(put_off: Campaign) -> None:
    due = claimed()
    finish_too_early(put_off)
    retries.record_retry_outcome(due, ACCEPTED)
    assert campaign_status(put_off)[0] == "done"


@pytest.mark.parametrize("record", [retries.release_retry, lambda due: retries.record_retry_outcome(due, LATER)])
@pytest.mark.parametrize(
    ("stop", "status"), [(transitions.pause_campaign, "paused"), (transitions.cancel_campaign, "cancelled")]
)
def test_a_late_outcome_does_not_resume_a_stopped_campaign(
    put_off: Campaign,
    stop: Callable[[int, str], Campaign],
    status: str,
    record: Callable[[DueRetry], None],
) -> None:
    due = claimed()
    stop(put_off.id, "tests")
    record(due)
    assert campaign_status(put_off)[0] == status


def test_a_retry_of_one_campaign_does_not_reopen_another(put_off: Campaign, offer: Callable[..., Offer]) -> None:
    other = Campaign(offer_id=offer("OTHER1").id, subject="s", text="t", status="done")
    db.session.add(other)
    db.session.commit()
    retries.release_retry(claimed())
    assert campaign_status(other)[0] == "done"


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
    app: Flask, offer: Callable[..., Offer], held: psycopg.Connection[object]
) -> None:
    launch_to(offer, [C0])
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
    app: Flask, offer: Callable[..., Offer], held: psycopg.Connection[object]
) -> None:
    launch_to(offer, [C0, "c1@example.com"])
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
