"""Settings → Shop in a browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import RunningShop, accept_invitation

pytestmark = pytest.mark.browser

Open = Callable[..., Page]


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_the_shop_colour_is_chosen_and_saved(shop: RunningShop, window: Open, javascript: bool) -> None:
    page = window(javascript=javascript)
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/settings/shop")
    page.get_by_label("Colour").fill("#b400ff")
    if javascript:
        # The sample shows the chosen colour.
        expect(page.locator("iframe[src*='b400ff']")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The shop details were saved.")).to_be_visible()
    expect(page.get_by_label("Colour")).to_have_value("#b400ff")
