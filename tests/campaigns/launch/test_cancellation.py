"""Cleaning up a cancelled campaign, without effects on other campaigns."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers, expire_leases, refresh
from webapp.campaigns.launch import cancellation, transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import batches, completion, outcomes, windows
from webapp.core.extensions import db
from webapp.mail.smtp import SmtpOutcome

DEFERRED = SmtpOutcome("deferred", 450, "4.2.1 later", "RCPT")


def defer_first_of_next_batch() -> batches.BatchClaim:
    claim = batches.claim_batch("us")
    assert claim is not None
    window = windows.open_send_window(claim)
    assert window is not None
    outcomes.record_outcome(claim, window.recipients[0], DEFERRED)
    return claim


def statuses() -> dict[int, str]:
    return {row.campaign_id: row.status for row in db.session.execute(text("select campaign_id, status from batch"))}


@pytest.mark.parametrize("stop", [None, transitions.pause_campaign])
def test_other_campaigns_keep_their_batches_retries_and_cursors(
    launch_campaign: LaunchCampaign, stop: Callable[[int, str], Campaign] | None
) -> None:
    create_customers(2)
    other, cancelled = launch_campaign("ONE1"), launch_campaign("TWO2")
    batches.release_batch(defer_first_of_next_batch())
    transitions.cancel_campaign(cancelled.id, "tests")
    if stop is not None:
        stop(other.id, "tests")
    cancellation.clean_up_cancelled_campaigns()
    assert statuses() == {other.id: "pending", cancelled.id: "cancelled"}
    rows = db.session.execute(text("select campaign_id, state, next_at is null as is_over from mail_issue")).all()
    assert rows == [(other.id, "deferred", False)]
    assert db.session.execute(text("select count(*) from batch_cursor")).scalar_one() == 1
    assert (refresh(other).sent_in_batches, refresh(cancelled).sent_in_batches) == (None, 0)


def test_a_skipped_retry_keeps_neither_its_time_nor_its_reply(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    campaign = launch_campaign()
    batches.release_batch(defer_first_of_next_batch())
    transitions.cancel_campaign(campaign.id, "tests")
    cancellation.clean_up_cancelled_campaigns()
    row = db.session.execute(text("select state, text, smtp_code, next_at from mail_issue")).one()
    assert row == ("skipped", "the campaign was cancelled", None, None)


def test_totals_are_not_stored_while_a_worker_is_still_sending(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    campaign = launch_campaign()
    claim = defer_first_of_next_batch()
    transitions.cancel_campaign(campaign.id, "tests")
    cancellation.clean_up_cancelled_campaigns()
    assert statuses() == {campaign.id: "sending"}
    assert refresh(campaign).sent_in_batches is None
    claim.position, claim.sent = 2, 1
    batches.release_batch(claim)
    cancellation.clean_up_cancelled_campaigns()
    assert refresh(campaign).sent_in_batches == 1


def test_no_total_is_stored_of_a_campaign_that_still_retries(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    retrying, cancelled = launch_campaign("ONE1"), launch_campaign("TWO2")
    batches.finish_batch(defer_first_of_next_batch())
    transitions.cancel_campaign(cancelled.id, "tests")
    cancellation.clean_up_cancelled_campaigns()
    assert (refresh(retrying).sent_in_batches, refresh(cancelled).sent_in_batches) == (None, 0)


def test_the_total_of_a_cancelled_campaign_is_stored_once(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    campaign = launch_campaign()
    assert batches.claim_batch("us") is not None
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    completion.close_cancelled_batches("sweep")
    cancellation.clean_up_cancelled_campaigns()
    db.session.execute(text("update batch set sent = 7"))
    db.session.commit()
    cancellation.clean_up_cancelled_campaigns()
    assert refresh(campaign).sent_in_batches == 0


@pytest.mark.parametrize("locked_table", ["batch", "mail_issue", "campaign"])
def test_rows_locked_by_another_worker_are_cleaned_up_the_next_time(
    launch_campaign: LaunchCampaign, other_worker: psycopg.Connection[object], locked_table: str
) -> None:
    create_customers(2)
    campaign = launch_campaign()
    batches.release_batch(defer_first_of_next_batch())
    transitions.cancel_campaign(campaign.id, "tests")
    other_worker.execute(f"select from {locked_table} for no key update")
    cancellation.clean_up_cancelled_campaigns()
    assert refresh(campaign).sent_in_batches is None or locked_table == "mail_issue"
    other_worker.rollback()
    cancellation.clean_up_cancelled_campaigns()
    assert refresh(campaign).sent_in_batches == 0
    assert statuses() == {campaign.id: "cancelled"}
    assert db.session.execute(text("select state from mail_issue")).scalar_one() == "skipped"
