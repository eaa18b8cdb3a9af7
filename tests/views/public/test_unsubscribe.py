"""Unsubscribing by link or one click, and subscribing again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from webapp.accounts.models import AuditEntry
from webapp.campaigns import tokens as campaign_tokens
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer, Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.suppressions import queries as suppression_queries

CAMPAIGN = 3
ONE_CLICK = "List-Unsubscribe=One-Click"
PROVIDER = {"Origin": "https://mail.example.org", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture
def token(make_customer: Callable[..., Customer]) -> str:
    make_customer()
    return campaign_tokens.build_unsubscribe_url(1, CAMPAIGN).rpartition("/")[2]


def find_suppression() -> Suppression | None:
    db.session.rollback()
    return suppression_queries.find_suppression_by_email("ada@example.com")


def suppression_reason() -> str | None:
    suppression = find_suppression()
    return suppression.reason if suppression else None


def test_opening_the_link_changes_nothing(client: FlaskClient, token: str) -> None:
    response = client.get(f"/u/{token}")
    assert ">Unsubscribe</button>" in response.text
    assert "ada@example.com" not in response.text
    assert client.get(f"/u/{token}/back").status_code == 405
    assert suppression_reason() is None


def test_the_button_unsubscribes_and_records_the_campaign(client: FlaskClient, token: str) -> None:
    response = client.post(f"/u/{token}", headers={"Origin": "http://localhost"})
    assert (response.status_code, "You are unsubscribed" in response.text) == (200, True)
    suppression = find_suppression()
    assert suppression is not None
    assert (suppression.reason, suppression.campaign_id) == ("unsubscribed", CAMPAIGN)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (ONE_CLICK, "application/x-www-form-urlencoded"),
        (
            '--x\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        ("--x\r\nbroken", "multipart/form-data; boundary=y"),
        (ONE_CLICK, "text/plain"),
        ("{", "application/json"),
        (b"\xff\xfe\x00", "application/x-www-form-urlencoded; charset=klingon"),
        ("", ""),
    ],
    ids=["form", "multipart", "broken multipart", "plain", "json", "no text", "nothing"],
)
def test_one_click_unsubscribes_with_any_body(
    client: FlaskClient, token: str, body: str | bytes, content_type: str
) -> None:
    response = client.post(f"/u/{token}", data=body, content_type=content_type or None, headers=PROVIDER)
    assert (response.status_code, response.headers.get("Set-Cookie")) == (200, None)
    assert suppression_reason() == "unsubscribed"


def test_one_click_requests_are_not_throttled(client: FlaskClient, token: str) -> None:
    assert {client.post(f"/u/{token}", data=ONE_CLICK, headers=PROVIDER).status_code for _ in range(150)} == {200}


def test_unsubscribing_twice_keeps_the_first_time(client: FlaskClient, token: str) -> None:
    client.post(f"/u/{token}")
    first = find_suppression()
    assert client.post(f"/u/{token}").status_code == 200
    assert "You are unsubscribed" in client.get(f"/u/{token}").text
    second = find_suppression()
    assert first is not None
    assert second is not None
    assert second.at == first.at


def test_a_customer_can_subscribe_again_on_the_page(client: FlaskClient, token: str) -> None:
    assert "Subscribe again" in client.post(f"/u/{token}").text
    assert "Subscribe again" in client.get(f"/u/{token}").text

    response = client.post(f"/u/{token}/back", headers={"Origin": "http://localhost"})

    assert (response.status_code, "You are subscribed again" in response.text) == (200, True)
    assert suppression_reason() is None
    entries = db.session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject)).all()
    assert entries == [
        ("the customer", "customer.unsubscribed", "customer 1"),
        ("the customer", "customer.subscribed_again", "customer 1"),
    ]


def test_subscribing_again_refuses_cross_site_requests(client: FlaskClient, token: str) -> None:
    client.post(f"/u/{token}")
    assert client.post(f"/u/{token}/back", data=ONE_CLICK, headers=PROVIDER).status_code == 403
    assert suppression_reason() == "unsubscribed"


def test_a_complaint_cannot_be_lifted_by_the_link(client: FlaskClient, token: str) -> None:
    suppression_actions.add_suppression("ada@example.com", "complained", CAMPAIGN)
    db.session.commit()
    assert "Subscribe again" not in client.get(f"/u/{token}").text
    client.post(f"/u/{token}/back")
    assert suppression_reason() == "complained"


def test_a_bounced_customer_can_still_unsubscribe(client: FlaskClient, token: str) -> None:
    suppression_actions.add_suppression("ada@example.com", "bounced", CAMPAIGN)
    db.session.commit()
    assert ">Unsubscribe</button>" in client.get(f"/u/{token}").text
    client.post(f"/u/{token}")
    assert suppression_reason() == "unsubscribed"


def test_a_link_suppresses_the_customers_current_address(client: FlaskClient, token: str) -> None:
    db.session.get_one(Customer, 1).email = "new@example.com"
    db.session.commit()
    client.post(f"/u/{token}")
    assert suppression_reason() is None
    assert suppression_queries.find_suppression_by_email("new@example.com") is not None


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("bad", ["x", "WzEsM10.AAAA", "%F0%9F%8E%89"])
def test_a_forged_token_suppresses_no_address(client: FlaskClient, token: str, method: str, bad: str) -> None:
    assert getattr(client, method)(f"/u/{bad}").status_code == 404
    assert client.post(f"/u/{bad}/back").status_code == 404
    assert suppression_reason() is None


def test_the_link_of_an_erased_customer_is_not_found(client: FlaskClient, token: str) -> None:
    customer_actions.erase_customer(1, by="tests")
    assert client.post(f"/u/{token}").status_code == client.post(f"/u/{token}/back").status_code == 404
    assert db.session.scalars(select(Suppression)).all() == []


def test_a_personal_link_token_does_not_unsubscribe(client: FlaskClient, token: str) -> None:
    from webapp.redemptions.personal_links import build_personal_url

    other = build_personal_url(3, 1).rpartition("/")[2]
    assert client.post(f"/u/{other}").status_code == 404


def test_the_page_is_not_cached_and_sets_no_cookie(client: FlaskClient, token: str) -> None:
    response = client.get(f"/u/{token}")
    assert (response.headers["Cache-Control"], response.headers["Referrer-Policy"]) == ("no-store", "same-origin")
    assert "Set-Cookie" not in response.headers
