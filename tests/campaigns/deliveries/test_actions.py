"""Resending and dismissing deliveries: when it is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import create_customers
from tests.support.factories import MakeOffer
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign, MailIssue
from webapp.core.errors import DomainError
from webapp.core.extensions import db

FAILED = DeliverySelection("failed")


@pytest.fixture
def failed(app: Flask, make_offer: MakeOffer) -> Campaign:
    """A campaign that is being sent, with one failed delivery."""
    ids = create_customers(2)
    campaign = launch_actions.launch_announcement(make_offer(max_redemptions=5).id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=ids[0], state="failed", text=""))
    db.session.commit()
    return campaign


def count_due() -> int:
    return int(db.session.scalar(text("select count(*) from mail_issue where state = 'deferred'")) or 0)


@pytest.mark.parametrize(
    ("statement", "error_code"),
    [
        ("update offer set ends_at = :past", "offer_expired"),
        ("update offer set paused_at = :past", "offer_paused"),
        ("update offer_counter set redeemed = max_redemptions", "offer_exhausted"),
    ],
)
def test_emails_with_a_code_that_cannot_be_redeemed_are_not_resent(
    failed: Campaign, statement: str, error_code: str
) -> None:
    values: dict[str, Any] = {"past": datetime.now(UTC) - timedelta(hours=1)} if ":past" in statement else {}
    db.session.execute(text("update offer set starts_at = now() - interval '2 hours'"))
    db.session.execute(text(statement), values)
    db.session.commit()

    with pytest.raises(DomainError) as refused:
        delivery_actions.resend_deliveries(failed.id, FAILED, "tests")

    assert refused.value.key == error_code
    db.session.rollback()
    assert count_due() == 0


@pytest.mark.parametrize(("status", "is_refused"), [("sending", False), ("done", False), ("cancelled", True)])
def test_the_status_in_the_database_counts(failed: Campaign, status: str, is_refused: bool) -> None:
    """A campaign that was loaded before may have been changed by another process."""
    assert failed.status == "sending"
    with db.engine.begin() as connection:
        connection.execute(
            text("update campaign set status = :status, cancelled_at = case when :status = 'cancelled' then now() end"),
            {"status": status},
        )

    if is_refused:
        with pytest.raises(DomainError, match="cancelled"):
            delivery_actions.resend_deliveries(failed.id, FAILED, "tests")
    else:
        assert delivery_actions.resend_deliveries(failed.id, FAILED, "tests").resent == 1

    db.session.rollback()
    assert count_due() == (0 if is_refused else 1)
