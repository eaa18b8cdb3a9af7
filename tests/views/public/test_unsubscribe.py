"""The way out of the mails, and back."""

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


def listed() -> Suppression | None:
    db.session.rollback()
    return suppression_queries.find_suppression_by_email("ada@example.com")


def reason() -> str | None:
    found = listed()
    return found.reason if found else None


def test_opening_the_link_changes_nothing(client: FlaskClient, token: str) -> None:
    answer = client.get(f"/u/{token}")
    assert ">Unsubscribe</button>" in answer.text
    assert "ada@example.com" not in answer.text
    assert client.get(f"/u/{token}/back").status_code == 405
    assert reason() is None


def test_the_button_ends_the_mails_and_it_is_known_by_which_mail(client: FlaskClient, token: str) -> None:
    answer = client.post(f"/u/{token}", headers={"Origin": "http://localhost"})
    assert (answer.status_code, "You are unsubscribed" in answer.text) == (200, True)
    found = listed()
    assert found is not None
    assert (found.reason, found.campaign_id) == ("unsubscribed", CAMPAIGN)


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
def test_a_provider_ends_the_mails_with_one_click_whatever_it_sends(
    client: FlaskClient, token: str, body: str | bytes, content_type: str
) -> None:
    answer = client.post(f"/u/{token}", data=body, content_type=content_type or None, headers=PROVIDER)
    assert (answer.status_code, answer.headers.get("Set-Cookie")) == (200, None)
    assert reason() == "unsubscribed"


def test_a_provider_may_do_so_for_many_at_once(client: FlaskClient, token: str) -> None:
    assert {client.post(f"/u/{token}", data=ONE_CLICK, headers=PROVIDER).status_code for _ in range(150)} == {200}


def test_ending_them_twice_is_fine(client: FlaskClient, token: str) -> None:
    client.post(f"/u/{token}")
    first = listed()
    assert client.post(f"/u/{token}").status_code == 200
    assert "You are unsubscribed" in client.get(f"/u/{token}").text
    again = listed()
    assert first is not None
    assert again is not None
    assert again.at == first.at


def test_who_pressed_it_by_mistake_comes_back_right_there(client: FlaskClient, token: str) -> None:
    assert "Subscribe again" in client.post(f"/u/{token}").text
    assert "Subscribe again" in client.get(f"/u/{token}").text

    answer = client.post(f"/u/{token}/back", headers={"Origin": "http://localhost"})

    assert (answer.status_code, "You are subscribed again" in answer.text) == (200, True)
    assert reason() is None
    trail = db.session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject)).all()
    assert trail == [
        ("the customer", "customer.unsubscribed", "customer 1"),
        ("the customer", "customer.subscribed_again", "customer 1"),
    ]


def test_nobody_elsewhere_can_press_the_way_back(client: FlaskClient, token: str) -> None:
    client.post(f"/u/{token}")
    assert client.post(f"/u/{token}/back", data=ONE_CLICK, headers=PROVIDER).status_code == 403
    assert reason() == "unsubscribed"


def test_a_complaint_is_not_taken_back_by_a_link(client: FlaskClient, token: str) -> None:
    suppression_actions.add_suppression("ada@example.com", "complained", CAMPAIGN)
    db.session.commit()
    assert "Subscribe again" not in client.get(f"/u/{token}").text
    client.post(f"/u/{token}/back")
    assert reason() == "complained"


def test_whose_address_bounced_can_still_ask_for_no_mails(client: FlaskClient, token: str) -> None:
    suppression_actions.add_suppression("ada@example.com", "bounced", CAMPAIGN)
    db.session.commit()
    assert ">Unsubscribe</button>" in client.get(f"/u/{token}").text
    client.post(f"/u/{token}")
    assert reason() == "unsubscribed"


def test_a_link_follows_its_customer_to_another_address(client: FlaskClient, token: str) -> None:
    db.session.get_one(Customer, 1).email = "new@example.com"
    db.session.commit()
    client.post(f"/u/{token}")
    assert reason() is None
    assert suppression_queries.find_suppression_by_email("new@example.com") is not None


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("bad", ["x", "WzEsM10.AAAA", "%F0%9F%8E%89"])
def test_a_token_that_is_not_ours_ends_nothing(client: FlaskClient, token: str, method: str, bad: str) -> None:
    assert getattr(client, method)(f"/u/{bad}").status_code == 404
    assert client.post(f"/u/{bad}/back").status_code == 404
    assert reason() is None


def test_the_link_of_an_erased_customer_writes_nothing(client: FlaskClient, token: str) -> None:
    customer_actions.erase_customer(1, by="tests")
    assert client.post(f"/u/{token}").status_code == client.post(f"/u/{token}/back").status_code == 404
    assert db.session.scalars(select(Suppression)).all() == []


def test_a_personal_link_is_no_way_out(client: FlaskClient, token: str) -> None:
    from webapp.redemptions.personal_links import build_personal_url

    other = build_personal_url(3, 1).rpartition("/")[2]
    assert client.post(f"/u/{other}").status_code == 404


def test_the_page_is_kept_by_nobody(client: FlaskClient, token: str) -> None:
    answer = client.get(f"/u/{token}")
    assert (answer.headers["Cache-Control"], answer.headers["Referrer-Policy"]) == ("no-store", "same-origin")
    assert "Set-Cookie" not in answer.headers
