"""Recipients whose addresses or names can not be put into an email."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from tests.support.campaigns import create_customers
from tests.support.smtp_relay import Relay
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import sender
from webapp.core.extensions import db
from webapp.offers.models import Offer


def test_an_invalid_address_fails_with_a_reason_and_the_others_are_sent(
    make_offer: Callable[..., Offer], relay: Relay
) -> None:
    create_customers(4)
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(subject="For {{ customer.name }}"), "resend", "tests")
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.execute(text("update customer set email = 'no-at-sign', email_as_given = 'no-at-sign' where id = 2"))
    db.session.execute(text("update customer set name = E'Ada\\r\\nBcc: eve@example.com' where id = 3"))
    db.session.commit()
    sender.send_pending_emails()
    assert len(relay.messages) == 3
    assert all(email.message["Bcc"] is None for email in relay.messages)
    assert "For Ada Bcc: eve@example.com" in {str(email.message["Subject"]) for email in relay.messages}
    state, reason = db.session.execute(text("select state, text from mail_issue where customer_id = 2")).one()
    assert (state, reason) == ("failed", "the email could not be rendered: “no-at-sign” is not a valid email address")
    db.session.refresh(campaign)
    assert campaign.status == "done"
