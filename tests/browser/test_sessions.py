"""Sessions and the confirmation of the password, in several windows."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select, text

from tests.support.browser import OpenPage, RunningShop, accept_invitation, problems_by_appearance
from webapp.accounts.models import ApiKey
from webapp.core.extensions import db

pytestmark = pytest.mark.browser
PASSWORD = "correct horse battery"


def sign_in(page: Page, shop: RunningShop) -> None:
    page.goto(f"{shop.url}/sign-in")
    page.get_by_label("Email").fill("grace@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text("Sign in")


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_a_session_on_another_device_is_signed_out(shop: RunningShop, window: OpenPage, javascript: bool) -> None:
    here, other = window(javascript=javascript), window(javascript=javascript, width=390, height=800)
    accept_invitation(here, shop)
    sign_in(other, shop)

    here.goto(f"{shop.url}/settings/profile")
    here.get_by_role("link", name="Show sessions").click()
    rows = here.locator("main tbody tr")
    expect(rows).to_have_count(2)
    this_session = here.locator(".badge")
    expect(rows.filter(has=this_session)).to_contain_text("Chrome on Linux")
    row = rows.filter(has_not=this_session)
    row.locator("summary").click()
    (here.get_by_role("dialog") if javascript else row).get_by_role("button", name="Sign out").click()

    expect(here.get_by_text("The session was ended.")).to_be_visible()
    expect(rows).to_have_count(1)
    other.reload()
    expect(other.get_by_text("Your session has ended. Please sign in again.")).to_be_visible()


def test_the_back_button_shows_nothing_after_signing_out(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/settings/people")
    page.locator("aside").get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()

    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_other_tabs_leave_their_page_when_the_user_signs_out(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    accept_invitation(page, shop)
    tab, redeem_form = page.context.new_page(), page.context.new_page()
    tab.goto(f"{shop.url}/settings/people")
    redeem_form.goto(f"{shop.url}/redeem")

    page.locator("aside").get_by_role("button", name="Sign out").click()

    expect(tab.get_by_role("heading", name="Sign in")).to_be_visible()
    assert redeem_form.url == f"{shop.url}/redeem"
    expect(page).to_have_url(f"{shop.url}/sign-in")


@pytest.mark.parametrize("javascript", [True, False], ids=["with scripts", "without scripts"])
def test_the_password_is_confirmed_and_the_input_is_kept(shop: RunningShop, window: OpenPage, javascript: bool) -> None:
    page = window(javascript=javascript)
    accept_invitation(page, shop)
    page.goto(f"{shop.url}/settings/api-keys")
    db.session.execute(text("update staff_session set authenticated_at = now() - interval '1 hour'"))
    db.session.commit()

    page.get_by_label("Name").fill("Web shop")
    page.get_by_label("redeem: validate").check()
    page.get_by_role("button", name="Create API key").click()
    expect(page.get_by_role("heading", name="Confirm your password")).to_be_visible()
    if javascript:
        problems = problems_by_appearance(page)
        assert problems == {name: [] for name in problems}
    page.get_by_label("Password", exact=True).fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".invalid-feedback")).to_contain_text("This is not your password.")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Continue").click()

    expect(page.get_by_text("The API key is ready.")).to_be_visible()
    assert db.session.execute(select(ApiKey.name, ApiKey.scopes)).all() == [("Web shop", ["redeem"])]
    # Reloading sends the form again, and creates no other key.
    page.reload()
    assert db.session.scalar(select(func.count()).select_from(ApiKey)) == 1
