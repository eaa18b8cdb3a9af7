"""Claims, leases and outcomes of batches among other campaigns and workers."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import select, text

from tests.support.campaigns import LaunchCampaign, create_customers, expire_leases, make_retries_due, refresh
from tests.support.smtp_relay import Relay
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import timing
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.sending import batches, outcomes, retries, sender, windows
from webapp.campaigns.sending.batches import BatchClaim
from webapp.core.extensions import db
from webapp.customers.models import Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail.smtp import SmtpOutcome


def claim() -> BatchClaim:
    found = batches.claim_batch("us")
    assert found is not None
    return found


def claim_positions(n: int) -> list[tuple[int, int]]:
    """Claim n batches; return the (campaign id, sequence number) of each."""
    ids = [claim().batch_id for _ in range(n)]
    rows = db.session.execute(text("select id, campaign_id, seq from batch")).all()
    positions = {row.id: (row.campaign_id, row.seq) for row in rows}
    return [positions[batch_id] for batch_id in ids]


# --- claims -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [transitions.pause_campaign, transitions.cancel_campaign])
def test_only_batches_of_sending_campaigns_are_claimed(launch_campaign: LaunchCampaign, stop: object) -> None:
    create_customers(1)
    stopped, live = launch_campaign("ONE1"), launch_campaign("TWO2")
    stop(stopped.id, "tests")  # type: ignore[operator]
    assert claim().campaign_id == live.id
    assert batches.claim_batch("us") is None
    assert not campaign_queries.has_pending_sends()


def test_an_expired_lease_of_a_paused_campaign_is_not_taken_over(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaign = launch_campaign()
    claim()
    transitions.pause_campaign(campaign.id, "tests")
    expire_leases()
    assert not campaign_queries.has_pending_sends()
    assert batches.claim_batch("next") is None


def test_campaigns_take_turns_batch_by_batch(launch_campaign: LaunchCampaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "BATCH_SIZE", 1)
    create_customers(2)
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    # Store the rows in another order than that in which they are due.
    db.session.execute(text("create temp table reordered as select * from batch order by seq desc, campaign_id desc"))
    db.session.execute(text("delete from batch"))
    db.session.execute(text("insert into batch select * from reordered"))
    db.session.execute(text("drop table reordered"))
    db.session.commit()
    assert claim_positions(4) == [(first.id, 0), (second.id, 0), (first.id, 1), (second.id, 1)]


def test_a_batch_locked_by_another_worker_is_skipped(
    launch_campaign: LaunchCampaign, other_worker: psycopg.Connection[object]
) -> None:
    create_customers(1)
    launch_campaign("ONE1")
    second = launch_campaign("TWO2")
    other_worker.execute("select from batch where campaign_id <> %s for update", [second.id])
    assert claim().campaign_id == second.id


def test_a_delayed_batch_is_claimed_when_its_time_has_come(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    launch_campaign()
    batches.release_batch(claim(), delay=60)
    assert batches.claim_batch("us") is None
    assert not campaign_queries.has_pending_sends()
    db.session.execute(text("update batch set not_before = now()"))
    db.session.commit()
    assert campaign_queries.has_pending_sends()
    claim()


def test_a_batch_released_without_a_delay_is_claimed_at_once(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    launch_campaign()
    batches.release_batch(claim(), delay=60)
    make_retries_due()
    batches.release_batch(claim())
    assert db.session.execute(text("select not_before, owner, lease_until from batch")).one() == (None, None, None)
    claim()


# --- leases -----------------------------------------------------------------------------------------


def test_a_new_window_renews_the_lease(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    launch_campaign()
    held = claim()
    expire_leases()
    assert windows.open_send_window(held) is not None
    left = db.session.execute(text("select lease_until - now() from batch")).scalar_one()
    assert left > timedelta(seconds=timing.LEASE_DURATION / 2)


def test_a_batch_is_not_renewed_once_its_campaign_is_paused(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaign = launch_campaign()
    held = claim()
    assert batches.renew_batch_lease(held)
    transitions.pause_campaign(campaign.id, "tests")
    assert not batches.renew_batch_lease(held)


def test_a_former_owner_does_not_delete_the_cursor_of_the_next(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    launch_campaign()
    former = claim()
    assert windows.open_send_window(former) is not None
    expire_leases()
    following = claim()
    batches.finish_batch(former)
    assert db.session.execute(text("select epoch from batch_cursor")).scalar_one() == following.epoch


def test_a_batch_released_after_a_cancellation_is_cancelled(launch_campaign: LaunchCampaign) -> None:
    create_customers(2)
    campaign, live = launch_campaign("ONE1"), launch_campaign("TWO2")
    claims = [claim(), claim()]
    transitions.cancel_campaign(campaign.id, "tests")
    for held in claims:
        batches.release_batch(held)
    rows = db.session.execute(text("select campaign_id, status from batch order by campaign_id")).all()
    assert rows == [(campaign.id, "cancelled"), (live.id, "pending")]


# --- outcomes ---------------------------------------------------------------------------------------


def test_a_skipped_retry_is_not_due_any_more(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 4.2.1 later"
    campaign = launch_campaign(policy="hold")
    sender.send_pending_emails()
    db.session.execute(text("update mail_issue set at = now() - interval '1 day'"))
    suppression_actions.add_suppression("c0@example.com", "unsubscribed", "staff")
    make_retries_due()
    assert retries.claim_due_retry() is None
    columns = "state, text, smtp_code, next_at, attempts, now() - at as age"
    row = db.session.execute(text(f"select {columns} from mail_issue")).one()
    assert row[:5] == ("skipped", "unsubscribed", None, None, 1)
    assert row.age < timedelta(hours=1)
    sender.send_pending_emails()
    assert refresh(campaign).status == "done"


@pytest.mark.parametrize(
    ("reply", "is_suppressed"),
    [
        *((f"5.1.{detail} no", True) for detail in (0, 1, 2, 3, 4, 6, 9, 10)),
        *((f"5.1.{detail} no", False) for detail in (5, 7, 8, 11)),
        ("5.7.1 spam, see 5.1.1", False),
    ],
)
def test_an_address_that_the_relay_reports_as_invalid_is_suppressed_with_its_reply(
    launch_campaign: LaunchCampaign, reply: str, is_suppressed: bool
) -> None:
    create_customers(1)
    db.session.execute(text("update customer set email_as_given = 'C0@Example.com'"))
    db.session.commit()
    campaign = launch_campaign()
    held = claim()
    window = windows.open_send_window(held)
    assert window is not None
    outcomes.record_outcome(held, window.recipients[0], SmtpOutcome("failed", 550, reply, "RCPT"))
    rows = [(row.email, row.reason, row.campaign_id, row.detail) for row in db.session.scalars(select(Suppression))]
    assert rows == [("c0@example.com", "bounced", campaign.id, f"550 {reply}")] * is_suppressed


def test_a_second_attempt_of_a_batch_is_counted_and_dated(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    launch_campaign()
    held = claim()
    window = windows.open_send_window(held)
    assert window is not None
    for _ in range(2):
        db.session.execute(text("update mail_issue set at = now() - interval '1 day'"))
        outcomes.record_outcome(held, window.recipients[0], SmtpOutcome("deferred", 450, "later", "RCPT"))
    row = db.session.execute(
        text("select attempts, next_at > now() as is_due_later, now() - at as age from mail_issue")
    )
    attempts, is_due_later, age = row.one()
    assert (attempts, is_due_later, age < timedelta(hours=1)) == (2, True, True)
