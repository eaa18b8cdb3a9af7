"""Erasing customers and users from campaigns: what stays of them and of others."""

from __future__ import annotations

from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers
from webapp.campaigns import erasure
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import MailIssue
from webapp.core.extensions import db


def test_the_replies_about_erased_customers_are_erased_but_not_the_reasons_of_skipped_emails(
    launch_campaign: LaunchCampaign,
) -> None:
    ids = create_customers(3)
    for campaign in (launch_campaign("ONE1"), launch_campaign("TWO2")):
        for customer_id, state, reply in zip(
            ids, ("failed", "skipped", "failed"), ("c0@example.com is unknown", "unsubscribed", "full"), strict=True
        ):
            db.session.add(MailIssue(campaign_id=campaign.id, customer_id=customer_id, state=state, text=reply))
    db.session.commit()

    erasure.clear_reply_texts(ids[:2])

    rows = db.session.execute(text("select state, text from mail_issue order by campaign_id, customer_id")).all()
    assert rows == [("failed", ""), ("skipped", "unsubscribed"), ("failed", "full")] * 2


def test_an_erased_user_is_replaced_only_in_their_own_campaigns_and_decisions(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(3)
    launched_by_eve, launched_by_ann = launch_campaign("ONE1"), launch_campaign("TWO2")
    for campaign, name in ((launched_by_eve, "eve@example.com"), (launched_by_ann, "ann@example.com")):
        campaign.launched_by = name
        db.session.commit()
        transitions.pause_campaign(campaign.id, name)
    for customer_id, state, reply in zip(
        ids,
        ("left", "left", "failed"),
        ("lost; dismissed by eve@example.com", "lost; dismissed by ann@example.com", "eve@example.com is unknown"),
        strict=True,
    ):
        db.session.add(MailIssue(campaign_id=launched_by_ann.id, customer_id=customer_id, state=state, text=reply))
    db.session.commit()

    erasure.replace_staff_in_campaigns("eve@example.com", "erased user 7")

    campaigns = db.session.execute(text("select launched_by, pause_reason from campaign order by id")).all()
    assert campaigns == [("erased user 7", "paused by erased user 7"), ("ann@example.com", "paused by ann@example.com")]
    assert db.session.scalars(text("select text from mail_issue order by customer_id")).all() == [
        "lost; dismissed by erased user 7",
        "lost; dismissed by ann@example.com",
        # The address of a customer, not of the user.
        "eve@example.com is unknown",
    ]
