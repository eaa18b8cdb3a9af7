"""Lists of deliveries, beside those of other campaigns."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers, delivery_status, refresh
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import batches
from webapp.core.extensions import db


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two recipients."""
    monkeypatch.setattr(preparation, "BATCH_SIZE", 2)


def add_issue(campaign: Campaign, customer_id: int, state: str, code: int | None = None, reply: str = "") -> None:
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=customer_id, state=state, smtp_code=code, text=reply))
    db.session.commit()


def list_ids(campaign: Campaign, state: str = "", code: int | None = None, cause: str | None = None) -> list[int]:
    page = delivery_queries.list_recipients(campaign.id, state, code=code, cause=cause)
    return [delivery.customer_id for delivery in page.deliveries]


def test_the_state_of_a_recipient_is_that_of_the_campaign(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(2)
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    add_issue(first, ids[0], "failed", 550, "5.1.1 no")
    add_issue(second, ids[0], "skipped", None, "unsubscribed")
    states = [
        [(delivery.customer_id, delivery.state, delivery.text) for delivery in deliveries]
        for campaign in (first, second)
        for deliveries in (
            delivery_queries.list_recipients(campaign.id).deliveries,
            list(delivery_queries.iter_recipients(campaign.id)),
        )
    ]
    assert states[0] == states[1] == [(ids[0], "failed", "5.1.1 no"), (ids[1], "waiting", "")]
    assert states[2] == states[3] == [(ids[0], "skipped", "unsubscribed"), (ids[1], "waiting", "")]
    assert [list_ids(campaign, "failed") for campaign in (first, second)] == [[ids[0]], []]
    assert [delivery_status(campaign, ids[0]).state for campaign in (first, second)] == ["failed", "skipped"]


def test_the_campaigns_of_a_customer_are_listed_newest_first(launch_campaign: LaunchCampaign) -> None:
    (customer_id,) = create_customers(1)
    campaigns = [launch_campaign(code) for code in ("ONE1", "TWO2", "THREE3")]
    # An update moves the row to the end of the table.
    db.session.execute(text("update campaign set total = total where id = :id"), {"id": campaigns[0].id})
    add_issue(campaigns[1], customer_id, "failed")
    newest_first = [(campaigns[n].id, state) for n, state in ((2, "waiting"), (1, "failed"), (0, "waiting"))]
    listed = delivery_queries.list_customer_deliveries(customer_id)
    assert [(item.campaign.id, item.state) for item in listed] == newest_first
    assert [item.delivery.campaign_id for item in listed] == [campaign_id for campaign_id, _ in newest_first]
    limited = delivery_queries.list_customer_deliveries(customer_id, limit=2)
    assert [(item.campaign.id, item.state) for item in limited] == newest_first[:2]
    remaining = delivery_queries.iter_customer_deliveries(customer_id)
    assert [(delivery.campaign_id, delivery.state) for delivery in remaining] == newest_first


@pytest.mark.usefixtures("small_batches")
def test_only_emails_of_the_same_campaign_are_ahead(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(5)
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    assert [delivery_status(campaign, ids[4]).ahead for campaign in (first, second)] == [4, 4]
    held = batches.claim_batch("us")
    assert held is not None
    batches.finish_batch(held)
    assert [delivery_status(campaign, ids[4]).ahead for campaign in (first, second)] == [2, 4]


@pytest.mark.usefixtures("small_batches")
def test_an_export_has_all_batches_of_its_campaign(
    launch_campaign: LaunchCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_queries, "BATCHES_PER_EXPORT_STEP", 2)
    ids = create_customers(11)
    campaign = launch_campaign("ONE1")
    create_customers(3, first=20)
    launch_campaign("TWO2")
    assert [delivery.customer_id for delivery in delivery_queries.iter_recipients(campaign.id)] == ids


@pytest.mark.usefixtures("small_batches")
def test_a_list_ends_with_the_last_batch_of_its_campaign(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(4)
    campaign = launch_campaign("ONE1")
    create_customers(4, first=20)
    launch_campaign("TWO2")
    pages = [
        delivery_queries.list_recipients(campaign.id, "", after, limit)
        for after, limit in ((0, 3), (ids[2], 3), (0, 4))
    ]
    assert [([delivery.customer_id for delivery in page.deliveries], page.next_after) for page in pages] == [
        (ids[:3], ids[2]),
        (ids[3:], None),
        (ids, None),
    ]


@pytest.mark.parametrize(
    ("code", "cause", "listed"),
    [(550, "", [0]), (554, "", [1]), (550, "5.1.1", [2]), (None, "no answer", [3]), (450, "no answer", [])],
)
def test_a_cause_is_a_code_together_with_a_status_or_text(
    launch_campaign: LaunchCampaign, code: int | None, cause: str, listed: list[int]
) -> None:
    ids = create_customers(5)
    campaign = launch_campaign()
    replies: list[tuple[int | None, str]] = [(550, "no"), (554, "no"), (550, "5.1.1 no"), (None, "no answer")]
    for customer_id, (reply_code, reply) in zip(ids, replies, strict=False):
        add_issue(campaign, customer_id, "failed", reply_code, reply)
    add_issue(campaign, ids[4], "uncertain", code, "no answer")
    assert list_ids(campaign, "failed", code, cause) == [ids[n] for n in listed]


def test_a_retry_of_a_cancelled_campaign_is_listed_as_uncertain(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(1)
    cancelled, sending = launch_campaign("ONE1"), launch_campaign("TWO2")
    for campaign in (cancelled, sending):
        add_issue(campaign, ids[0], "uncertain")
    db.session.execute(text("update mail_issue set next_at = now() + interval '1 minute'"))
    db.session.commit()
    transitions.cancel_campaign(cancelled.id, "tests")
    listed = [(list_ids(campaign, "uncertain"), list_ids(campaign, "deferred")) for campaign in (cancelled, sending)]
    assert listed == [(ids, []), ([], ids)]
    assert [delivery_status(refresh(campaign), ids[0]).state for campaign in (cancelled, sending)] == [
        "uncertain",
        "deferred",
    ]
