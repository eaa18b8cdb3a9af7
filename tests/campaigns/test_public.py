"""The way out of the mails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from webapp.campaigns import links
from webapp.customers.models import Customer
from webapp.extensions import db


@pytest.fixture
def token(customer: Callable[..., Customer]) -> str:
    customer()
    return links.unsubscribe_url(1, 3).rpartition("/")[2]


def is_out() -> bool:
    db.session.rollback()
    row = db.session.get(Customer, 1, populate_existing=True)
    assert row is not None
    return row.unsubscribed_at is not None


def test_opening_the_link_changes_nothing(client: FlaskClient, token: str) -> None:
    answer = client.get(f"/u/{token}")
    assert "Send me no more mails" in answer.text
    assert "ada@example.com" not in answer.text
    assert not is_out()


def test_the_button_ends_the_mails(client: FlaskClient, token: str) -> None:
    answer = client.post(f"/u/{token}", headers={"Origin": "http://localhost"})
    assert (answer.status_code, "No more mails" in answer.text) == (200, True)
    assert is_out()


def test_a_provider_ends_the_mails_with_one_click(client: FlaskClient, token: str) -> None:
    answer = client.post(
        f"/u/{token}",
        data={"List-Unsubscribe": "One-Click"},
        headers={"Origin": "https://mail.example.org", "Sec-Fetch-Site": "cross-site"},
    )
    assert answer.status_code == 200
    assert is_out()


def test_ending_them_twice_is_fine(client: FlaskClient, token: str) -> None:
    client.post(f"/u/{token}")
    assert client.post(f"/u/{token}").status_code == 200
    assert "No more mails" in client.get(f"/u/{token}").text


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("bad", ["x", "WzEsM10.AAAA", "%F0%9F%8E%89"])
def test_a_token_that_is_not_ours_ends_nothing(client: FlaskClient, token: str, method: str, bad: str) -> None:
    assert getattr(client, method)(f"/u/{bad}").status_code == 404
    assert not is_out()


def test_a_personal_link_is_no_way_out(client: FlaskClient, token: str) -> None:
    from webapp.redemptions.links import personal_url

    other = personal_url(3, 1).rpartition("/")[2]
    assert client.post(f"/u/{other}").status_code == 404


def test_the_page_is_kept_by_nobody(client: FlaskClient, token: str) -> None:
    answer = client.get(f"/u/{token}")
    assert (answer.headers["Cache-Control"], answer.headers["Referrer-Policy"]) == ("no-store", "same-origin")
    assert "Set-Cookie" not in answer.headers
