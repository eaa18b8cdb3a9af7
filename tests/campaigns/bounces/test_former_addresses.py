"""Bounces of former addresses, and the effect of a bounce on the delivery state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces.reports import BounceReport
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.validation import CustomerValues

OLD = "c0@example.com"


@pytest.fixture
def campaign(launch_campaign: LaunchCampaign) -> Campaign:
    """A campaign that was sent to the customers 1 and 2, an hour after its launch."""
    create_customers(2)
    campaign = launch_campaign()
    db.session.execute(text("update batch set status = 'done', window_start = 2, window_end = 2, sent = 2"))
    db.session.execute(
        text("update campaign set status = 'done', sent_in_batches = 2, launched_at = now() - interval '1 hour'")
    )
    db.session.commit()
    return campaign


def bounce(campaign: Campaign, address: str, customer_id: int = 1) -> str:
    token = campaign_tokens.build_message_id(campaign.id, customer_id, "example.com")
    return bounce_actions.process_bounce_report(BounceReport("bounce", "5.1.1", "unknown", (address,), (token,)))


def update(customer_id: int = 1, email: str = OLD, name: str = "Customer") -> None:
    customer_actions.update_customer(customer_id, CustomerValues(email, name), [], by="tests")


def change_address_before_the_launch(campaign: Campaign) -> None:
    update(email="new@example.com")
    db.session.execute(text("update campaign set launched_at = now() + interval '1 second'"))
    db.session.commit()


def change_only_the_name(campaign: Campaign) -> None:
    update(name="Ada")


def change_the_address_of_another(campaign: Campaign) -> None:
    update(2, email="new@example.com")


@pytest.mark.parametrize(
    "change", [change_address_before_the_launch, change_only_the_name, change_the_address_of_another]
)
def test_a_forwarded_address_counts_unless_the_customer_changed_theirs(
    campaign: Campaign, change: Callable[[Campaign], None]
) -> None:
    change(campaign)
    assert bounce(campaign, "elsewhere@example.net") == "suppressed"


def test_a_former_address_does_not_count(campaign: Campaign) -> None:
    update(email="new@example.com")
    assert bounce(campaign, OLD) == "ignored"
    assert not db.session().in_transaction()
    assert bounce(campaign, "<New@Example.com>") == "suppressed"


def test_an_erased_customer_is_unknown_and_not_kept_locked(campaign: Campaign) -> None:
    customer_actions.erase_customer(1, by="tests")
    assert bounce(campaign, OLD) == "unknown_customer"
    assert not db.session().in_transaction()


@pytest.mark.parametrize(
    ("state", "new_state"),
    [
        ("uncertain", "failed"),
        ("sent_later", "failed"),
        ("left", "failed"),
        ("deferred", "deferred"),
        ("skipped", "skipped"),
        ("failed", "failed"),
    ],
)
def test_a_bounce_resolves_a_delivery_that_may_have_arrived(campaign: Campaign, state: str, new_state: str) -> None:
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state, text, smtp_code, next_at, at) "
            "values (:campaign, 1, :state, 'before', 421, now(), now() - interval '1 day')"
        ),
        {"campaign": campaign.id, "state": state},
    )
    db.session.commit()
    bounce(campaign, OLD)
    row = db.session.execute(text("select state, text, smtp_code, next_at, now() - at as age from mail_issue")).one()
    if state in ("uncertain", "sent_later", "left"):
        assert row[:4] == (new_state, "bounced: 5.1.1 unknown", None, None)
        assert row.age < timedelta(hours=1)
    else:
        assert row[:3] == (new_state, "before", 421)
        assert row.next_at is not None
    # Such a delivery was not counted as sent in its batch.
    assert db.session.execute(text("select sent from batch")).scalar_one() == 2


@pytest.mark.parametrize("customer_id", [1, 2])
def test_the_first_and_the_last_recipient_of_a_batch_are_counted_once(campaign: Campaign, customer_id: int) -> None:
    customer = db.session.get_one(Customer, customer_id)
    bounce(campaign, customer.email, customer_id)
    bounce(campaign, customer.email, customer_id)
    db.session.refresh(campaign)
    assert (campaign.sent_in_batches, db.session.execute(text("select sent from batch")).scalar_one()) == (1, 1)


def test_a_bounce_of_one_campaign_does_not_affect_others(campaign: Campaign, launch_campaign: LaunchCampaign) -> None:
    other = launch_campaign("OTHER1")
    db.session.execute(text("update batch set status = 'done', window_start = 2, sent = 2"))
    db.session.commit()
    bounce(campaign, OLD)
    rows = db.session.execute(text("select campaign_id, sent from batch order by campaign_id")).all()
    assert rows == [(campaign.id, 1), (other.id, 2)]
    assert db.session.scalars(text("select campaign_id from mail_issue")).all() == [campaign.id]
