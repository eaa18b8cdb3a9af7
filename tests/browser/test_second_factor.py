"""Two-step verification in Chromium: an app without JavaScript, and passkeys of a virtual authenticator."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import CDPSession, Page, expect
from sqlalchemy import text

from tests.support.browser import APPEARANCES, OpenPage, RunningShop, accept_invitation, problems_by_appearance
from tests.support.factors import code_now
from webapp.core.extensions import db

pytestmark = pytest.mark.browser
PASSWORD = "correct horse battery"


def add_authenticator(page: Page) -> tuple[CDPSession, str]:
    """Add a virtual authenticator, which verifies its user; return the CDP session and its id."""
    session = page.context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    added = session.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return session, added["authenticatorId"]


def add_passkey(page: Page, shop: RunningShop) -> None:
    page.goto(f"{shop.url}/settings/profile/two-step")
    page.get_by_label("Name of the new passkey").fill("Work laptop")
    page.get_by_role("button", name="Add passkey").click()
    page.get_by_role("button", name="Create passkey").click()


def sign_out(page: Page) -> None:
    page.get_by_role("button", name="Sign out").first.click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()


def enter_password(page: Page) -> None:
    page.get_by_label("Email").fill("grace@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()


def test_an_app_is_set_up_and_used_without_javascript(shop: RunningShop, window: OpenPage) -> None:
    page = window(javascript=False)
    accept_invitation(page, shop, "viewer")
    page.goto(f"{shop.url}/settings/profile")
    page.get_by_role("link", name="Manage").click()
    page.get_by_role("button", name="Set up app").click()
    secret = page.locator(".copy-text").inner_text()
    page.get_by_label("Authentication code").fill(code_now(secret))
    page.get_by_role("button", name="Turn on").click()
    codes = page.locator(".recovery-codes code").all_inner_texts()
    assert len(codes) == 10
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert codes[9] in Path(download.value.path()).read_text()
    page.get_by_role("link", name="I have saved the codes").click()
    expect(page.get_by_text("10 unused codes are left.")).to_be_visible()

    sign_out(page)
    enter_password(page)
    page.get_by_label("Authentication code").fill(code_now(secret, 1))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()

    sign_out(page)
    enter_password(page)
    page.get_by_role("link", name="Use a recovery code").click()
    page.get_by_label("Recovery code").fill(codes[0])
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("9 codes are left.")).to_be_visible()


def test_a_passkey_is_created_and_signs_in(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    session, authenticator_id = add_authenticator(page)
    accept_invitation(page, shop)
    add_passkey(page, shop)
    expect(page.get_by_text("The passkey “Work laptop” was added.")).to_be_visible()
    page.get_by_role("link", name="I have saved the codes").click()
    expect(page.get_by_role("cell", name="Work laptop")).to_be_visible()
    [credential] = session.send("WebAuthn.getCredentials", {"authenticatorId": authenticator_id})["credentials"]
    assert (credential["rpId"], credential["isResidentCredential"]) == ("localhost", True)

    sign_out(page)
    page.get_by_role("button", name="Sign in with a passkey").click()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()

    sign_out(page)
    enter_password(page)
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()


def test_what_went_wrong_is_said(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    session, authenticator_id = add_authenticator(page)
    accept_invitation(page, shop)
    add_passkey(page, shop)
    expect(page.get_by_text("was added")).to_be_visible()
    add_passkey(page, shop)
    expect(page.get_by_text("This device already has a passkey for your account.")).to_be_visible()
    session.send("WebAuthn.setUserVerified", {"authenticatorId": authenticator_id, "isUserVerified": False})
    sign_out(page)
    page.get_by_role("button", name="Sign in with a passkey").click()
    expect(page.get_by_text("No passkey was used.")).to_be_visible()
    expect(page.get_by_role("button", name="Sign in with a passkey")).to_be_enabled()


def test_a_copied_passkey_is_refused(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    session, authenticator_id = add_authenticator(page)
    accept_invitation(page, shop)
    add_passkey(page, shop)
    expect(page.get_by_text("was added")).to_be_visible()
    [credential] = session.send("WebAuthn.getCredentials", {"authenticatorId": authenticator_id})["credentials"]
    sign_out(page)
    for _ in range(2):
        page.get_by_role("button", name="Sign in with a passkey").click()
        expect(page.get_by_role("heading", name="Home")).to_be_visible()
        sign_out(page)
    # The authenticator goes back to an earlier state, as a copy of it would be.
    session.send("WebAuthn.clearCredentials", {"authenticatorId": authenticator_id})
    session.send("WebAuthn.addCredential", {"authenticatorId": authenticator_id, "credential": credential})
    page.get_by_role("button", name="Sign in with a passkey").click()
    expect(page.get_by_text("a copy of it may exist")).to_be_visible()


def test_a_passkey_confirms_a_change_of_the_factors(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    add_authenticator(page)
    accept_invitation(page, shop)
    add_passkey(page, shop)
    expect(page.get_by_text("was added")).to_be_visible()
    page.goto(f"{shop.url}/settings/profile/two-step")
    db.session.execute(text("update staff_session set second_factor_at = now() - interval '1 hour'"))
    db.session.commit()
    page.locator("#recovery-codes summary").click()
    page.get_by_role("dialog").get_by_role("button", name="Create new codes").click()
    expect(page.get_by_role("heading", name="Confirm the second step")).to_be_visible()
    problems = problems_by_appearance(page)
    assert problems == {name: [] for name in problems}
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.get_by_role("heading", name="Two-step verification")).to_be_visible()
    page.locator("#recovery-codes summary").click()
    page.get_by_role("dialog").get_by_role("button", name="Create new codes").click()
    expect(page.locator(".recovery-codes code")).to_have_count(10)


@pytest.mark.slow
def test_pages_are_accessible(shop: RunningShop, window: OpenPage) -> None:
    page = window()
    add_authenticator(page)
    accept_invitation(page, shop)
    two_step = f"{shop.url}/settings/profile/two-step"
    page.goto(two_step)
    found = [problems_by_appearance(page)]
    page.goto(f"{two_step}/app")
    found.append(problems_by_appearance(page))
    page.goto(two_step)
    page.get_by_label("Name of the new passkey").fill("Work laptop")
    page.get_by_role("button", name="Add passkey").click()
    found.append(problems_by_appearance(page))
    page.get_by_role("button", name="Create passkey").click()
    expect(page.get_by_text("was added")).to_be_visible()
    found.append(problems_by_appearance(page))
    page.goto(two_step)
    found.append(problems_by_appearance(page))
    page.goto(f"{shop.url}/settings/people/1")
    found.append(problems_by_appearance(page))
    sign_out(page)
    found.append(problems_by_appearance(page))
    enter_password(page)
    expect(page.get_by_role("button", name="Use a passkey")).to_be_visible()
    found.append(problems_by_appearance(page))
    page.get_by_role("link", name="Use a recovery code").click()
    found.append(problems_by_appearance(page))
    problems = {name: [problem for of_page in found for problem in of_page[name]] for name in APPEARANCES}
    assert problems == {name: [] for name in APPEARANCES}
