"""Resending and dismissing deliveries: which ones, and when it is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text

from tests.support.campaigns import LaunchCampaign, create_customers
from tests.support.factories import MakeOffer
from webapp.accounts.models import AuditEntry
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign, MailIssue
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions

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


@pytest.mark.parametrize("state", ["skipped", "sent_later", "left", "deferred", "sent"])
def test_only_failed_and_uncertain_emails_are_resent(failed: Campaign, state: str) -> None:
    stored = "failed" if state == "sent" else state
    db.session.execute(text("update mail_issue set state = :state"), {"state": stored})
    db.session.commit()

    with pytest.raises(DomainError, match="These emails can't be resent"):
        delivery_actions.resend_deliveries(failed.id, DeliverySelection(state), "tests")

    assert db.session.execute(text("select state, next_at from mail_issue")).one() == (stored, None)


# --- the selected emails ----------------------------------------------------------------------------


@pytest.fixture
def two_campaigns(launch_campaign: LaunchCampaign) -> list[Campaign]:
    """Two campaigns in which the emails to four customers failed."""
    ids = create_customers(4)
    campaigns = [launch_campaign(code) for code in ("ONE1", "TWO2")]
    db.session.execute(text("update batch set status = 'done', window_start = 4, window_end = 4"))
    for campaign in campaigns:
        for customer_id, (code, reply) in zip(ids, REPLIES, strict=True):
            values = {"campaign_id": campaign.id, "customer_id": customer_id, "smtp_code": code, "text": reply}
            db.session.add(MailIssue(state="failed", **values))
    db.session.commit()
    return campaigns


# The first three have the same cause without their codes.
REPLIES: list[tuple[int | None, str]] = [(550, "no"), (554, "no"), (None, ""), (550, "5.1.1 no")]


def list_states(campaign: Campaign) -> list[str]:
    statement = "select state from mail_issue where campaign_id = :id order by customer_id"
    return list(db.session.scalars(text(statement), {"id": campaign.id}))


@pytest.mark.parametrize(
    ("selection", "selected"),
    [
        (DeliverySelection("failed"), [0, 1, 2, 3]),
        (DeliverySelection("failed", customer_id=2), [1]),
        (DeliverySelection("failed", code=550, cause=""), [0]),
        (DeliverySelection("failed", code=554, cause=""), [1]),
        (DeliverySelection("failed", code=None, cause=""), [2]),
        (DeliverySelection("failed", code=550, cause="5.1.1"), [3]),
    ],
)
@pytest.mark.parametrize("state", ["failed", "uncertain"])
def test_only_the_selected_emails_of_the_campaign_are_resolved(
    two_campaigns: list[Campaign], selection: DeliverySelection, selected: list[int], state: str
) -> None:
    other, campaign = two_campaigns
    db.session.execute(text("update mail_issue set state = :state, at = now() - interval '1 day'"), {"state": state})
    db.session.commit()
    selection = replace(selection, state=state)

    if state == "failed":
        delivery_actions.resend_deliveries(campaign.id, selection, "mia")
    else:
        delivery_actions.dismiss_uncertain_deliveries(campaign.id, selection, "mia")

    resolved = {"failed": "deferred", "uncertain": "left"}[state]
    assert list_states(campaign) == [resolved if n in selected else state for n in range(4)]
    assert list_states(other) == [state] * 4
    recent = "select customer_id - 1 from mail_issue where at > now() - interval '1 hour' order by customer_id"
    assert list(db.session.scalars(text(recent))) == selected
    action = {"failed": "campaign.sent_again", "uncertain": "campaign.left_uncertain"}[state]
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == action)).one()
    assert (entry.actor, entry.subject) == ("mia", str(campaign.id))


def test_emails_to_erased_customers_are_not_resent(two_campaigns: list[Campaign]) -> None:
    campaign = two_campaigns[0]
    for customer_id in (2, 3):
        customer_actions.erase_customer(customer_id, by="tests")
    assert delivery_actions.resend_deliveries(campaign.id, FAILED, "tests").resent == 2
    assert list_states(campaign) == ["deferred", "failed", "failed", "deferred"]
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.resend_deliveries(campaign.id, FAILED, "tests")


def test_a_finished_campaign_that_is_sent_again_starts_a_new_period(two_campaigns: list[Campaign]) -> None:
    statement = "update campaign set status = 'done', sent_in_batches = 0, sending_since = now() - interval '1 day'"
    db.session.execute(text(statement))
    db.session.commit()
    other, campaign = two_campaigns
    delivery_actions.resend_deliveries(campaign.id, FAILED, "tests")
    statement = "select status, sending_since > now() - interval '1 hour' from campaign order by id"
    assert db.session.execute(text(statement)).all() == [("done", False), ("sending", True)]
    assert campaign.id > other.id


def test_an_export_is_recorded_with_who_made_it(failed: Campaign) -> None:
    delivery_actions.record_recipient_export(failed.id, "", "mia")
    delivery_actions.record_recipient_export(failed.id, "sent", "joe")
    entries = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "campaign.exported")).all()
    assert {(entry.actor, entry.subject, (entry.detail or {}).get("state")) for entry in entries} == {
        ("mia", str(failed.id), None),
        ("joe", str(failed.id), "sent"),
    }
