"""API operations for campaigns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from tests.support.campaigns import create_customers
from tests.support.smtp_relay import Relay
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import sender
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
