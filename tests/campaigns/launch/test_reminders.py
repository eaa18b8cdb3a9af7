"""Reminders: a second campaign, only to customers who have not redeemed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tests.support import live_server
from tests.support.campaigns import create_customers, delivery_status
from tests.support.live_server import wait_until
from tests.support.smtp_relay import Relay
from tests.support.sql_statements import recorded_statements
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.content.placeholders import REMINDER_SUBJECT, REMINDER_TEXT, EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.launch.audience import AudienceCount
from webapp.campaigns.models import Campaign, decode_gaps
from webapp.campaigns.sending import sender
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.offers.models import Offer


@pytest.fixture
def announced_offer(app: Flask, make_offer: Callable[..., Offer]) -> Offer:
    """An offer whose announcement to one customer, since deleted, is done."""
    create_customers(1, first=100_000)
    offer = make_offer()
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
    db.session.execute(
        text(
            "update campaign set status = 'done', prepared_at = now(), finished_at = now(), sent_in_batches = 1, "
            "total = 1 where id = :id"
        ),
        {"id": campaign.id},
    )
    db.session.execute(text("delete from customer"))
    db.session.commit()
    return offer


def redeem(offer: Offer, ids: list[int]) -> None:
    db.session.execute(
        text(
            "insert into redemption (customer_id, offer_id, channel) "
            "select unnest(cast(:ids as bigint[])), :offer, 'form' on conflict do nothing"
        ),
        {"ids": ids, "offer": offer.id},
    )
    db.session.commit()


def list_recipient_ids(campaign: Campaign) -> list[int]:
    rows = db.session.execute(text("select gaps from batch where campaign_id = :id order by seq"), {"id": campaign.id})
    return [customer_id for row in rows for customer_id in decode_gaps(row.gaps)]


def launch_reminder(offer: Offer) -> Campaign:
    campaign = launch_actions.launch_reminder(offer.id, EmailContent(), "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    return campaign


def test_a_reminder_goes_to_customers_who_have_not_redeemed(announced_offer: Offer) -> None:
    ids = create_customers(20)
    redeem(announced_offer, ids[::2])
    campaign = launch_reminder(announced_offer)
    assert list_recipient_ids(campaign) == ids[1::2]
    assert (campaign.kind, campaign.status, campaign.total) == ("reminder", "sending", 10)


def test_customers_who_are_not_reminded_see_why(announced_offer: Offer) -> None:
    redeemed, undone, _ = create_customers(3)
    redeem(announced_offer, [redeemed, undone])
    campaign = launch_reminder(announced_offer)
    db.session.execute(text("delete from redemption where customer_id = :id"), {"id": undone})
    db.session.commit()

    notes = [delivery_status(campaign, customer_id).note for customer_id in (redeemed, undone)]

    assert notes == [
        "The customer has already redeemed, so no reminder was sent.",
        "The customer was not among the recipients at the launch.",
    ]


def test_a_reminder_has_its_own_default_text(announced_offer: Offer, relay: Relay) -> None:
    create_customers(1)
    campaign = launch_reminder(announced_offer)
    sender.send_pending_emails()
    assert (campaign.subject, campaign.text) == (REMINDER_SUBJECT, REMINDER_TEXT)
    (email,) = relay.messages
    assert "Summer is still available to you until" in email.text


def test_redemptions_of_another_offer_do_not_matter(announced_offer: Offer, make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(3)
    redeem(make_offer("OTHER"), ids)
    draft = draft_actions.save_offer_draft(announced_offer.id, EmailContent(), "resend", "tests", "reminder")
    assert launch_audience.count_campaign_recipients(draft, announced_offer) == AudienceCount(3, 0, 0, 0)
    launch_actions.launch_campaign(draft.id, "tests")
    preparation.prepare_campaign(draft.id)
    assert list_recipient_ids(draft) == ids


def test_a_large_audience_is_assumed_to_have_customers_to_remind(
    announced_offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = create_customers(3)
    redeem(announced_offer, ids[:2])
    monkeypatch.setattr(launch_audience, "REMINDER_SCAN_LIMIT", 2)
    assert list_recipient_ids(launch_reminder(announced_offer)) == ids[2:]


@pytest.mark.parametrize(("kind", "is_skipped"), [("reminder", False), ("announcement", True)])
def test_a_cancelled_reminder_matters_until_the_next_one_is_finished(
    announced_offer: Offer, kind: str, is_skipped: bool
) -> None:
    ids = create_customers(3)
    cancelled = launch_reminder(announced_offer)
    db.session.execute(text("update batch set window_start = 1"))
    transitions.cancel_campaign(cancelled.id, "tests")
    # An offer has one announcement; here it is newer than the cancelled reminder.
    db.session.execute(text("delete from campaign where kind = 'announcement'"))
    values = {
        "status": "done",
        "launched_at": datetime.now(UTC),
        "finished_at": datetime.now(UTC),
        "sent_in_batches": 0,
    }
    for finished_kind in sorted({"announcement", kind}):
        db.session.add(Campaign(offer_id=announced_offer.id, kind=finished_kind, subject="s", text="t", **values))
    db.session.commit()
    assert list_recipient_ids(launch_reminder(announced_offer)) == (ids[1:] if is_skipped else ids)


def test_a_customer_who_redeems_between_two_windows_is_skipped(
    app: Flask, announced_offer: Offer, relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    ids = create_customers(300)
    settings = with_settings(mail_port=relay.port)
    relay.behaviour.seconds_per_mail = 0.01
    with live_server.worker(settings, MAIL_CONNECTIONS="1"):
        campaign = launch_actions.launch_reminder(announced_offer.id, EmailContent(), "tests").campaign
        relay.wait_for(20)
        redeem(announced_offer, ids[150:])
        wait_until(lambda: stats_queries.get_campaign_stats(campaign.id).waiting == 0)
    reached = {int(address.split("@")[0][1:]) for address in relay.recipients}
    # Windows of 50 that were open at that moment were sent completely.
    assert reached == set(range(150))
    assert stats_queries.get_campaign_stats(campaign.id).skipped == 150


def test_a_customer_whose_redemption_was_undone_is_reminded(announced_offer: Offer, relay: Relay) -> None:
    ids = create_customers(2)
    campaign = launch_reminder(announced_offer)
    redeem(announced_offer, ids)
    db.session.execute(text("delete from redemption where customer_id = :id"), {"id": ids[1]})
    db.session.commit()
    sender.send_pending_emails()
    assert set(relay.recipients) == {"c1@example.com"}
    assert stats_queries.get_campaign_stats(campaign.id).skipped == 1


def test_a_customer_who_redeems_while_deferred_is_not_reminded(announced_offer: Offer, relay: Relay) -> None:
    ids = create_customers(1)
    relay.behaviour.rcpt["c0@example.com"] = "450 later"
    campaign = launch_reminder(announced_offer)
    sender.send_pending_emails()
    redeem(announced_offer, ids)
    relay.behaviour.rcpt.clear()
    db.session.execute(text("update mail_issue set next_at = now()"))
    db.session.commit()
    sender.send_pending_emails()
    assert (relay.recipients, stats_queries.get_campaign_stats(campaign.id).skipped) == ({}, 1)


def test_preparation_checks_redemptions_block_by_block(announced_offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = create_customers(1000)
    redeem(announced_offer, [i for n, i in enumerate(ids) if n % 10])
    monkeypatch.setattr(preparation, "AUDIENCE_CHUNK_SIZE", 100)
    campaign = launch_actions.launch_reminder(announced_offer.id, EmailContent(), "tests").campaign
    with recorded_statements() as executed:
        preparation.prepare_campaign(campaign.id)
    assert list_recipient_ids(campaign) == ids[::10]
    parameters = [values for statement, values in executed if "from redemption" in statement]
    assert [len(values["ids"]) for values in parameters] == [100] * 10


def test_an_offer_without_announcement_cannot_have_a_reminder(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    for action in (
        lambda: launch_actions.launch_reminder(offer.id, EmailContent(), "tests"),
        lambda: draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests", "reminder"),
    ):
        with pytest.raises(DomainError, match="This offer has not been announced yet"):
            action()


def test_an_offer_has_one_open_reminder_at_a_time(announced_offer: Offer, relay: Relay) -> None:
    create_customers(2)
    first = launch_reminder(announced_offer)
    with pytest.raises(DomainError, match=f"Campaign {first.id} is an unfinished reminder for this offer"):
        launch_actions.launch_reminder(announced_offer.id, EmailContent(), "tests")
    sender.send_pending_emails()
    second = launch_reminder(announced_offer)
    assert (second.id != first.id, second.status) == (True, "sending")
    transitions.cancel_campaign(second.id, "tests")
    assert launch_reminder(announced_offer).status == "sending"


def test_staff_write_another_reminder_when_one_is_finished(
    staff: FlaskClient, announced_offer: Offer, relay: Relay
) -> None:
    create_customers(2)
    first = launch_reminder(announced_offer)
    assert "Write a reminder" not in staff.get(f"/offers/{announced_offer.id}").text
    sender.send_pending_emails()
    assert "Write a reminder" in staff.get(f"/offers/{announced_offer.id}").text

    form = {"subject": "Last chance", "text": "", "html": "", "uncertain_policy": "resend"}
    response = staff.post(f"/offers/{announced_offer.id}/reminder", data=form)

    draft = campaign_queries.find_current_campaign(announced_offer.id, "reminder")
    assert response.status_code == 302
    assert draft is not None
    assert (draft.id != first.id, draft.status, draft.subject) == (True, "draft", "Last chance")


def test_concurrent_reminders_create_one(app: Flask, announced_offer: Offer) -> None:
    create_customers(2)
    offer_id = announced_offer.id
    outcomes: list[str] = []

    def remind() -> None:
        with app.app_context():
            try:
                outcomes.append(launch_actions.launch_reminder(offer_id, EmailContent(), "tests").campaign.status)
            except DomainError as error:
                outcomes.append(error.key)

    threads = [threading.Thread(target=remind) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 5 + ["preparing"]


def test_the_database_allows_one_open_reminder(announced_offer: Offer) -> None:
    rows = text(
        "insert into campaign (offer_id, kind, subject, text) select :id, 'reminder', '', '' from (values (1), (2)) v"
    )
    with pytest.raises(IntegrityError, match="uq_campaign_open_reminder"):
        db.session.execute(rows, {"id": announced_offer.id})


def test_a_refused_reminder_leaves_no_draft(announced_offer: Offer) -> None:
    ids = create_customers(3)
    redeem(announced_offer, ids)
    with pytest.raises(DomainError, match="every customer who can be emailed has redeemed") as raised:
        launch_actions.launch_reminder(announced_offer.id, EmailContent(), "tests")
    assert raised.value.key == "audience_empty"
    assert campaign_queries.find_current_campaign(announced_offer.id, "reminder") is None


def test_the_launch_page_of_a_reminder_counts_redemptions(staff: FlaskClient, announced_offer: Offer) -> None:
    ids = create_customers(10)
    redeem(announced_offer, ids[:3])
    db.session.execute(
        text("insert into suppression (email, reason, source) values ('c9@example.com', 'bounced', 'staff')")
    )
    db.session.commit()
    assert "Write a reminder" in staff.get(f"/offers/{announced_offer.id}").text
    assert "is still available to you until" in staff.get(f"/offers/{announced_offer.id}/reminder").text
    form = {"subject": "Still", "text": "", "html": "", "uncertain_policy": "resend", "launch": "1"}
    response = staff.post(f"/offers/{announced_offer.id}/reminder", data=form, follow_redirects=True)
    page = " ".join(response.text.split())
    assert "<strong>6 customers</strong> who have not redeemed." in page
    assert "3 customers have already redeemed and will be skipped. 1 customer on the suppression list will be" in page
    draft = campaign_queries.find_current_campaign(announced_offer.id, "reminder")
    assert draft is not None
    assert draft.text == REMINDER_TEXT
    response = staff.post(f"/campaigns/{draft.id}/launch", data={"when": "now"}, follow_redirects=True)
    assert "Launched." in response.text
    assert "Write a reminder" not in staff.get(f"/offers/{announced_offer.id}").text


def test_the_api_refuses_a_second_open_reminder(api: FlaskClient, announced_offer: Offer) -> None:
    create_customers(3)
    first = api.post("/api/v1/offers/SUMMER25/reminders", json={"mail": {"subject": "Still there"}})
    assert (first.status_code, first.headers["Location"]) == (202, f"/api/v1/campaigns/{first.get_json()['id']}")
    assert (first.get_json()["kind"], first.get_json()["status"]) == ("reminder", "preparing")
    second = api.post("/api/v1/offers/SUMMER25/reminders", json={})
    assert (second.status_code, second.get_json()["code"]) == (409, "conflict")
    assert f"Campaign {first.get_json()['id']} " in second.get_json()["detail"]


@pytest.mark.parametrize("status", ["preparing", "sending", "paused"])
def test_a_reminder_cannot_start_before_the_announcement_is_done(
    api: FlaskClient, staff: FlaskClient, announced_offer: Offer, status: str
) -> None:
    create_customers(3)
    db.session.execute(
        text("update campaign set status = :status, finished_at = null, sent_in_batches = null"), {"status": status}
    )
    db.session.execute(text("update offer set ends_at = null"))
    db.session.commit()
    response = api.post("/api/v1/offers/SUMMER25/reminders", json={})
    assert response.status_code == 409
    assert "Launch the reminder after it has finished" in response.get_json()["detail"]
    draft = draft_actions.save_offer_draft(announced_offer.id, EmailContent(), "resend", "tests", "reminder")
    page = staff.post(f"/campaigns/{draft.id}/launch", data={"when": "now"})
    assert (page.status_code, "Launch the reminder after it has finished" in page.text) == (409, True)
    assert (
        launch_actions.schedule_campaign(draft.id, datetime(2199, 1, 1, tzinfo=UTC), "tests").campaign.status
        == "scheduled"
    )
    db.session.execute(text("update campaign set status = 'done' where kind = 'announcement'"))
    db.session.commit()
    assert launch_actions.launch_campaign(draft.id, "tests").campaign.status == "preparing"


def test_a_reminder_can_be_scheduled(api: FlaskClient, announced_offer: Offer) -> None:
    create_customers(3)
    db.session.execute(text("update offer set ends_at = null"))
    db.session.commit()
    response = api.post("/api/v1/offers/SUMMER25/reminders", json={"at": "2199-01-01T09:00:00Z"})
    assert (response.get_json()["status"], response.get_json()["scheduled_at"]) == ("scheduled", "2199-01-01T09:00:00Z")
    invalid = api.post("/api/v1/offers/SUMMER25/reminders", json={"mail": {"text": "{{ shoe }}"}})
    assert (invalid.status_code, invalid.get_json()["errors"][0]["pointer"]) == (422, "/mail/text")
