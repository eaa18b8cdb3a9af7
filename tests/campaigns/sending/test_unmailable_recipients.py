"""Recipients whose names or addresses are none that a mail could carry: one fails with words, the others go on."""

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


def test_an_address_that_can_not_be_mailed_is_failed_with_words_and_the_others_go_on(
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
    assert all(received.message["Bcc"] is None for received in relay.messages)
    assert "For Ada Bcc: eve@example.com" in {str(received.message["Subject"]) for received in relay.messages}
    state, words = db.session.execute(text("select state, text from mail_issue where customer_id = 2")).one()
    assert state == "failed"
    assert "“no-at-sign” is not a valid email address" in words
    db.session.refresh(campaign)
    assert campaign.status == "done"
