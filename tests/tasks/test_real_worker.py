"""A real Huey consumer in a separate process runs the tasks of all packages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from flask import Flask
from flask.testing import FlaskClient

from tests.support import live_server
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.live_server import wait_until
from tests.support.smtp_relay import Relay
from webapp.accounts import notices
from webapp.accounts.models import StaffUser
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.redemptions import link_emails


def test_a_worker_sends_every_kind_of_email(
    app: Flask,
    client: FlaskClient,
    relay: Relay,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    make_staff_user: Callable[..., StaffUser],
) -> None:
    offer, _ada, bob = make_offer(), make_customer("ada@example.com"), make_customer("bob@example.com")
    for _ in range(2):
        # The second time, the receipt is emailed.
        client.post("/redeem", data={"code": "SUMMER25", "email": "ada@example.com"})
    link_emails.enqueue_link_email(offer.id, bob.id)
    notices.notify_new_device(make_staff_user("viewer"), "Firefox on Linux", "203.0.113.7")
    db.session.commit()
    notices.enqueue_account_emails()
    campaign = draft_actions.save_offer_draft(offer.id, EmailContent("Hello", "Text"), "resend", "tests")
    at = datetime.now(UTC) + timedelta(seconds=4)
    launch_actions.schedule_campaign(campaign.id, at, "mia")

    with live_server.worker(app.config["SETTINGS"]):
        relay.wait_for(4)
        wait_until(lambda: _reload(campaign).status == "done")

    assert campaign.launched_at is not None
    assert campaign.launched_at >= at
    assert {(message.to, message.message["Subject"]) for message in relay.messages} == {
        ("ada@example.com", "Your receipt: Summer"),
        ("bob@example.com", "Your personal link: Summer"),
        ("viewer@example.com", "New sign-in to Onecode: Firefox on Linux"),
        ("bob@example.com", "Hello"),
    }


def _reload(campaign: Campaign) -> Campaign:
    db.session.rollback()
    db.session.refresh(campaign)
    return campaign
