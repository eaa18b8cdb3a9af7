"""Counting the emails of a batch that is being sent, and campaigns that another process has changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.models import Batch, BatchCursor, Campaign, MailIssue, encode_gaps
from webapp.core.extensions import db
from webapp.offers.models import Offer

IDS = [3, 4, 9, 20, 21, 22, 50, 51, 80, 99]


def test_emails_sent_in_an_open_window_are_counted(app: Flask, make_offer: Callable[..., Offer]) -> None:
    campaign = Campaign(offer_id=make_offer().id, subject="s", text="t", status="sending", total=len(IDS))
    db.session.add(campaign)
    db.session.flush()
    batch = Batch(
        campaign_id=campaign.id,
        seq=0,
        first_id=IDS[0],
        last_id=IDS[-1],
        gaps=encode_gaps(IDS),
        status="sending",
        epoch=1,
        window_start=3,
        window_end=8,
        sent=2,
    )
    db.session.add(batch)
    db.session.flush()
    db.session.add(BatchCursor(batch_id=batch.id, epoch=1, cursor=6))
    # One before the window, its first, the last before the cursor, and the one at the cursor.
    for position in (2, 3, 5, 6):
        db.session.add(MailIssue(campaign_id=campaign.id, customer_id=IDS[position], state="failed"))
    db.session.commit()
    assert stats_queries.get_campaign_stats(campaign.id).sent == 2 + 3 - 2


def test_a_campaign_that_another_process_has_changed_is_read_again(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    offer_id = make_offer().id
    campaign = Campaign(offer_id=offer_id, subject="s", text="t")
    db.session.add(campaign)
    db.session.commit()
    campaign_id = campaign.id
    reads: dict[str, Callable[[], Campaign | None]] = {
        "one": lambda: campaign_queries.get_campaign(campaign_id),
        "two": lambda: campaign_queries.find_announcement(offer_id),
        "three": lambda: campaign_queries.find_current_campaign(offer_id, "announcement"),
    }
    for name, read in reads.items():
        with db.engine.begin() as other:
            other.execute(text("update campaign set subject = :name"), {"name": name})
        found = read()
        assert found is not None
        assert (found.id, found.subject) == (campaign_id, name)


def test_failures_of_another_campaign_do_not_reduce_the_sent_count(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(5)
    other, campaign = launch_campaign("ONE1"), launch_campaign("TWO2")
    for customer_id in ids[:2]:
        db.session.add(MailIssue(campaign_id=other.id, customer_id=customer_id, state="failed"))
    db.session.execute(text("update batch set status = 'sending', epoch = 1, window_end = 5"))
    db.session.execute(text("insert into batch_cursor (batch_id, epoch, cursor) select id, 1, 4 from batch"))
    db.session.commit()
    stats = stats_queries.get_stats_by_campaign([other.id, campaign.id])
    assert {id: (row.sent, row.failed) for id, row in stats.items()} == {other.id: (2, 2), campaign.id: (4, 0)}


def test_uncertain_emails_need_a_decision_while_another_campaign_is_sent(launch_campaign: LaunchCampaign) -> None:
    (customer_id,) = create_customers(1)
    finished = launch_campaign("ONE1", policy="hold")
    db.session.execute(text("update batch set status = 'done', window_start = 1, window_end = 1"))
    db.session.add(MailIssue(campaign_id=finished.id, customer_id=customer_id, state="uncertain"))
    db.session.commit()
    launch_campaign("TWO2", policy="hold")
    assert campaign_queries.count_unresolved(finished.id) == 1


@pytest.mark.parametrize(
    ("status", "policy", "is_due", "count"),
    [
        ("sending", "resend", True, 0),
        ("paused", "resend", True, 0),
        ("cancelled", "resend", True, 1),
        ("sending", "resend", None, 1),
        ("sending", "hold", True, 1),
        ("sending", "hold", False, 0),
    ],
)
def test_a_lost_retry_needs_a_decision_unless_it_is_repeated(
    launch_campaign: LaunchCampaign, status: str, policy: str, is_due: bool | None, count: int
) -> None:
    (customer_id,) = create_customers(1)
    campaign = launch_campaign(policy=policy)
    db.session.execute(text("update batch set status = 'done', window_start = 1, window_end = 1"))
    cancelled_at = "now()" if status == "cancelled" else "null"
    db.session.execute(text(f"update campaign set status = :status, cancelled_at = {cancelled_at}"), {"status": status})
    next_at = None if is_due is None else datetime.now(UTC) + timedelta(minutes=-1 if is_due else 1)
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=customer_id, state="uncertain", next_at=next_at))
    db.session.commit()
    assert campaign_queries.count_unresolved(campaign.id) == count
    assert [(found.id, n) for found, n in campaign_queries.list_unresolved_by_campaign()] == (
        [(campaign.id, count)] if count else []
    )


@pytest.mark.parametrize(("status", "is_in_progress"), [("preparing", True), ("sending", True), ("paused", False)])
def test_a_campaign_is_in_progress_from_its_launch(
    launch_campaign: LaunchCampaign, status: str, is_in_progress: bool
) -> None:
    create_customers(1)
    launch_campaign()
    db.session.execute(text("update campaign set status = :status"), {"status": status})
    db.session.commit()
    assert campaign_queries.has_campaign_in_progress() is is_in_progress
