"""Who would receive a campaign after another one of its kind was cancelled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from tests.support.campaigns import create_customers
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.launch.audience import AudienceCount
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import batches
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption


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


def add_issue(campaign_id: int, customer_id: int, state: str, next_at: datetime | None = None) -> None:
    db.session.add(MailIssue(campaign_id=campaign_id, customer_id=customer_id, state=state, next_at=next_at))
    db.session.commit()


def list_campaign_ids(offer: Offer) -> list[int]:
    rows = db.session.execute(text("select id from campaign where offer_id = :id order by id"), {"id": offer.id})
    return list(rows.scalars())


@pytest.mark.parametrize(
    ("state", "policy", "receives_it"),
    [
        ("sent_later", "resend", False),
        ("failed", "resend", True),
        ("uncertain", "resend", True),
        ("left", "resend", True),
        ("sent_later", "hold", False),
        ("failed", "hold", True),
        ("uncertain", "hold", False),
        ("left", "hold", False),
    ],
)
def test_a_recorded_delivery_of_the_cancelled_campaign_counts_by_its_state(
    make_offer: Callable[..., Offer], state: str, policy: str, receives_it: bool
) -> None:
    ids = create_customers(2)
    offer = make_offer()
    draft = draft_after_cancelled_campaign(offer, sent=2)
    draft = draft_actions.update_draft(draft.id, EmailContent(), policy, "tests")
    add_issue(list_campaign_ids(offer)[0], ids[0], state)

    assert launch_audience.filter_recipients(draft, ids) == ids[:receives_it]


def test_deliveries_of_another_campaign_do_not_matter(make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(3)
    offer = make_offer()
    draft = draft_after_cancelled_campaign(offer, sent=2)
    other = launch_actions.launch_announcement(make_offer("WINTER").id, "tests").campaign
    for customer_id, state in zip(ids, ("failed", "failed", "sent_later"), strict=True):
        add_issue(other.id, customer_id, state)
    done = "update campaign set status = 'done', prepared_at = now(), finished_at = now(), sent_in_batches = 2"
    db.session.execute(text(f"{done} where id = :id"), {"id": other.id})
    db.session.commit()

    assert launch_audience.filter_recipients(draft, ids) == ids[2:]


def test_customers_who_have_redeemed_get_a_new_announcement(make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(3)
    offer = make_offer()
    draft = draft_after_cancelled_campaign(offer, sent=1)
    db.session.add(Redemption(offer_id=offer.id, customer_id=ids[2], channel="form"))
    db.session.commit()

    assert launch_audience.filter_recipients(draft, ids) == ids[1:]
    assert launch_audience.count_campaign_recipients(draft, offer) == AudienceCount(2, 0, 0, 1)


def test_a_scheduled_campaign_keeps_the_choice_to_include_earlier_recipients(make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    draft = draft_after_cancelled_campaign(make_offer(), sent=2)
    at = datetime.now(UTC) + timedelta(hours=1)

    def schedule(includes_earlier_recipients: bool | None) -> bool:
        return launch_actions.schedule_campaign(draft.id, at, "tests", includes_earlier_recipients).changed

    assert [schedule(choice) for choice in (False, False, True, True, None)] == [True, False, True, False, False]
    db.session.execute(text("update campaign set scheduled_at = now() where status = 'scheduled'"))
    db.session.commit()
    assert launch_actions.launch_due_campaigns() == [draft.id]
    preparation.prepare_campaign(draft.id)
    db.session.refresh(draft)
    assert (draft.status, draft.total) == ("sending", 3)


def test_a_new_campaign_waits_for_a_retry_of_the_cancelled_one(make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(3)
    offer = make_offer()
    draft = draft_after_cancelled_campaign(offer, sent=2)
    # A worker is retrying this email.
    add_issue(list_campaign_ids(offer)[0], ids[0], "uncertain", datetime.now(UTC) + timedelta(minutes=1))
    launch_actions.launch_campaign(draft.id, "tests")
    preparation.prepare_campaign(draft.id)
    db.session.refresh(draft)
    assert (draft.status, draft.total) == ("preparing", 0)

    db.session.execute(text("update mail_issue set state = 'sent_later', next_at = null"))
    db.session.commit()
    preparation.prepare_campaign(draft.id)
    db.session.refresh(draft)
    assert (draft.status, draft.total) == ("sending", 1)


def test_a_campaign_to_all_does_not_wait_for_the_cancelled_one(make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    offer = make_offer()
    cancelled = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(cancelled.id)
    assert batches.claim_batch("a worker") is not None
    transitions.cancel_campaign(cancelled.id, "tests")
    draft = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    launch_actions.launch_campaign(draft.id, "tests", include_earlier_recipients=True)
    preparation.prepare_campaign(draft.id)
    db.session.refresh(draft)
    assert (draft.status, draft.total) == ("sending", 3)
