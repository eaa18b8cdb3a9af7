"""Claiming due retries, their time limit, and their effect on the campaign."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text

from tests.support.campaigns import LaunchCampaign, campaign_status, create_customers
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import timing
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import batches, completion, outcomes, retries, windows
from webapp.campaigns.sending.retries import DueRetry
from webapp.core.extensions import db
from webapp.customers.models import Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail.smtp import SmtpOutcome
from webapp.offers.models import Offer

LATER = SmtpOutcome("deferred", 450, "4.7.1 later", "RCPT")
REJECTED = SmtpOutcome("failed", 550, "no", "RCPT")
ACCEPTED = SmtpOutcome("accepted", 250, "ok", "body")


@pytest.fixture(params=["resend", "hold"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deferred(launch_campaign: LaunchCampaign, policy: str) -> Campaign:
    """A campaign with one recipient, whose email was deferred and is due."""
    create_customers(1)
    campaign = launch_campaign(policy=policy)
    defer_next()
    make_due()
    return campaign


def make_due() -> None:
    db.session.execute(text("update mail_issue set next_at = now() - interval '1 second' where next_at is not null"))
    db.session.commit()


def claim() -> DueRetry:
    retry = retries.claim_due_retry()
    assert retry is not None
    return retry


def defer_next() -> None:
    """Defer the email of the next batch, which has one recipient."""
    batch = batches.claim_batch("us")
    assert batch is not None
    window = windows.open_send_window(batch)
    assert window is not None
    outcomes.record_outcome(batch, window.recipients[0], LATER)
    batches.finish_batch(batch)


def row() -> dict[str, Any]:
    db.session.rollback()
    return dict(db.session.execute(text("select * from mail_issue")).mappings().one())


def backdate_first_deferral(ago: str) -> None:
    """Move the first deferral into the past."""
    db.session.execute(text("update mail_issue set at = now() - cast(:ago as interval)"), {"ago": ago})
    db.session.commit()
    make_due()


def test_each_deferral_keeps_the_time_of_the_first(deferred: Campaign) -> None:
    backdate_first_deferral("30 hours")
    at = row()["at"]
    for attempt in range(2, 5):
        retry = claim()
        assert not retry.is_last_attempt
        retries.record_retry_outcome(retry, LATER)
        assert (row()["state"], row()["at"], row()["attempts"]) == ("deferred", at, attempt)
        make_due()


def test_an_email_fails_two_days_after_its_first_deferral(deferred: Campaign) -> None:
    backdate_first_deferral("30 hours")
    retries.record_retry_outcome(claim(), LATER)
    db.session.execute(text("update mail_issue set at = at - interval '19 hours'"))
    db.session.commit()
    make_due()
    retries.record_retry_outcome(claim(), LATER)
    assert (row()["state"], row()["next_at"]) == ("failed", None)
    completion.finish_campaigns()
    assert campaign_status(deferred)[0] == "done"


@pytest.mark.parametrize(("age", "is_last_attempt"), [("47 hours 59 minutes", False), ("48 hours", True)])
def test_the_attempt_after_two_days_is_the_last_one(deferred: Campaign, age: str, is_last_attempt: bool) -> None:
    backdate_first_deferral(age)
    assert claim().is_last_attempt is is_last_attempt


def test_retries_are_delayed_as_documented_give_or_take_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = (60, 300, 1800, 7200, 7200)
    monkeypatch.setattr(random, "uniform", min)
    assert [outcomes.compute_retry_delay(n) for n in range(5)] == [timedelta(seconds=n * 0.9) for n in delays]
    monkeypatch.setattr(random, "uniform", max)
    assert [outcomes.compute_retry_delay(n) for n in range(5)] == [timedelta(seconds=n * 1.1) for n in delays]


def test_an_email_that_is_resent_by_staff_has_two_days_again(deferred: Campaign) -> None:
    backdate_first_deferral("3 days")
    retries.record_retry_outcome(claim(), LATER)
    assert row()["state"] == "failed"
    db.session.execute(text("update mail_issue set at = at - interval '3 days'"))
    delivery_actions.resend_deliveries(deferred.id, DeliverySelection("failed"), "staff")
    retry = claim()
    assert (retry.is_last_attempt, retry.attempts) == (False, 1)


@pytest.mark.parametrize(
    ("outcome", "is_suppressed"), [(SmtpOutcome("failed", 550, "5.1.1 unknown", "RCPT"), True), (REJECTED, False)]
)
def test_an_address_that_is_reported_as_invalid_at_a_retry_is_suppressed(
    deferred: Campaign, outcome: SmtpOutcome, is_suppressed: bool
) -> None:
    retries.record_retry_outcome(claim(), outcome)
    rows = [(row.email, row.reason, row.detail) for row in db.session.scalars(select(Suppression))]
    assert rows == [("c0@example.com", "bounced", "550 5.1.1 unknown")] * is_suppressed
    assert row()["smtp_code"] == 550


def test_an_aborted_retry_is_due_again_soon(deferred: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RELEASED_RETRY_DELAY", 1000.0)
    retries.release_retry(claim())
    left = db.session.execute(text("select next_at - now() from mail_issue")).scalar_one()
    assert timedelta() < left <= timedelta(seconds=1000)


@pytest.fixture
def four_due(launch_campaign: LaunchCampaign) -> list[tuple[int, int]]:
    """Four due retries of two campaigns and two customers, in the order in which they are claimed."""
    ids = create_customers(2)
    campaigns = [launch_campaign(code) for code in ("ONE1", "TWO2")]
    keys = [(campaign.id, customer_id) for campaign in campaigns for customer_id in ids]
    db.session.execute(text("update batch set status = 'done'"))
    for n, (campaign_id, customer_id) in enumerate(keys):
        db.session.execute(
            text(
                "insert into mail_issue (campaign_id, customer_id, state, text, attempts, next_at) "
                "values (:campaign, :customer, 'deferred', 'later', 1, now() - make_interval(mins => :ago))"
            ),
            {"campaign": campaign_id, "customer": customer_id, "ago": 10 - n},
        )
    db.session.commit()
    return keys


def list_rows() -> dict[tuple[int, int], dict[str, Any]]:
    rows = db.session.execute(text("select * from mail_issue")).mappings().all()
    return {(each["campaign_id"], each["customer_id"]): dict(each) for each in rows}


@pytest.mark.parametrize(
    "write",
    [
        lambda retry: retries.record_retry_outcome(retry, ACCEPTED),
        retries.release_retry,
        retries.renew_retry_lease,
    ],
)
def test_an_outcome_is_stored_for_one_delivery(
    four_due: list[tuple[int, int]], write: Callable[[DueRetry], object]
) -> None:
    claimed = [claim() for _ in four_due]
    assert [(retry.campaign_id, retry.customer_id) for retry in claimed] == four_due
    before = list_rows()
    write(claimed[1])
    after = list_rows()
    assert [key for key in four_due if after[key] != before[key]] == [four_due[1]]


def test_only_the_skipped_retry_loses_the_attempt_of_its_claim(four_due: list[tuple[int, int]]) -> None:
    suppression_actions.add_suppression("c0@example.com", "unsubscribed", "staff")
    db.session.execute(
        text("update mail_issue set next_at = now() + interval '1 hour' where (campaign_id, customer_id) <> (:c, :u)"),
        {"c": four_due[0][0], "u": four_due[0][1]},
    )
    db.session.commit()
    assert retries.claim_due_retry() is None
    rows = list_rows()
    assert [(rows[key]["state"], rows[key]["attempts"]) for key in four_due] == [
        ("skipped", 1), ("deferred", 1), ("deferred", 1), ("deferred", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("outcome", [ACCEPTED, REJECTED, SmtpOutcome("uncertain", None, "no answer", "body")])
def test_a_final_outcome_is_dated_and_not_retried(deferred: Campaign, outcome: SmtpOutcome) -> None:
    backdate_first_deferral("30 hours")
    retries.record_retry_outcome(claim(), outcome)
    age = db.session.execute(text("select now() - at from mail_issue")).scalar_one()
    assert (row()["next_at"], age < timedelta(hours=1)) == (None, True)
    assert not retries.has_due_retry()


def test_a_retry_is_not_due_before_its_time(deferred: Campaign) -> None:
    db.session.execute(text("update mail_issue set next_at = now() + interval '1 minute'"))
    db.session.commit()
    assert not retries.has_due_retry()
    assert not campaign_queries.has_pending_sends()
    assert retries.claim_due_retry() is None


@pytest.mark.parametrize("stop", [transitions.pause_campaign, transitions.cancel_campaign])
def test_only_retries_of_sending_campaigns_are_claimed(
    deferred: Campaign, stop: Callable[[int, str], Campaign]
) -> None:
    stop(deferred.id, "tests")
    assert not retries.has_due_retry()
    assert not campaign_queries.has_pending_sends()
    assert retries.claim_due_retry() is None
    assert (row()["state"], row()["attempts"], row()["epoch"]) == ("deferred", 1, 0)


def test_a_paused_campaign_keeps_its_retries_beside_a_sending_one(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    paused, live = launch_campaign("ONE1"), launch_campaign("TWO2")
    for _ in range(2):
        defer_next()
    transitions.pause_campaign(paused.id, "tests")
    make_due()
    assert claim().campaign_id == live.id
    assert not retries.has_due_retry()
    assert retries.claim_due_retry() is None


def test_the_retry_that_is_due_longest_is_claimed_first(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaigns = [launch_campaign(code).id for code in ("ONE1", "TWO2", "THREE3")]
    for _ in campaigns:
        defer_next()
    for campaign_id, minutes in zip(campaigns, (2, 3, 1), strict=True):
        db.session.execute(
            text("update mail_issue set next_at = now() - make_interval(mins => :m) where campaign_id = :c"),
            {"m": minutes, "c": campaign_id},
        )
    db.session.commit()
    order = [campaigns[1], campaigns[0], campaigns[2]]
    assert [claim().campaign_id for _ in campaigns] == order


def test_a_retry_locked_by_another_worker_is_skipped(
    launch_campaign: LaunchCampaign, other_worker: psycopg.Connection[object]
) -> None:
    create_customers(1)
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    defer_next()
    defer_next()
    make_due()
    other_worker.execute("select from mail_issue where campaign_id = %s for update", [first.id])
    assert claim().campaign_id == second.id


@pytest.mark.parametrize("policy", ["hold"], indirect=True)
def test_a_held_email_whose_retry_was_lost_is_not_claimed_again(deferred: Campaign) -> None:
    claim()
    make_due()
    assert not retries.has_due_retry()
    assert not campaign_queries.has_pending_sends()
    assert retries.claim_due_retry() is None


def test_a_renewed_lease_keeps_the_retry(deferred: Campaign) -> None:
    retry = claim()
    make_due()
    assert retries.renew_retry_lease(retry)
    assert retries.claim_due_retry() is None
    left = db.session.execute(text("select next_at - now() from mail_issue")).scalar_one()
    assert left > timedelta(seconds=timing.LEASE_DURATION / 2)


def test_a_lost_retry_is_not_renewed(deferred: Campaign, policy: str) -> None:
    first = claim()
    make_due()
    if policy == "hold":
        delivery_actions.resend_deliveries(deferred.id, DeliverySelection("uncertain"), "staff")
    claim()
    assert not retries.renew_retry_lease(first)


# --- the campaign of a retry ------------------------------------------------------------------------


def finish_too_early(campaign: Campaign) -> None:
    """Finish the campaign, as during a retry that takes longer than its lease."""
    db.session.execute(text("update campaign set status = 'done', finished_at = now()"))
    db.session.commit()


def test_an_aborted_retry_reopens_a_completed_campaign(deferred: Campaign) -> None:
    retry = claim()
    finish_too_early(deferred)
    retries.release_retry(retry)
    assert (campaign_status(deferred)[0], deferred.finished_at) == ("sending", None)


def test_a_deferred_retry_reopens_a_completed_campaign(deferred: Campaign) -> None:
    retry = claim()
    finish_too_early(deferred)
    retries.record_retry_outcome(retry, LATER)
    assert (campaign_status(deferred)[0], deferred.finished_at) == ("sending", None)


def test_a_final_outcome_leaves_a_completed_campaign_done(deferred: Campaign) -> None:
    retry = claim()
    finish_too_early(deferred)
    retries.record_retry_outcome(retry, ACCEPTED)
    assert campaign_status(deferred)[0] == "done"


@pytest.mark.parametrize("record", [retries.release_retry, lambda retry: retries.record_retry_outcome(retry, LATER)])
@pytest.mark.parametrize(
    ("stop", "status"), [(transitions.pause_campaign, "paused"), (transitions.cancel_campaign, "cancelled")]
)
def test_a_late_outcome_does_not_resume_a_stopped_campaign(
    deferred: Campaign,
    stop: Callable[[int, str], Campaign],
    status: str,
    record: Callable[[DueRetry], None],
) -> None:
    retry = claim()
    stop(deferred.id, "tests")
    record(retry)
    assert campaign_status(deferred)[0] == status


def test_a_retry_of_one_campaign_does_not_reopen_another(deferred: Campaign, make_offer: Callable[..., Offer]) -> None:
    other = Campaign(offer_id=make_offer("OTHER1").id, subject="s", text="t", status="done")
    db.session.add(other)
    db.session.commit()
    retries.release_retry(claim())
    assert campaign_status(other)[0] == "done"
