"""Settings → Shop, as staff see it, and what becomes of it elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.sql_statements import statements
from webapp.accounts.models import AuditEntry
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries
from webapp.shop.models import ShopValues

URL = "/settings/shop"
TYPED = {
    "name": "Blumen Müller",
    "sender_name": "Blumen Müller 🌷",
    "reply_to": "Laden@Example.com",
    "address": "Am Markt 1\r\n12345 Musterstadt\r\n",
    "colour": "#B4F",
    "locale": "de-at",
    "reason": "Sie bekommen diese Mail, weil Sie bei uns einkaufen.",
    "unsubscribe_words": "Keine Mails mehr",
    "button_words": "Jetzt einlösen",
    "link_words": "Oder öffnen Sie diese Adresse:",
}


def typed(**values: str) -> dict[str, str]:
    return {**TYPED, "colour": "#B400FF", "locale": "de-AT", **values}


def error_at(page: str, field: str) -> str:
    found = re.search(rf'id="{field}-error"(.*?)</div>', page, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def test_before_anybody_has_said_anything_the_environment_counts(staff: FlaskClient) -> None:
    page = staff.get(URL).text
    assert 'value="Test shop"' in page
    assert shop_queries.get_shop() == shop_queries.default_shop()


def test_what_is_saved_is_shown_again_and_stands_in_the_trail(staff: FlaskClient) -> None:
    page = staff.post(URL, data=typed(), follow_redirects=True).text
    assert "The shop details were saved." in page
    shop = shop_queries.get_shop()
    assert (shop.name, shop.colour, shop.locale) == ("Blumen Müller", "#b400ff", "de_AT")
    assert shop.address == "Am Markt 1\n12345 Musterstadt"
    assert "Keine Mails mehr" in page
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "shop.saved")).one()
    assert entry.detail is not None
    assert entry.detail["changed"]["name"] == ["Test shop", "Blumen Müller"]


def test_saving_twice_the_same_changes_nothing(staff: FlaskClient) -> None:
    staff.post(URL, data=typed())
    staff.post(URL, data=typed())
    assert len(db.session.scalars(select(AuditEntry).where(AuditEntry.action == "shop.saved")).all()) == 1
    assert db.session.execute(text("select count(*) from shop")).scalar() == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "", "Enter the name of your shop."),
        ("name", "  ", "Enter the name of your shop."),
        ("name", "x" * 10_000, "at most 100 characters; this text has 10,000"),
        ("name", "Shop\r\nBcc: eve@example.com", "Use a single line."),
        ("name", "Shop\0", "cannot be sent in an email"),
        ("name", "Shop\u2028two", "cannot be sent in an email"),
        ("sender_name", "Shop\nBcc: eve@example.com", "Use a single line."),
        ("sender_name", "x" * 10_000, "at most 100 characters"),
        ("reply_to", "not an address", "This email address is not valid."),
        ("reply_to", "a@b@example.com", "This email address is not valid."),
        ("reply_to", "ada@example.com\r\nBcc: eve@example.com", "This email address is not valid."),
        ("reply_to", "jörg@example.com", "without accents before the @"),
        ("colour", "teal", "six hexadecimal digits"),
        ("colour", "#12345", "six hexadecimal digits"),
        ("colour", "#0f766e; } body { display: none", "six hexadecimal digits"),
        ("locale", "German", "a language tag such as en"),
        ("locale", "../../etc", "a language tag such as en"),
        ("reason", "x" * 301, "at most 300 characters"),
        ("reason", "a\nb", "Use a single line."),
        ("unsubscribe_words", "", "Enter the text of the link."),
        ("button_words", " ", "Enter the text of the button."),
        ("address", "\n".join("line" for _ in range(9)), "at most 8 lines; the address has 9"),
        ("address", "x" * 10_000, "at most 500 characters"),
    ],
)
def test_what_can_not_be_taken_is_said_at_its_field_and_nothing_is_lost(
    staff: FlaskClient, field: str, value: str, words: str
) -> None:
    answer = staff.post(URL, data=typed(**{field: value, "link_words": "what I typed"}))
    assert answer.status_code == 422
    assert words in error_at(answer.text, field)
    assert 'value="what I typed"' in answer.text
    if value.isprintable() and value.strip():
        assert html.escape(value, quote=False) in answer.text.replace("&#39;", "'")
    assert db.session.execute(text("select count(*) from shop")).scalar() == 0


def colour_field(page: str) -> str:
    found = re.search(r'<input[^>]* name="colour"[^>]*>', page)
    assert found is not None
    return found[0]


def test_the_colour_is_picked_and_what_is_none_can_be_seen_and_mended(staff: FlaskClient) -> None:
    staff.post(URL, data=typed())
    picked = colour_field(staff.get(URL).text)
    assert 'type="color"' in picked
    assert 'value="#b400ff"' in picked
    wrong = colour_field(staff.post(URL, data=typed(colour="teal")).text)
    assert 'type="text"' in wrong
    assert 'value="teal"' in wrong


def test_every_wrong_field_is_said_at_once(app: Flask) -> None:
    with pytest.raises(InvalidInput) as caught:
        shop_actions.save_shop(ShopValues("", colour="red", reply_to="x"), "tests")
    assert {error.field for error in caught.value.errors} == {"name", "colour", "reply_to"}


def test_a_viewer_neither_sees_nor_changes_it(sign_in: Callable[..., FlaskClient]) -> None:
    viewer = sign_in("viewer")
    assert [viewer.get(URL).status_code, viewer.post(URL, data=typed()).status_code] == [403, 403]
    assert viewer.post(f"{URL}/relay").status_code == 403
    assert f'href="{URL}"' not in viewer.get("/settings/profile").text


def test_the_sample_shows_what_is_typed_and_keeps_nothing(staff: FlaskClient) -> None:
    piece = staff.get(f"{URL}/sample", query_string=typed())
    address = re.search(r'src="([^"]+)"', piece.text)
    assert address is not None
    frame = staff.get(html.unescape(address[1]))
    for words in ("Blumen Müller", "#b400ff", "Keine Mails mehr", "12345 Musterstadt", "Jetzt einlösen", "25&nbsp;%"):
        assert words in frame.text.replace("\xa0", "&nbsp;")
    assert "sandbox" in frame.headers["Content-Security-Policy"]
    assert db.session.execute(text("select count(*) from shop")).scalar() == 0


def test_there_is_no_sample_of_what_can_not_be_taken(staff: FlaskClient) -> None:
    piece = staff.get(f"{URL}/sample", query_string=typed(colour="}body{}"))
    assert "<iframe" not in piece.text
    assert "body{}" not in staff.get(f"{URL}/sample/frame", query_string=typed(colour="}body{}")).text


def test_what_is_typed_is_text_in_the_sample(staff: FlaskClient) -> None:
    frame = staff.get(f"{URL}/sample/frame", query_string=typed(name="<script>alert(1)</script>"))
    assert "<script>" not in frame.text
    assert "&lt;script&gt;" in frame.text


def test_customers_pages_say_what_the_shop_is_called(client: FlaskClient) -> None:
    assert "Test shop" in client.get("/redeem").text
    shop_actions.save_shop(ShopValues("Blumen & Co"), "tests")
    page = client.get("/redeem").text
    assert "Blumen &amp; Co" in page
    assert "Test shop" not in page


def test_a_page_looks_the_shop_up_once(client: FlaskClient) -> None:
    client.get("/redeem")
    with statements() as run:
        client.get("/redeem")
    assert sum("FROM shop" in sql for sql, _ in run) == 1


def test_redeeming_by_machine_does_not_ask_for_the_shop(
    api: Any, offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    offer(), customer()
    with statements() as run:
        for door in ("validations", "redemptions"):
            body = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
            assert api.post(f"/api/v1/{door}", json=body).status_code in (200, 201)
    assert run
    assert not [sql for sql, _ in run if "shop" in sql]
