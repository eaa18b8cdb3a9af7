"""The shop's colour and language on customer pages."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.core import formatting
from webapp.redemptions import personal_links
from webapp.shop import actions as shop_actions
from webapp.shop import colours
from webapp.shop.colours import MIN_TEXT_CONTRAST, contrast_ratio
from webapp.shop.models import ShopValues


def test_the_shop_colour_comes_from_a_cacheable_style_sheet(client: FlaskClient) -> None:
    shop_actions.save_shop(ShopValues("Laden", colour="#b400ff"), "tests")
    page = client.get("/redeem")
    link = re.search(r'href="(/colour/b400ff\.css)"', page.text)
    assert link
    assert "style=" not in page.text
    style_sheet = client.get(link[1])
    assert (style_sheet.mimetype, style_sheet.headers["Cache-Control"]) == (
        "text/css",
        "public, max-age=31536000, immutable",
    )
    assert "--pico-primary-background: #b400ff;" in style_sheet.text
    assert "Set-Cookie" not in style_sheet.headers


@pytest.mark.parametrize("colour", ["B400FF", "b400f", "b400fff", "red;}x", "%22%3E%3C%2F"])
def test_an_invalid_colour_has_no_style_sheet(client: FlaskClient, colour: str) -> None:
    assert client.get(f"/colour/{colour}.css").status_code == 404


@given(st.integers(0, 0xFFFFFF).map(lambda number: f"#{number:06x}"))
def test_a_hovered_button_keeps_its_text_contrast(colour: str) -> None:
    assert contrast_ratio(colours.hover_background(colour), colours.contrasting_text(colour)) >= MIN_TEXT_CONTRAST


@pytest.mark.parametrize(
    ("locale", "day", "money"),
    [
        ("de", "31. Mai 2031", "5,00\xa0€"),
        ("fr-CH", "31 mai 2031", "5,00\xa0€"),
        ("ar-EG", "\u2068٣١ مايو ٢٠٣١\u2069", "\u200f٥٫٠٠\xa0€"),
        (None, "31 de mayo de 2031", "5,00\xa0€"),
    ],
)
def test_dates_and_money_follow_the_customers_or_the_shops_locale(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, locale: str | None, day: str, money: str
) -> None:
    shop_actions.save_shop(ShopValues("Tienda", locale="es"), "tests")
    ends = datetime(2031, 6, 1, tzinfo=UTC)
    summer = make_offer("SUMMER", discount_type="amount", percent=None, amount=500, currency="EUR", ends_at=ends)
    url = urlsplit(
        personal_links.build_personal_url(summer.id, make_customer("ada@example.com", locale=locale).id)
    ).path
    page = client.get(url).text
    assert f"until {day}" in page
    assert money in page
    receipt = client.post(url).text
    assert money in receipt


def test_a_receipt_uses_one_set_of_digits(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    summer = make_offer("SUMMER")
    url = urlsplit(
        personal_links.build_personal_url(summer.id, make_customer("ada@example.com", locale="ar-EG").id)
    ).path
    receipt = client.post(url).text
    redeemed_on = re.search(r"<dt>Redeemed on</dt><dd>([^<]*)</dd>", receipt)
    assert redeemed_on
    assert re.search("[٠-٩]", redeemed_on[1])
    assert not re.search("[0-9]", redeemed_on[1])


def test_an_email_address_is_isolated_left_to_right(app: Flask) -> None:
    assert formatting.bidi_isolate("ada@example.com") == "ada@example.com"
    assert formatting.bidi_isolate("محمد@example.com") == "\u2066محمد@example.com\u2069"
    assert formatting.bidi_isolate("٣١ مايو") == "\u2068٣١ مايو\u2069"


def test_lists_show_email_addresses_left_to_right(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    make_customer("محمد@example.com")
    assert '<bdi dir="ltr">محمد@example.com</bdi>' in staff.get("/customers").text
