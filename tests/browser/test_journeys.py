"""The three journeys, as people make them: staff, customers with and without scripts, shops."""

from __future__ import annotations

import csv
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Shop
from webapp.customers.models import Customer
from webapp.offers.models import Offer

pytestmark = pytest.mark.browser

Open = Callable[..., Page]


def join(page: Page, shop: Shop, role: str = "admin") -> None:
    """Choose name and password by an invitation, which also signs in."""
    page.goto(shop.invitation(role))
    page.get_by_label("Name").fill("Grace Hopper")
    page.get_by_label("E-mail").fill("grace@example.com")
    page.get_by_label("Password", exact=True).fill("correct horse battery")
    page.get_by_label("Password again").fill("correct horse battery")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("Welcome, Grace Hopper")).to_be_visible()


def csv_file(folder: Path, rows: int) -> Path:
    file = folder / "customers.csv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["email", "name"])
        writer.writerow(["ada@example.com", "Ada Lovelace"])
        writer.writerows([f"person{n}@example.com", f"Person {n}"] for n in range(rows - 2))
        writer.writerow(["not an address", "Nobody"])
    return file


def test_staff_import_set_up_launch_and_watch(shop: Shop, window: Open, tmp_path: Path) -> None:
    page = window()
    join(page, shop)

    # Import: live progress without a reload, the bad row named with its line.
    page.get_by_role("link", name="Import customers").click()
    page.get_by_label("CSV file").set_input_files(csv_file(tmp_path, 302))
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_text("Done").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("not an address").locator("visible=true").first).to_be_visible()
    expect(page.get_by_text("303").first).to_be_visible()

    # An offer; a mistake first, which loses nothing.
    page.goto(f"{shop.url}/offers/new")
    page.get_by_label("Name", exact=True).fill("Summer")
    page.get_by_label("Code", exact=True).fill("summer-25")
    page.get_by_label("Percent").fill("500")
    page.get_by_role("button", name="Set up the offer").click()
    expect(page.get_by_text("Give a percentage above 0").first).to_be_visible()
    expect(page.get_by_label("Code", exact=True)).to_have_value("summer-25")
    page.get_by_label("Percent").fill("25")
    page.get_by_role("button", name="Set up the offer").click()
    expect(page.get_by_role("heading", name="Summer", exact=True)).to_be_visible()
    offer_url = page.url

    # Its mail: an unknown placeholder is refused where it was typed.
    page.goto(f"{offer_url}/mail")
    text = page.get_by_label("Text", exact=True)
    written = text.input_value()
    text.fill(written + "\n{{ customer.shoe_size }}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("customer.shoe_size").first).to_be_visible()
    text.fill(written)
    page.get_by_role("button", name="Save and continue to launch").click()

    # Launch: says how many people before it does.
    expect(page.get_by_text("301 people").first).to_be_visible()
    page.get_by_role("button", name=re.compile("Launch to 301")).click()
    progress = page.locator("#campaign-progress")
    expect(progress.get_by_text("Done", exact=True)).to_be_visible(timeout=90_000)
    expect(progress.get_by_text("301", exact=True)).to_be_visible()
    assert len(shop.messages()) == 301
    assert len({str(message["To"]) for message in shop.messages()}) == 301

    # A redemption arrives on the offer's page by itself.
    page.goto(offer_url)
    expect(page.get_by_text("Nobody has used it yet")).to_be_visible()
    customer = window(width=390, height=800)
    customer.goto(shop.link_to("ada@example.com"))
    customer.get_by_role("button", name="Use it now").click()
    expect(customer.get_by_text("The discount is yours")).to_be_visible()
    expect(page.get_by_text("ada@example.com").first).to_be_visible(timeout=30_000)


def test_the_preview_follows_the_typing_and_only_save_saves(
    shop: Shop, window: Open, offer: Callable[..., Offer]
) -> None:
    offer_id = offer().id
    page = window()
    join(page, shop, "manager")
    page.goto(f"{shop.url}/offers/{offer_id}/mail")
    seen = page.frame_locator("#mail-preview iframe")
    expect(seen.locator(".text", has_text="Summer is here").first).to_be_visible()
    page.get_by_label("Subject", exact=True).fill("Typed for {{ customer.name }}")
    page.get_by_label("Text", exact=True).fill("Words for {{ customer.name }}\n{{ link }}")
    expect(page.get_by_text("Typed for Ada Lovelace", exact=True)).to_be_visible()
    expect(seen.locator(".text", has_text="Words for Ada Lovelace").first).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("heading", name="Summer", exact=True)).to_be_visible()
    page.goto(f"{shop.url}/offers/{offer_id}/mail")
    expect(page.get_by_label("Subject", exact=True)).not_to_have_value("Typed for {{ customer.name }}")
    page.get_by_label("Text", exact=True).fill("Kept for {{ customer.name }}\n{{ link }}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("The email has been saved.")).to_be_visible()
    expect(seen.locator(".text", has_text="Kept for Ada Lovelace").first).to_be_visible()
    # Where the page itself comes with words that are not saved, the frame has these, too.
    page.locator("[name=version]").evaluate("field => field.value = 'other'")
    page.get_by_label("Text", exact=True).fill("Mine for {{ customer.name }}\n{{ link }}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Another user has changed this email")).to_be_visible()
    expect(seen.locator(".text", has_text="Mine for Ada Lovelace").first).to_be_visible()


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_a_customer_redeems_by_the_link_and_sees_the_receipt_again(
    shop: Shop,
    window: Open,
    offer: Callable[..., Offer],
    customer: Callable[..., Customer],
    javascript: bool,
) -> None:
    customer()
    offer()
    launch(shop, "SUMMER25")
    link = shop.link_to("ada@example.com")
    page = window(javascript=javascript, width=390, height=800)

    page.goto(link)
    page.goto(link)
    expect(page.get_by_text("25%").first).to_be_visible()
    expect(page.get_by_text("ada@example.com")).to_have_count(0)
    page.get_by_role("button", name="Use it now").click()

    expect(page.get_by_text("Done. The discount is yours.")).to_be_visible()
    reference = page.locator("dd").first.inner_text()
    page.goto(link)
    expect(page.get_by_text("here is your receipt again")).to_be_visible()
    expect(page.get_by_text(reference)).to_be_visible()
    assert page.context.cookies() == []


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_a_customer_types_code_and_address(
    shop: Shop,
    window: Open,
    offer: Callable[..., Offer],
    customer: Callable[..., Customer],
    javascript: bool,
) -> None:
    customer()
    offer()
    page = window(javascript=javascript, width=390, height=800)
    page.goto(f"{shop.url}/redeem")

    # Wrong first: one plain sentence, and what was typed is still there.
    fill(page, "WINTER", "ada@example.com")
    expect(page.get_by_text("We don't know this code")).to_be_visible()
    expect(page.get_by_label("Code")).to_have_value("WINTER")
    expect(page.get_by_label("E-mail")).to_have_value("ada@example.com")

    fill(page, " summer – 25 ", " ADA@Example.com ")
    expect(page.get_by_text("Done. The discount is yours.")).to_be_visible()
    # Going back to the form and sending it again is a repeat, and says so.
    page.goto(f"{shop.url}/redeem")
    fill(page, "SUMMER25", "ada@example.com")
    expect(page.get_by_text("used already with this e-mail address")).to_be_visible()
    assert page.context.cookies() == []


def test_every_refusal_is_one_sentence_and_strangers_learn_nothing(
    shop: Shop, window: Open, offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    now = datetime.now(UTC)
    customer()
    offer("ENDED", starts_at=now - timedelta(days=3), ends_at=now - timedelta(days=1))
    offer("SOON", starts_at=now + timedelta(days=3))
    offer("PAUSED", paused_at=now)
    offer("USEDUP", max_redemptions=1, redeemed=1, frozen_at=now)
    offer("LIVE")
    page = window(width=390, height=800)
    page.goto(f"{shop.url}/redeem")
    sentences = {
        "ENDED": "ended on",
        "SOON": "starts on",
        "PAUSED": "paused",
        "USEDUP": "used up",
        "LIVE": "can't be used with this e-mail address",
    }
    for code, words in sentences.items():
        fill(page, code, "stranger@example.com")

        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(page.get_by_label("Code")).to_have_value(code)
        expect(page.get_by_label("E-mail")).to_have_value("stranger@example.com")


def test_a_double_click_redeems_once_and_shows_the_receipt(
    shop: Shop, window: Open, offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    customer()
    offer()
    launch(shop, "SUMMER25")
    page = window(width=390, height=800)
    page.goto(shop.link_to("ada@example.com"))

    page.get_by_role("button", name="Use it now").dblclick()

    expect(page.get_by_role("heading", name="Summer")).to_be_visible()
    expect(page.get_by_text("Reference", exact=True)).to_be_visible()
    assert len(call(shop, "GET", "/redemptions")[1]["redemptions"]) == 1


def test_a_shop_imports_launches_validates_redeems_and_rolls_back(shop: Shop) -> None:
    status, made = call(
        shop, "POST", "/customers/import", "email,name\nada@example.com,Ada\nbroken,Nobody\n", "text/csv"
    )
    assert status == 202
    done = wait(lambda: call(shop, "GET", f"/imports/{made['id']}")[1], "done")
    assert (done["created"], done["rejected"], done["errors"][0]["line"]) == (1, 1, 3)

    status, offer = call(
        shop,
        "POST",
        "/offers",
        {
            "name": "Summer",
            "code": "SUMMER25",
            "discount": {"type": "percent", "percent": "25"},
            "starts_at": "2026-06-01T00:00:00Z",
            "ends_at": None,
            "max_redemptions": 10,
            "mail": {
                "subject": "For you",
                "text": "Hello {{ customer.name }}, your code: {{ offer.code }}\n{{ link }}",
            },
        },
    )
    assert status == 201, offer
    status, campaign = call(shop, "POST", "/offers/SUMMER25/launch", {})
    assert status == 202
    assert call(shop, "POST", "/offers/SUMMER25/launch", {})[1]["id"] == campaign["id"]
    finished = wait(lambda: call(shop, "GET", f"/campaigns/{campaign['id']}")[1], "done")
    assert (finished["total"], finished["sent"]) == (1, 1)
    text = shop.mail_to("ada@example.com").get_body(("plain",))
    assert text is not None
    assert "Hello Ada, your code: SUMMER25" in text.get_content()

    ask = {"code": "summer 25", "customer": {"email": "Ada@example.com"}}
    assert call(shop, "POST", "/validations", ask)[1]["valid"] is True
    order = {**ask, "order": {"id": "A-1", "amount": 4999, "currency": "EUR"}}
    status, redeemed = call(shop, "POST", "/redemptions", order)
    assert (status, redeemed["discount_amount"]) == (201, 1250)
    assert call(shop, "POST", "/redemptions", order) == (200, redeemed)
    status, problem = call(shop, "POST", "/redemptions", {**order, "order": {"id": "A-2"}})
    assert (status, problem["code"]) == (409, "already_redeemed")
    assert call(shop, "GET", "/customers/ada@example.com/offers")[1]["offers"] == []

    assert call(shop, "POST", f"/redemptions/{redeemed['id']}/rollback", {"reason": "order cancelled"})[0] == 200
    assert [o["code"] for o in call(shop, "GET", "/customers/ada@example.com/offers")[1]["offers"]] == ["SUMMER25"]
    assert call(shop, "POST", "/redemptions", {**order, "order": {"id": "A-3"}})[0] == 201


def fill(page: Page, code: str, address: str) -> None:
    page.get_by_label("Code").fill(code)
    page.get_by_label("E-mail").fill(address)
    page.get_by_role("button").last.click()


def launch(shop: Shop, code: str) -> None:
    status, answer = call(shop, "POST", f"/offers/{code}/launch", {})
    assert status == 202, answer


def call(shop: Shop, method: str, path: str, body: Any = None, media_type: str = "application/json") -> tuple[int, Any]:
    """A shop's request, with a key that may do everything."""
    data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = {"Authorization": f"Bearer {shop.key}", "Content-Type": media_type}
    request = urllib.request.Request(f"{shop.url}/api/v1{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def wait(look: Callable[[], dict[str, Any]], status: str, seconds: float = 90) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = look()
        if seen["status"] == status:
            return seen
        time.sleep(0.2)
    raise AssertionError(f"still {seen}")
