"""The main workflows of staff, customers with and without scripts, and the API."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.browser import (
    OpenPage,
    RunningShop,
    accept_invitation,
    call_api,
    reach_address_limit,
    submit_code,
    wait_for_status,
    write_csv,
)
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer

pytestmark = pytest.mark.browser


def test_staff_import_customers_create_an_offer_and_launch_it(
    shop: RunningShop, window: OpenPage, tmp_path: Path
) -> None:
    page = window()
    accept_invitation(page, shop)

    # Import: live progress without a reload, the invalid row shown with its line number.
    page.get_by_role("link", name="Import customers").click()
    page.get_by_label("CSV file").set_input_files(write_csv(tmp_path, 302))
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_text("Done").first).to_be_visible()
    expect(page.get_by_text("not an address").locator("visible=true").first).to_be_visible()
    expect(page.get_by_text("303").first).to_be_visible()

    # Create an offer: an invalid value is refused and the input kept.
    page.goto(f"{shop.url}/offers/new")
    page.get_by_label("Name", exact=True).fill("Summer")
    page.get_by_label("Code", exact=True).fill("summer-25")
    page.get_by_label("Percentage", exact=True).fill("500")
    page.get_by_role("button", name="Create offer").click()
    expect(page.get_by_text("Enter a percentage above 0").first).to_be_visible()
    expect(page.get_by_label("Code", exact=True)).to_have_value("summer-25")
    page.get_by_label("Percentage", exact=True).fill("25")
    page.get_by_role("button", name="Create offer").click()
    expect(page.get_by_role("heading", name="Summer", exact=True)).to_be_visible()
    offer_url = page.url

    # Edit the email: an unknown placeholder is refused at its field.
    page.goto(f"{offer_url}/mail")
    text = page.get_by_label("Text", exact=True)
    default_text = text.input_value()
    text.fill(default_text + "\n{{ customer.shoe_size }}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("customer.shoe_size").first).to_be_visible()
    text.fill(default_text)
    page.get_by_role("button", name="Save and continue to launch").click()

    # Launch: the number of recipients is shown first.
    expect(page.get_by_text("301 customers").first).to_be_visible()
    page.get_by_role("button", name=re.compile("Launch to 301")).click()
    progress = page.locator("#campaign-progress")
    expect(progress.get_by_text("Done", exact=True)).to_be_visible()
    expect(progress.get_by_text("301", exact=True)).to_be_visible()
    assert len(shop.messages()) == 301
    assert len({str(message["To"]) for message in shop.messages()}) == 301

    # A redemption appears on the offer's page without a reload.
    page.goto(offer_url)
    expect(page.get_by_text("No redemptions yet")).to_be_visible()
    customer = window(width=390, height=800)
    customer.goto(shop.link_to("ada@example.com"))
    customer.get_by_role("button", name="Redeem now").click()
    expect(customer.get_by_text("The discount is yours")).to_be_visible()
    expect(page.get_by_text("ada@example.com").first).to_be_visible()


def test_the_preview_follows_the_input_and_only_save_stores_it(
    shop: RunningShop, window: OpenPage, make_offer: Callable[..., Offer]
) -> None:
    offer_id = make_offer().id
    page = window()
    accept_invitation(page, shop, "manager")
    page.goto(f"{shop.url}/offers/{offer_id}/mail")
    preview = page.frame_locator("#mail-preview iframe")
    expect(preview.locator(".text", has_text="Summer is here").first).to_be_visible()
    page.get_by_label("Subject", exact=True).fill("Typed for {{ customer.name }}")
    page.get_by_label("Text", exact=True).fill("Words for {{ customer.name }}\n{{ link }}")
    expect(page.get_by_text("Typed for Ada Lovelace", exact=True)).to_be_visible()
    expect(preview.locator(".text", has_text="Words for Ada Lovelace").first).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("heading", name="Summer", exact=True)).to_be_visible()
    page.goto(f"{shop.url}/offers/{offer_id}/mail")
    expect(page.get_by_label("Subject", exact=True)).not_to_have_value("Typed for {{ customer.name }}")
    page.get_by_label("Text", exact=True).fill("Kept for {{ customer.name }}\n{{ link }}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("The email was saved.")).to_be_visible()
    expect(preview.locator(".text", has_text="Kept for Ada Lovelace").first).to_be_visible()
    # After a refused save, the preview shows the unsaved input as well.
    page.locator("[name=version]").evaluate("field => field.value = 'other'")
    page.get_by_label("Text", exact=True).fill("Mine for {{ customer.name }}\n{{ link }}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("This email was changed after you opened it")).to_be_visible()
    expect(preview.locator(".text", has_text="Mine for Ada Lovelace").first).to_be_visible()


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_a_customer_redeems_by_personal_link_and_sees_the_receipt_again(
    shop: RunningShop,
    window: OpenPage,
    make_offer: Callable[..., Offer],
    make_customer: Callable[..., Customer],
    javascript: bool,
) -> None:
    make_customer()
    make_offer()
    launch(shop, "SUMMER25")
    link = shop.link_to("ada@example.com")
    page = window(javascript=javascript, width=390, height=800)

    page.goto(link)
    page.goto(link)
    expect(page.get_by_text("25%").first).to_be_visible()
    expect(page.get_by_text("ada@example.com")).to_have_count(0)
    page.get_by_role("button", name="Redeem now").click()

    expect(page.get_by_text("Redeemed. The discount is yours.")).to_be_visible()
    reference = page.locator("dd").first.inner_text()
    page.goto(link)
    expect(page.get_by_text("Here is your receipt again")).to_be_visible()
    expect(page.get_by_text(reference)).to_be_visible()
    assert page.context.cookies() == []


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_a_customer_redeems_with_code_and_email_address(
    shop: RunningShop,
    window: OpenPage,
    make_offer: Callable[..., Offer],
    make_customer: Callable[..., Customer],
    javascript: bool,
) -> None:
    make_customer()
    make_offer()
    page = window(javascript=javascript, width=390, height=800)
    page.goto(f"{shop.url}/redeem")

    # A wrong code is refused with one sentence, and the input is kept.
    submit_code(page, "WINTER", "ada@example.com")
    expect(page.get_by_text("We don't recognise this code")).to_be_visible()
    expect(page.get_by_label("Code")).to_have_value("WINTER")
    expect(page.get_by_label("Email address")).to_have_value("ada@example.com")

    submit_code(page, " summer – 25 ", " ADA@Example.com ")
    expect(page.get_by_text("Redeemed. The discount is yours.")).to_be_visible()
    # Submitting the form again is refused as a repeated redemption.
    page.goto(f"{shop.url}/redeem")
    submit_code(page, "SUMMER25", "ada@example.com")
    expect(page.get_by_text("already been redeemed with this email address")).to_be_visible()
    assert page.context.cookies() == []


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_a_customer_on_a_busy_connection_redeems_with_the_link_in_an_email(
    shop: RunningShop,
    window: OpenPage,
    make_offer: Callable[..., Offer],
    make_customer: Callable[..., Customer],
    javascript: bool,
) -> None:
    make_customer()
    make_offer()
    reach_address_limit()
    page = window(javascript=javascript, width=390, height=800)
    page.goto(f"{shop.url}/redeem")

    submit_code(page, "SUMMER25", "ada@exmaple.com")
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()
    page.get_by_role("link", name="Use another email address").click()
    expect(page.get_by_label("Code")).to_have_value("SUMMER25")
    submit_code(page, "SUMMER25", "ada@example.com")
    expect(page.get_by_text("we have emailed a personal link to it")).to_be_visible()
    page.goto(shop.link_to("ada@example.com"))
    page.get_by_role("button", name="Redeem now").click()

    expect(page.get_by_text("Redeemed. The discount is yours.")).to_be_visible()
    assert [message["To"] for message in shop.messages()] == ["ada@example.com"]


def test_the_offer_form_recommends_personal_codes_while_an_audience_is_chosen(
    shop: RunningShop, window: OpenPage
) -> None:
    db.session.add(Audience(name="Regulars"))
    db.session.commit()
    page = window(javascript=False)
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/offers/new")
    recommendation = page.get_by_text("Recommended for an audience: require personal codes.")

    expect(recommendation).to_be_hidden()
    page.get_by_label("Audience").select_option("Regulars")
    expect(recommendation).to_be_visible()
    page.get_by_label("Require personal codes").check()
    expect(recommendation).to_be_hidden()


def test_every_refusal_is_one_sentence_without_customer_details(
    shop: RunningShop, window: OpenPage, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    now = datetime.now(UTC)
    make_customer()
    make_offer("ENDED", starts_at=now - timedelta(days=3), ends_at=now - timedelta(days=1))
    make_offer("SOON", starts_at=now + timedelta(days=3))
    make_offer("PAUSED", paused_at=now)
    make_offer("USEDUP", max_redemptions=1, redeemed=1, frozen_at=now)
    make_offer("LIVE")
    page = window(width=390, height=800)
    page.goto(f"{shop.url}/redeem")
    messages = {
        "ENDED": "ended on",
        "SOON": "starts on",
        "PAUSED": "paused",
        "USEDUP": "reached its limit",
        "LIVE": "can't be redeemed with this email address",
    }
    for code, message in messages.items():
        submit_code(page, code, "stranger@example.com")

        expect(page.get_by_role("alert")).to_contain_text(message)
        expect(page.get_by_label("Code")).to_have_value(code)
        expect(page.get_by_label("Email address")).to_have_value("stranger@example.com")


def test_a_double_click_redeems_once_and_shows_the_receipt(
    shop: RunningShop, window: OpenPage, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    make_offer()
    launch(shop, "SUMMER25")
    page = window(width=390, height=800)
    page.goto(shop.link_to("ada@example.com"))

    page.get_by_role("button", name="Redeem now").dblclick()

    expect(page.get_by_role("heading", name="Summer")).to_be_visible()
    expect(page.get_by_text("Reference", exact=True)).to_be_visible()
    assert len(call_api(shop, "GET", "/redemptions")[1]["redemptions"]) == 1


def test_the_api_imports_launches_validates_redeems_and_rolls_back(shop: RunningShop) -> None:
    status, queued = call_api(
        shop, "POST", "/customers/import", "email,name\nada@example.com,Ada\nbroken,Nobody\n", "text/csv"
    )
    assert status == 202
    imported = wait_for_status(lambda: call_api(shop, "GET", f"/imports/{queued['id']}")[1], "done")
    assert (imported["created"], imported["rejected"], imported["errors"][0]["line"]) == (1, 1, 3)

    status, offer = call_api(
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
    status, campaign = call_api(shop, "POST", "/offers/SUMMER25/launch", {})
    assert status == 202
    assert call_api(shop, "POST", "/offers/SUMMER25/launch", {})[1]["id"] == campaign["id"]
    finished = wait_for_status(lambda: call_api(shop, "GET", f"/campaigns/{campaign['id']}")[1], "done")
    assert (finished["total"], finished["sent"]) == (1, 1)
    text = shop.mail_to("ada@example.com").get_body(("plain",))
    assert text is not None
    assert "Hello Ada, your code: SUMMER25" in text.get_content()

    body = {"code": "summer 25", "customer": {"email": "Ada@example.com"}}
    assert call_api(shop, "POST", "/validations", body)[1]["valid"] is True
    order = {**body, "order": {"id": "A-1", "amount": 4999, "currency": "EUR"}}
    status, redeemed = call_api(shop, "POST", "/redemptions", order)
    assert (status, redeemed["discount_amount"]) == (201, 1250)
    assert call_api(shop, "POST", "/redemptions", order) == (200, redeemed)
    status, problem = call_api(shop, "POST", "/redemptions", {**order, "order": {"id": "A-2"}})
    assert (status, problem["code"]) == (409, "already_redeemed")
    assert call_api(shop, "GET", "/customers/ada@example.com/offers")[1]["offers"] == []

    assert call_api(shop, "POST", f"/redemptions/{redeemed['id']}/rollback", {"reason": "order cancelled"})[0] == 200
    assert [o["code"] for o in call_api(shop, "GET", "/customers/ada@example.com/offers")[1]["offers"]] == ["SUMMER25"]
    assert call_api(shop, "POST", "/redemptions", {**order, "order": {"id": "A-3"}})[0] == 201


def launch(shop: RunningShop, code: str) -> None:
    status, response = call_api(shop, "POST", f"/offers/{code}/launch", {})
    assert status == 202, response
