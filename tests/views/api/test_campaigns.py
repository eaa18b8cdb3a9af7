"""API operations for campaigns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.campaigns import LaunchCampaign, create_customers
from tests.support.smtp_relay import Relay
from webapp.accounts import api_key_actions
from webapp.accounts.models import AuditEntry
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import auto_pause, sender
from webapp.core.extensions import db
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer


def test_a_launch_returns_the_location_of_the_campaign(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    make_offer()
    response = api.post("/api/v1/offers/summer-25/launch")
    assert (response.status_code, response.headers["Location"]) == (202, "/api/v1/campaigns/1")
    assert (response.get_json()["id"], response.get_json()["status"]) == (1, "preparing")


def test_a_second_launch_returns_the_same_response(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    make_offer()
    first = api.post("/api/v1/offers/SUMMER25/launch")
    second = api.post("/api/v1/offers/SUMMER25/launch")
    assert (second.status_code, second.headers["Location"]) == (202, first.headers["Location"])
    assert second.json == first.json


def test_the_status_contains_the_counts(api: FlaskClient, make_offer: Callable[..., Offer], relay: Relay) -> None:
    create_customers(5)
    make_offer()
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    relay.behaviour.rcpt["c2@example.com"] = "450 later"
    api.post("/api/v1/offers/SUMMER25/launch")
    preparation.prepare_campaign(1)
    sender.send_pending_emails()
    body = api.get("/api/v1/campaigns/1").get_json()
    assert body["status"] == "sending"
    assert {name: body[name] for name in ("total", "sent", "failed", "deferred", "uncertain", "skipped")} == {
        "total": 5,
        "sent": 3,
        "failed": 1,
        "deferred": 1,
        "uncertain": 0,
        "skipped": 0,
    }
    assert body["offer"] == "SUMMER25"
    assert body["launched_at"].endswith("Z")


def test_a_campaign_is_paused_resumed_and_cancelled(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    make_offer()
    api.post("/api/v1/offers/SUMMER25/launch")
    preparation.prepare_campaign(1)
    states = [api.post(f"/api/v1/campaigns/1/{verb}").get_json()["status"] for verb in ("pause", "resume", "cancel")]
    assert states == ["paused", "sending", "cancelled"]


def test_launching_to_an_empty_audience_is_a_conflict(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    make_offer()
    response = api.post("/api/v1/offers/SUMMER25/launch")
    assert (response.status_code, response.get_json()["code"]) == (409, "audience_empty")
    assert response.mimetype == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/api/v1/offers/NOSUCH/launch", "/api/v1/offers/%21/launch", "/api/v1/campaigns/9/pause"]
)
def test_an_unknown_offer_or_campaign_is_not_found(api: FlaskClient, path: str) -> None:
    assert api.post(path).status_code == 404


def test_an_id_out_of_range_is_not_found(api: FlaskClient) -> None:
    assert api.get(f"/api/v1/campaigns/{1 << 70}").status_code == 404


def test_a_launch_needs_an_api_key(client: FlaskClient) -> None:
    assert client.post("/api/v1/offers/SUMMER25/launch").status_code == 401


def test_a_finished_campaign_cannot_be_cancelled(
    api: FlaskClient, make_offer: Callable[..., Offer], relay: Relay
) -> None:
    create_customers(1)
    make_offer()
    api.post("/api/v1/offers/SUMMER25/launch")
    preparation.prepare_campaign(1)
    sender.send_pending_emails()
    response = api.post("/api/v1/campaigns/1/cancel")
    assert (response.status_code, response.get_json()["code"]) == (409, "conflict")


# --- deliveries -------------------------------------------------------------------------------------


@pytest.fixture
def unresolved(launch_campaign: LaunchCampaign) -> list[Campaign]:
    """Two sending campaigns in which c0 and c1 failed and c2 and c3 are uncertain."""
    ids = create_customers(5)
    campaigns = [launch_campaign(code, policy="hold") for code in ("ONE1", "TWO2")]
    db.session.execute(text("update batch set status = 'done', window_start = 5, window_end = 5"))
    for campaign in campaigns:
        for n, state in enumerate(("failed", "failed", "uncertain", "uncertain")):
            db.session.add(MailIssue(campaign_id=campaign.id, customer_id=ids[n], state=state, smtp_code=550))
    db.session.commit()
    return campaigns


def list_states(campaign: Campaign) -> list[str]:
    statement = "select state from mail_issue where campaign_id = :id order by customer_id"
    return list(db.session.scalars(text(statement), {"id": campaign.id}))


@pytest.mark.parametrize(
    ("body", "result", "states"),
    [
        (
            {"state": "failed", "decision": "send_again"},
            {"mails": 1, "left_out": 1}, ["failed", "deferred", "uncertain", "uncertain"],
        ),
        (
            {"state": "uncertain", "decision": "send_again"},
            {"mails": 2, "left_out": 0}, ["failed", "failed", "deferred", "deferred"],
        ),
        (
            {"state": "uncertain", "decision": "send_again", "email": "C3@Example.com"},
            {"mails": 1, "left_out": 0}, ["failed", "failed", "uncertain", "deferred"],
        ),
        (
            {"state": "uncertain", "decision": "leave"},
            {"mails": 2, "left_out": 0}, ["failed", "failed", "left", "left"],
        ),
        (
            {"state": "uncertain", "decision": "leave", "email": "c2@example.com"},
            {"mails": 1, "left_out": 0}, ["failed", "failed", "left", "uncertain"],
        ),
    ],
)  # fmt: skip
def test_a_decision_resolves_the_emails_of_one_customer_or_of_a_state(
    api: FlaskClient, unresolved: list[Campaign], body: dict[str, str], result: dict[str, int], states: list[str]
) -> None:
    other, campaign = unresolved
    suppression_actions.add_suppression("c0@example.com", "unsubscribed", "staff")
    db.session.commit()
    response = api.post(f"/api/v1/campaigns/{campaign.id}/decisions", json=body)
    assert (response.status_code, response.json) == (200, result)
    assert list_states(campaign) == states
    assert list_states(other) == ["failed", "failed", "uncertain", "uncertain"]
    assert db.session.scalars(select(AuditEntry.actor).order_by(AuditEntry.id.desc())).first() == "API key tests"
    # A repeated call changes nothing.
    assert api.post(f"/api/v1/campaigns/{campaign.id}/decisions", json=body).status_code == 409
    assert list_states(campaign) == states


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"state": "failed", "decision": "leave"}, 409),
        ({"state": "failed", "decision": "send_again", "email": "no@example.com"}, 404),
        ({"state": "failed", "decision": "send_again", "email": "no address"}, 404),
        ({"state": "skipped", "decision": "send_again"}, 422),
        ({"state": "failed", "decision": "send_again", "customer": 1}, 422),
    ],
)
def test_an_invalid_decision_resolves_nothing(
    api: FlaskClient, unresolved: list[Campaign], body: dict[str, object], status: int
) -> None:
    assert api.post(f"/api/v1/campaigns/{unresolved[0].id}/decisions", json=body).status_code == status
    assert list_states(unresolved[0]) == ["failed", "failed", "uncertain", "uncertain"]


def test_a_key_without_manage_can_read_deliveries_and_resolve_none(app: Flask, unresolved: list[Campaign]) -> None:
    key = api_key_actions.create_api_key("reader", ["read"], by="tests")
    reader, headers = app.test_client(), {"Authorization": f"Bearer {key}"}
    path = f"/api/v1/campaigns/{unresolved[0].id}"
    assert reader.get(f"{path}/recipients/c0@example.com", headers=headers).status_code == 200
    body = {"state": "failed", "decision": "send_again"}
    assert reader.post(f"{path}/decisions", json=body, headers=headers).status_code == 403
    assert list_states(unresolved[0]) == ["failed", "failed", "uncertain", "uncertain"]


def test_the_delivery_to_a_recipient_has_its_reply_and_next_attempt(
    api: FlaskClient, unresolved: list[Campaign]
) -> None:
    db.session.execute(
        text(
            "update mail_issue set state = 'deferred', smtp_code = 450, text = '4.2.1 later', attempts = 2, "
            "at = '2026-05-01 12:00:00+00', next_at = '2026-05-01 14:30:00+02' where customer_id = 2"
        )
    )
    db.session.commit()
    second = unresolved[1]
    path = f"/api/v1/campaigns/{second.id}/recipients"
    assert api.get(f"{path}/C1@Example.com").get_json() == {
        "campaign": second.id, "email": "c1@example.com", "state": "deferred", "at": "2026-05-01T12:00:00Z",
        "code": 450, "text": "4.2.1 later", "note": "", "next_at": "2026-05-01T12:30:00Z", "attempts": 2,
        "ahead": None,
    }  # fmt: skip
    db.session.execute(text("update batch set status = 'pending', window_start = 0, window_end = 0"))
    db.session.commit()
    waiting = api.get(f"{path}/c4@example.com").get_json()
    assert (waiting["state"], waiting["ahead"], waiting["at"]) == ("waiting", 4, None)
    create_customers(1, first=9)
    late = api.get(f"{path}/c9@example.com").get_json()
    assert (late["state"], late["note"]) == ("not_recipient", "The customer was created after the launch.")
    for unknown in (f"{path}/no@example.com", "/api/v1/campaigns/99/recipients/c1@example.com"):
        assert api.get(unknown).status_code == 404


def test_the_status_says_why_no_email_is_sent(api: FlaskClient, unresolved: list[Campaign]) -> None:
    auto_pause.pause_automatically(unresolved[0].id, "spam")
    auto_pause.set_delivery_warning("The relay is down.")
    bodies = [api.get(f"/api/v1/campaigns/{campaign.id}").get_json() for campaign in unresolved]
    assert [(body["status"], body["pause_reason"], body["trouble"]) for body in bodies] == [
        ("paused", "spam", None),
        ("sending", None, "The relay is down."),
    ]


def test_campaigns_are_listed_by_offer_and_status_in_pages(api: FlaskClient, unresolved: list[Campaign]) -> None:
    first, second = unresolved
    auto_pause.pause_automatically(first.id, "spam")

    def list_ids(**query: object) -> list[int]:
        body = api.get("/api/v1/campaigns", query_string=query).get_json()
        return [campaign["id"] for campaign in body["campaigns"]]

    assert list_ids() == [second.id, first.id]
    assert list_ids(offer="one-1") == [first.id]
    assert list_ids(status="sending") == [second.id]
    assert list_ids(status="sending", offer="ONE1") == []
    body = api.get("/api/v1/campaigns?limit=1").get_json()
    assert [campaign["offer"] for campaign in body["campaigns"]] == ["TWO2"]
    assert list_ids(limit=1, cursor=body["next_cursor"]) == [first.id]
    assert api.get("/api/v1/campaigns?limit=2").get_json()["next_cursor"] is None
    assert api.get("/api/v1/campaigns?offer=NOSUCH").status_code == 404


def test_every_field_of_a_campaign_has_its_own_value(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(21)
    make_offer("Summer-25")
    api.post("/api/v1/offers/SUMMER25/launch")
    preparation.prepare_campaign(1)
    states = ["failed"] + ["deferred"] * 2 + ["uncertain"] * 3 + ["skipped"] * 4 + ["left"] * 5
    for customer_id, state in zip(ids, states, strict=False):
        db.session.add(MailIssue(campaign_id=1, customer_id=customer_id, state=state))
    db.session.execute(text("update batch set sent = 2, window_start = 17, window_end = 17"))
    db.session.execute(text("update campaign set trouble = 'slow', pause_reason = 'why'"))
    db.session.execute(
        text("update campaign set launched_at = '2026-01-01 00:00Z', scheduled_at = '2026-01-02 00:00Z'")
    )
    db.session.execute(text("update campaign set finished_at = '2026-01-03 00:00+02'"))
    db.session.commit()
    assert api.get("/api/v1/campaigns/1").get_json() == {
        "id": 1, "offer": "Summer-25", "kind": "announcement", "status": "sending",
        "pause_reason": "why", "trouble": "slow",
        "total": 21, "sent": 2, "failed": 1, "deferred": 2, "uncertain": 3, "skipped": 4, "left": 5,
        "rate": None, "seconds_left": None, "scheduled_at": "2026-01-02T00:00:00Z",
        "launched_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-02T22:00:00Z",
    }  # fmt: skip


def test_the_rate_has_two_decimals_and_a_forecast(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    make_offer()
    api.post("/api/v1/offers/SUMMER25/launch")
    preparation.prepare_campaign(1)
    # A worker has sent one email in 70 seconds.
    db.session.execute(text("update campaign set sending_since = now() - interval '70 s'"))
    db.session.execute(text("update batch set sent = 1, window_start = 1, window_end = 1, status = 'sending'"))
    db.session.execute(text("update batch set lease_until = now() + interval '1 hour'"))
    db.session.commit()
    body = api.get("/api/v1/campaigns/1").get_json()
    assert body["rate"] == 0.01
    assert 140 <= body["seconds_left"] < 3600


def test_a_reminder_has_the_content_of_the_request(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    now = datetime.now(UTC)
    values = {"status": "done", "launched_at": now, "finished_at": now, "sent_in_batches": 1}
    db.session.add(Campaign(offer_id=offer.id, subject="s", text="t", **values))
    db.session.commit()
    mail = {"subject": "Still there", "text": "Hello", "html": "<p>Hello</p>"}
    response = api.post("/api/v1/offers/SUMMER25/reminders", json={"mail": mail})
    reminder = db.session.get_one(Campaign, response.get_json()["id"])
    assert {"subject": reminder.subject, "text": reminder.text, "html": reminder.html} == mail


def test_every_step_is_recorded_with_the_key(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    make_offer()
    api.post("/api/v1/offers/SUMMER25/launch")
    for verb in ("pause", "resume", "cancel"):
        api.post(f"/api/v1/campaigns/1/{verb}")
    api.post("/api/v1/offers/SUMMER25/reminders", json={})
    entries = db.session.execute(
        select(AuditEntry.action, AuditEntry.actor)
        .where(AuditEntry.action.startswith("campaign."))
        .order_by(AuditEntry.id)
    ).all()
    steps = ("launched", "paused", "resumed", "cancelled", "launched")
    assert entries == [(f"campaign.{step}", "API key tests") for step in steps]


@pytest.fixture
def undecided(api: FlaskClient, make_offer: Callable[..., Offer]) -> list[int]:
    """A finished campaign whose emails to c0 to c3 are uncertain, and to c4 failed."""
    ids = create_customers(5)
    make_offer()
    api.post("/api/v1/offers/SUMMER25/launch")
    preparation.prepare_campaign(1)
    for customer_id in ids:
        state = "failed" if customer_id == ids[4] else "uncertain"
        db.session.add(MailIssue(campaign_id=1, customer_id=customer_id, state=state))
    db.session.execute(text("update batch set status = 'done', window_start = 5, window_end = 5"))
    db.session.execute(text("insert into suppression (email, reason, source) values ('c2@example.com', 'bounced', '')"))
    db.session.commit()
    return ids


def test_decisions_are_for_one_customer_or_for_all_emails_of_a_state(api: FlaskClient, undecided: list[int]) -> None:
    def decide(**body: str) -> tuple[int, object]:
        response = api.post("/api/v1/campaigns/1/decisions", json=body)
        return response.status_code, response.get_json().get("code", response.get_json())

    def states() -> list[str]:
        return list(db.session.scalars(text("select state from mail_issue order by customer_id")))

    uncertain = {"state": "uncertain", "email": "C1@example.com"}
    assert decide(**uncertain, decision="leave") == (200, {"mails": 1, "left_out": 0})
    assert states() == ["uncertain", "left", "uncertain", "uncertain", "failed"]
    assert decide(**uncertain, decision="leave") == (409, "conflict")
    assert decide(state="failed", decision="leave") == (409, "conflict")
    assert decide(state="uncertain", decision="send_again", email="no@example.com") == (404, "not_found")
    assert decide(state="uncertain", decision="send_again", email="c0@example.com") == (
        200,
        {"mails": 1, "left_out": 0},
    )
    assert states() == ["deferred", "left", "uncertain", "uncertain", "failed"]
    assert decide(state="uncertain", decision="send_again") == (200, {"mails": 1, "left_out": 1})
    assert states() == ["deferred", "left", "uncertain", "deferred", "failed"]
    actors = select(AuditEntry.actor).where(AuditEntry.action.in_(("campaign.left_uncertain", "campaign.sent_again")))
    assert db.session.scalars(actors).all() == ["API key tests"] * 3


def test_a_recipient_is_found_by_any_spelling_of_the_address(api: FlaskClient, undecided: list[int]) -> None:
    db.session.execute(text("update mail_issue set smtp_code = 550, text = '5.1.1 no', attempts = 2"))
    db.session.commit()
    body = api.get("/api/v1/campaigns/1/recipients/C4@Example.com").get_json()
    at = body.pop("at")
    assert datetime.fromisoformat(at).tzinfo is not None
    assert at.endswith("Z")
    assert body == {
        "campaign": 1, "email": "c4@example.com", "state": "failed", "code": 550, "text": "5.1.1 no", "note": "",
        "next_at": None, "attempts": 2, "ahead": None,
    }  # fmt: skip
    for path in ("1/recipients/no@example.com", "1/recipients/c4", "9/recipients/c4@example.com"):
        assert api.get(f"/api/v1/campaigns/{path}").status_code == 404
