"""Who would receive a campaign after another one of its kind was cancelled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.support.campaigns import create_customers
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.launch.audience import AudienceCount
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer


def draft_after_cancelled_campaign(offer: Offer, sent: int) -> Campaign:
    """Cancel a launched campaign after its first `sent` recipients, and return a draft of the next one."""
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    cancelled = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(cancelled.id)
    db.session.execute(text("update batch set window_start = :sent"), {"sent": sent})
    transitions.cancel_campaign(cancelled.id, "tests")
    return draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")


@pytest.mark.parametrize("sent", range(4))
def test_customers_who_received_the_cancelled_campaign_are_excluded(
    make_offer: Callable[..., Offer], sent: int
) -> None:
    ids = create_customers(3)
    offer = make_offer()
    draft = draft_after_cancelled_campaign(offer, sent)

    assert launch_audience.filter_recipients(draft, ids) == ids[sent:]
    # Each alone, as in a block of the preparation that begins or ends with this customer.
    assert [n for n in ids if launch_audience.filter_recipients(draft, [n])] == ids[sent:]
    assert launch_audience.count_campaign_recipients(draft, offer) == AudienceCount(3 - sent, 0, 0, sent)


def test_only_present_members_of_the_audience_are_counted(make_offer: Callable[..., Offer]) -> None:
    _stranger, received, left, unsubscribed, erased = create_customers(5)
    db.session.execute(text("insert into audience (id, name) values (1, 'Newsletter')"))
    members = [received, left, unsubscribed, erased]
    add_member = text("insert into audience_member (audience_id, customer_id) values (1, :id) on conflict do nothing")
    db.session.execute(add_member, [{"id": member} for member in members])
    offer = make_offer(audience_id=1)
    draft = draft_after_cancelled_campaign(offer, sent=1)
    suppression_actions.add_suppression("c3@example.com", "unsubscribed", "tests")
    customer_actions.erase_customer(erased, by="tests")
    # Erasing ends the membership; here it has been restored.
    db.session.execute(add_member, {"id": erased})
    db.session.commit()

    assert launch_audience.count_campaign_recipients(draft, offer) == AudienceCount(1, 1, 0, 1)


def test_recipients_of_the_cancelled_campaign_of_another_offer_are_included(make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(3)
    draft_after_cancelled_campaign(make_offer(), sent=3)
    offer = make_offer("WINTER")
    draft = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")

    assert launch_audience.filter_recipients(draft, ids) == ids
    assert launch_audience.count_campaign_recipients(draft, offer) == AudienceCount(3, 0, 0, 0)


def test_recipients_of_the_cancelled_announcement_are_reminded(make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(3)
    offer = make_offer()
    draft_after_cancelled_campaign(offer, sent=2)
    launch_actions.launch_announcement(offer.id, "tests")
    done = (
        "update campaign set status = 'done', prepared_at = now(), finished_at = now(), sent_in_batches = 1, total = 1"
    )
    db.session.execute(text(f"{done} where status = 'preparing'"))
    db.session.commit()
    reminder = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests", "reminder")

    assert launch_audience.filter_recipients(reminder, ids) == ids
    assert launch_audience.count_campaign_recipients(reminder, offer) == AudienceCount(3, 0, 0, 0)
