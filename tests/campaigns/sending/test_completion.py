"""Finishing campaigns, and closing the batches of cancelled ones."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers, expire_leases, make_retries_due, refresh
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import batches, completion, outcomes, retries, windows
from webapp.core.extensions import db
from webapp.mail.smtp import SmtpOutcome
from webapp.offers.models import Offer

DEFERRED = SmtpOutcome("deferred", 450, "4.2.1 later", "RCPT")


def attempt(outcome: SmtpOutcome) -> None:
    """Process the next batch, which has one recipient, with a given outcome."""
    claim = batches.claim_batch("us")
    assert claim is not None
    window = windows.open_send_window(claim)
    assert window is not None
    outcomes.record_outcome(claim, window.recipients[0], outcome)
    batches.finish_batch(claim)


def statuses() -> list[str]:
    return list(db.session.scalars(text("select status from batch order by campaign_id, seq")))


# --- done -------------------------------------------------------------------------------------------


def test_a_paused_campaign_is_not_completed(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaign = launch_campaign()
    attempt(SmtpOutcome("failed", 550, "no", "RCPT"))
    transitions.pause_campaign(campaign.id, "tests")
    completion.finish_campaigns()
    assert (refresh(campaign).status, campaign.finished_at) == ("paused", None)
    transitions.resume_campaign(campaign.id, "tests")
    completion.finish_campaigns()
    assert refresh(campaign).status == "done"


def test_a_campaign_with_a_pending_batch_is_not_done_when_another_is(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    finished, waiting = launch_campaign("ONE1"), launch_campaign("TWO2")
    db.session.execute(text("update campaign set trouble = 'the relay was down'"))
    attempt(SmtpOutcome("failed", 550, "no", "RCPT"))
    completion.finish_campaigns()
    assert (refresh(finished).status, finished.delivery_warning) == ("done", None)
    assert finished.finished_at is not None
    assert (refresh(waiting).status, waiting.sent_in_batches) == ("sending", None)


@pytest.mark.parametrize("policy", ["resend", "hold"])
def test_a_campaign_with_a_pending_retry_is_not_done(launch_campaign: LaunchCampaign, policy: str) -> None:
    create_customers(1)
    campaign = launch_campaign(policy=policy)
    attempt(DEFERRED)
    completion.finish_campaigns()
    assert refresh(campaign).status == "sending"
    make_retries_due()
    completion.finish_campaigns()
    assert refresh(campaign).status == "sending"


def test_a_campaign_does_not_wait_for_the_retries_of_another(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    deferred, finished = launch_campaign("ONE1"), launch_campaign("TWO2")
    attempt(DEFERRED)
    attempt(SmtpOutcome("failed", 550, "no", "RCPT"))
    completion.finish_campaigns()
    assert (refresh(deferred).status, refresh(finished).status) == ("sending", "done")


@pytest.mark.parametrize(("policy", "status"), [("resend", "sending"), ("hold", "done")])
def test_a_lost_retry_keeps_a_campaign_open_unless_under_hold(
    launch_campaign: LaunchCampaign, policy: str, status: str
) -> None:
    create_customers(1)
    campaign = launch_campaign(policy=policy)
    attempt(DEFERRED)
    make_retries_due()
    assert retries.claim_due_retry() is not None
    completion.finish_campaigns()
    assert refresh(campaign).status == "sending"
    make_retries_due()
    completion.finish_campaigns()
    assert refresh(campaign).status == status


def test_a_campaign_locked_by_another_worker_is_checked_the_next_time(
    launch_campaign: LaunchCampaign, other_worker: psycopg.Connection[object]
) -> None:
    create_customers(1)
    held, free = launch_campaign("ONE1"), launch_campaign("TWO2")
    attempt(SmtpOutcome("failed", 550, "no", "RCPT"))
    attempt(SmtpOutcome("failed", 550, "no", "RCPT"))
    other_worker.execute("select from campaign where id = %s for no key update", [held.id])
    completion.finish_campaigns()
    assert (refresh(held).status, refresh(free).status) == ("sending", "done")
    other_worker.rollback()
    completion.finish_campaigns()
    assert refresh(held).status == "done"


def test_a_campaign_that_is_still_being_prepared_is_not_done(app: Flask, make_offer: Callable[..., Offer]) -> None:
    campaign = Campaign(offer_id=make_offer().id, subject="s", text="t", status="sending")
    db.session.add(campaign)
    db.session.commit()
    completion.finish_campaigns()
    assert refresh(campaign).status == "sending"


# --- cancelled --------------------------------------------------------------------------------------


def test_a_cancelled_batch_is_left_to_its_owner_while_the_lease_lasts(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    campaign = launch_campaign()
    claim = batches.claim_batch("us")
    assert claim is not None
    transitions.cancel_campaign(campaign.id, "tests")
    completion.close_cancelled_batches("sweep")
    row = db.session.execute(text("select status, owner, epoch from batch")).one()
    assert row == ("sending", "us", claim.epoch)
    expire_leases()
    completion.close_cancelled_batches("sweep")
    row = db.session.execute(text("select status, owner, epoch from batch")).one()
    assert row == ("cancelled", "sweep", claim.epoch + 1)


@pytest.mark.parametrize("stop", [None, transitions.pause_campaign])
def test_the_batches_of_another_campaign_are_not_cancelled(
    launch_campaign: LaunchCampaign, stop: Callable[[int, str], Campaign] | None
) -> None:
    create_customers(1)
    cancelled, other = launch_campaign("ONE1"), launch_campaign("TWO2")
    assert batches.claim_batch("first") is not None
    assert batches.claim_batch("second") is not None
    transitions.cancel_campaign(cancelled.id, "tests")
    if stop is not None:
        stop(other.id, "tests")
    expire_leases()
    completion.close_cancelled_batches("sweep")
    assert statuses() == ["cancelled", "sending"]


def test_unclaimed_batches_are_cancelled_and_finished_ones_kept(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaigns = [launch_campaign(code) for code in ("ONE1", "TWO2", "THREE3")]
    attempt(SmtpOutcome("failed", 550, "no", "RCPT"))
    for campaign in campaigns:
        transitions.cancel_campaign(campaign.id, "tests")
    completion.close_cancelled_batches("sweep")
    assert statuses() == ["done", "cancelled", "cancelled"]


def test_a_cancelled_batch_locked_by_another_worker_is_skipped(
    launch_campaign: LaunchCampaign, other_worker: psycopg.Connection[object]
) -> None:
    create_customers(1)
    campaigns = [launch_campaign("ONE1"), launch_campaign("TWO2")]
    for campaign in campaigns:
        transitions.cancel_campaign(campaign.id, "tests")
    other_worker.execute("select from batch where campaign_id = %s for update", [campaigns[0].id])
    completion.close_cancelled_batches("sweep")
    assert statuses() == ["pending", "cancelled"]
