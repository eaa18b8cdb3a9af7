"""Elements that refresh themselves keep the keyboard focus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import OpenPage, RunningShop, accept_invitation, call_api
from webapp.customers.models import Customer
from webapp.offers.models import Offer

pytestmark = pytest.mark.browser

FOCUSED = "document.activeElement.innerText.trim()"


def redeem(shop: RunningShop, email: str) -> None:
    call_api(shop, "POST", "/redemptions", {"code": "SUMMER25", "customer": {"email": email}})


def refresh(page: Page) -> None:
    """Refresh the live element now instead of after some seconds."""
    with page.expect_response(lambda response: response.url.endswith("/live")):
        page.evaluate("htmx.ajax('GET', location.pathname + '/live', {target: '#offer-live', swap: 'outerMorph'})")


def test_focus_stays_on_a_link_while_rows_are_added(
    shop: RunningShop, window: OpenPage, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_offer()
    for email in ("ada@example.com", "bo@example.com"):
        make_customer(email)
    redeem(shop, "ada@example.com")
    page = window()
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/offers/1")
    page.get_by_role("link", name="ada@example.com").focus()
    redeem(shop, "bo@example.com")
    refresh(page)
    expect(page.get_by_role("link", name="bo@example.com")).to_be_visible()
    assert page.evaluate(FOCUSED) == "ada@example.com"


def test_focus_stays_on_a_button_that_refreshes_its_element(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/settings/shop")
    button = page.get_by_role("button", name="Check relay")
    button.focus()
    button.press("Enter")
    expect(page.locator("#shop-relay .alert")).to_be_visible()
    assert page.evaluate(FOCUSED) == "Check relay"
