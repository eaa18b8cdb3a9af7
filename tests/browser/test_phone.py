"""Line breaks and alignment on the screen of a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from tests.support.browser import OpenPage, RunningShop, accept_invitation
from tests.support.factories import MakeCustomer, MakeOffer
from webapp.redemptions import group_commit, personal_links
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest

# Returns the lines of each element whose text is one word that matches a pattern.
FIND_LINES = """pattern => [...document.querySelectorAll("main *")]
  .filter(element => new RegExp(pattern).test(element.textContent.trim())
    && ![...element.children].some(child => child.tagName !== "WBR"))
  .map(element => {
    const lines = [];
    let top = null;
    for (const node of element.childNodes) {
      for (let i = 0; i < (node.data ?? "").trimEnd().length; i++) {
        const range = document.createRange();
        range.setStart(node, i);
        range.setEnd(node, i + 1);
        const box = range.getBoundingClientRect();
        if (!box.width || !node.data[i].trim()) continue;
        if (top === null || Math.abs(box.top - top) > 4) lines.push("");
        top = box.top;
        lines[lines.length - 1] += node.data[i];
      }
    }
    return lines;
  })"""


@pytest.fixture
def redemption(make_offer: MakeOffer, make_customer: MakeCustomer) -> RedemptionRecord:
    make_offer()
    make_customer("kunde10@example.com")
    return group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="kunde10@example.com"))


def find_lines(page: Page, pattern: str) -> list[list[str]]:
    lines: list[list[str]] = page.evaluate(FIND_LINES, pattern)
    assert lines
    return lines


def test_addresses_break_after_their_punctuation(
    window: OpenPage, shop: RunningShop, redemption: RedemptionRecord
) -> None:
    page = window(width=390, height=800)
    accept_invitation(page, shop)
    for path in ("/settings/people", "/customers", "/redemptions"):
        page.goto(shop.url + path)
        for lines in find_lines(page, r"^\S+@\S+$"):
            assert all(line[-1] in "@." for line in lines[:-1]), (path, lines)


def test_the_reference_of_a_receipt_is_on_one_line(
    window: Callable[..., Page], shop: RunningShop, redemption: RedemptionRecord
) -> None:
    link = personal_links.build_personal_url(redemption.offer_id, redemption.customer_id).partition("/r/")[2]
    page = window(width=390, height=800)
    page.goto(f"{shop.url}/r/{link}")
    assert find_lines(page, f"^{redemption.public_id}$") == [[redemption.public_id]]

    # W is the widest letter in many fonts.
    widest = "W" * len(redemption.public_id)
    page.get_by_text(redemption.public_id).evaluate("(element, text) => { element.textContent = text }", widest)
    assert find_lines(page, f"^{widest}$") == [[widest]]


def test_the_cells_of_all_tables_of_an_offer_are_aligned(
    window: OpenPage, shop: RunningShop, redemption: RedemptionRecord
) -> None:
    page = window(width=390, height=800)
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/offers/{redemption.offer_id}")

    heading = page.get_by_role("heading", name="Latest redemptions").bounding_box()
    customer = page.locator("#live-redemptions tbody a:visible").first.bounding_box()
    assert heading
    assert customer
    assert round(customer["x"]) == round(heading["x"])
