"""When a campaign counts as stalled, and the order of what is read about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers, expire_leases
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import batches
from webapp.campaigns.stats_queries import STALLED_AFTER_SECONDS, CampaignStats
from webapp.core.extensions import db
from webapp.offers.models import Offer

IDLE = CampaignStats(total=3, sent=2, idle_seconds=STALLED_AFTER_SECONDS)


@pytest.mark.parametrize(
    ("stats", "is_stalled"),
    [
        (IDLE, True),
        (replace(IDLE, idle_seconds=STALLED_AFTER_SECONDS - 1), False),
        (replace(IDLE, idle_seconds=None), False),
        (replace(IDLE, has_active_worker=True), False),
        (replace(IDLE, resumes_by=datetime.now(UTC)), False),
        # No delivery waits for its first attempt.
        (replace(IDLE, sent=3), False),
        (replace(IDLE, deferred=1), False),
        (replace(IDLE, left=1), False),
        (CampaignStats(is_overdue=True), True),
        (replace(IDLE, has_active_worker=True, is_overdue=True), True),
    ],
)
def test_a_campaign_is_stalled_when_recipients_wait_and_no_worker_sends(stats: CampaignStats, is_stalled: bool) -> None:
    assert stats.is_stalled is is_stalled


def test_deferred_recipients_remain_and_dismissed_ones_do_not() -> None:
    stats = CampaignStats(total=10, sent=2, failed=1, deferred=1, uncertain=1, skipped=1, left=1)
    assert (stats.processed, stats.waiting, stats.remaining) == (6, 3, 4)
    assert CampaignStats(total=1, sent=2).waiting == 0


def add_issues(campaign: Campaign, states: Sequence[tuple[int, str, int | None]]) -> None:
    db.session.add_all(
        MailIssue(campaign_id=campaign.id, customer_id=customer_id, state=state, smtp_code=code, text=f"{code} reply")
        for customer_id, state, code in states
    )
    db.session.commit()


def test_the_most_frequent_cause_comes_first(launch_campaign: LaunchCampaign) -> None:
    create_customers(6)
    campaign = launch_campaign()
    add_issues(campaign, [(1, "failed", 550), *((n, "failed", 554) for n in (2, 3, 4)), (5, "skipped", None)])
    add_issues(campaign, [(6, "skipped", None)])
    causes = stats_queries.get_campaign_stats(campaign.id).causes
    assert [(cause.state, cause.code, cause.count) for cause in causes] == [
        ("failed", 554, 3),
        ("skipped", None, 2),
        ("failed", 550, 1),
    ]
    assert stats_queries.list_example_replies(campaign.id, causes) == ["554 reply", "None reply", "550 reply"]


def test_an_example_is_a_reply_of_the_campaign_with_the_same_cause(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    other, campaign = launch_campaign("ONE1"), launch_campaign("TWO2")

    def add(*rows: tuple[str, int | None, str], to: Campaign = campaign) -> None:
        first = 1 + (db.session.scalar(text("select max(customer_id) from mail_issue")) or 0)
        for n, (state, code, reply) in enumerate(rows, first):
            values = {"campaign_id": to.id, "customer_id": n, "state": state, "smtp_code": code, "text": reply}
            db.session.add(MailIssue(**values))
        db.session.commit()

    long = "sending was interrupted " * 20
    for state, code, reply in (("failed", 550, "5.1.1 "), ("failed", None, long), ("uncertain", 450, "4.2.2 ")):
        add((state, code, f"{reply}of another campaign"), to=other)
        add(("skipped", code, f"{reply}of another state"), (state, 554, f"{reply}of another code"))
        add((state, None, f"{reply}without a code")) if code else add((state, 550, f"{reply}with a code"))
        add((state, code, "5.9.9 of another cause"), (state, code, f"{reply}right"), (state, code, f"{reply}later"))
    causes = {
        (cause.state, cause.code, cause.cause): cause for cause in stats_queries.get_campaign_stats(campaign.id).causes
    }
    (long_cause,) = [cause for (state, code, cause) in causes if (state, code) == ("failed", None) and cause in long]
    retried = replace(causes["uncertain", 450, "4.2.2"], state="deferred")
    asked = [
        causes["failed", 550, "5.1.1"],
        causes["failed", None, long_cause],
        retried,
        replace(retried, state="failed"),
    ]
    examples = stats_queries.list_example_replies(campaign.id, asked)
    assert examples == ["5.1.1 right", f"{long}right", "4.2.2 right", ""]


# --- lists of campaigns -----------------------------------------------------------------------------


@pytest.fixture
def campaigns(app: Flask, make_offer: Callable[..., Offer]) -> list[Campaign]:
    """Four paused campaigns, updated in another order than they were created in."""
    offer = make_offer()
    created = [
        Campaign(offer_id=offer.id, kind="reminder", subject="s", text="t", status="paused", sent_in_batches=0)
        for _ in range(4)
    ]
    db.session.add_all(created)
    db.session.flush()
    for n in (2, 0, 3, 1):
        # An update moves the row to the end of the table.
        db.session.execute(text("update campaign set total = 1 where id = :id"), {"id": created[n].id})
    db.session.commit()
    return created


def test_campaigns_are_listed_newest_first(campaigns: list[Campaign]) -> None:
    newest_first = [campaign.id for campaign in reversed(campaigns)]
    for listed in (
        campaign_queries.list_campaigns(),
        campaign_queries.list_offer_campaigns(campaigns[0].offer_id),
        campaign_queries.list_campaigns_needing_attention(),
    ):
        assert [campaign.id for campaign in listed] == newest_first


def test_a_page_of_campaigns_continues_before_the_last_one(campaigns: list[Campaign]) -> None:
    ids = [campaign.id for campaign in campaigns]
    first = campaign_queries.list_campaigns(limit=2)
    assert [campaign.id for campaign in first] == [ids[3], ids[2], ids[1]]
    second = campaign_queries.list_campaigns(before=ids[2], limit=2)
    assert [campaign.id for campaign in second] == [ids[1], ids[0]]


def test_campaigns_with_uncertain_emails_are_listed_newest_first(campaigns: list[Campaign]) -> None:
    for campaign, n in zip(campaigns, (1, 3, 0, 2), strict=True):
        add_issues(campaign, [(customer_id, "uncertain", None) for customer_id in range(1, n + 1)])
    unresolved = campaign_queries.list_unresolved_by_campaign()
    assert [(campaign.id, n) for campaign, n in unresolved] == [
        (campaigns[3].id, 2),
        (campaigns[1].id, 3),
        (campaigns[0].id, 1),
    ]


@pytest.mark.parametrize(
    ("change", "is_listed"),
    [
        ("status = 'paused'", True),
        ("status = 'sending', trouble = 'the relay is down'", True),
        ("status = 'sending'", False),
        ("status = 'done', trouble = 'the relay was down'", False),
        ("status = 'draft'", False),
    ],
)
def test_attention_is_for_paused_campaigns_and_those_in_trouble(
    campaigns: list[Campaign], change: str, is_listed: bool
) -> None:
    db.session.execute(text("update campaign set status = 'done'"))
    db.session.execute(text(f"update campaign set {change} where id = :id"), {"id": campaigns[0].id})
    db.session.commit()
    assert [campaign.id for campaign in campaign_queries.list_campaigns_needing_attention()] == (
        [campaigns[0].id] if is_listed else []
    )


# --- the next batch ---------------------------------------------------------------------------------


def test_a_sender_comes_back_when_the_next_delay_or_lease_ends(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    assert campaign_queries.seconds_until_next_batch() is None
    for _ in range(2):
        assert batches.claim_batch("us") is not None
    db.session.execute(text("update batch set lease_until = now() + interval '50 seconds'"))
    db.session.commit()
    seconds = campaign_queries.seconds_until_next_batch()
    assert seconds is not None
    assert 0 < seconds <= 50
    db.session.execute(
        text(
            "update batch set status = 'pending', not_before = now() + interval '30 seconds', lease_until = null "
            "where campaign_id = :id"
        ),
        {"id": second.id},
    )
    db.session.commit()
    seconds = campaign_queries.seconds_until_next_batch()
    assert seconds is not None
    assert 0 < seconds <= 30
    for campaign in (first, second):
        transitions.pause_campaign(campaign.id, "tests")
    assert campaign_queries.seconds_until_next_batch() is None


@pytest.mark.parametrize("until", ["now() + interval '2 minutes'", "now() - interval '1 second'"])
def test_a_sender_does_not_come_back_for_a_time_far_off_or_past(launch_campaign: LaunchCampaign, until: str) -> None:
    create_customers(1)
    launch_campaign()
    assert batches.claim_batch("us") is not None
    db.session.execute(text(f"update batch set lease_until = {until}"))
    db.session.commit()
    assert campaign_queries.seconds_until_next_batch() is None


def test_recipients_are_exported_without_an_open_transaction(launch_campaign: LaunchCampaign) -> None:
    create_customers(3)
    campaign = launch_campaign()
    campaign_id = campaign.id
    db.session.rollback()
    recipients = delivery_queries.iter_recipients(campaign_id)
    ids = []
    for recipient in recipients:
        ids.append(recipient.customer_id)
        assert not db.session().in_transaction()
    assert ids == sorted(ids)
    assert len(ids) == 3


def test_an_expired_lease_is_not_an_active_worker(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaign = launch_campaign()
    assert batches.claim_batch("us") is not None
    assert stats_queries.get_campaign_stats(campaign.id).has_active_worker
    expire_leases()
    assert not stats_queries.get_campaign_stats(campaign.id).has_active_worker


def test_a_released_batch_is_neither_active_nor_interrupted(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    campaign = launch_campaign()
    for lease_until in ("now() + interval '50 s'", "now() - interval '1 minute'"):
        db.session.execute(text(f"update batch set status = 'done', lease_until = {lease_until}"))
        db.session.commit()
        stats = stats_queries.get_campaign_stats(campaign.id)
        assert (stats.has_active_worker, stats.resumes_by, stats.is_overdue) == (False, None, False)
        assert campaign_queries.seconds_until_next_batch() is None


def test_sending_resumes_when_the_last_interrupted_batch_is_taken_over(launch_campaign: LaunchCampaign) -> None:
    create_customers(501)
    campaign = launch_campaign()
    lease_until = text(
        "update batch set status = 'sending', lease_until = now() + make_interval(secs => 60 * seq - 10)"
    )
    db.session.execute(lease_until)
    last = db.session.scalar(text("select max(lease_until) from batch"))
    db.session.commit()
    resumes_by = stats_queries.get_campaign_stats(campaign.id).resumes_by
    assert resumes_by == (last + timedelta(minutes=2)).replace(second=0, microsecond=0)


def test_a_retry_in_progress_of_a_cancelled_campaign_is_uncertain(launch_campaign: LaunchCampaign) -> None:
    (customer_id,) = create_customers(1)
    campaign = launch_campaign()
    next_at = datetime.now(UTC) + timedelta(minutes=1)
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=customer_id, state="uncertain", next_at=next_at))
    db.session.commit()
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.deferred, stats.uncertain) == (1, 0)
    transitions.cancel_campaign(campaign.id, "tests")
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.deferred, stats.uncertain, stats.skipped) == (0, 1, 0)
