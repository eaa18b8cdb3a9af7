"""Joining by an emailed invitation and resetting a forgotten password, with and without scripts."""

from __future__ import annotations

import re
from email.message import EmailMessage

import pytest
from playwright.sync_api import expect

from tests.support import live_server
from tests.support.browser import OpenPage, RunningShop, accept_invitation

pytestmark = pytest.mark.browser
FIRST, SECOND = "three blue bicycles", "a quiet morning with tea"


def link_in_email_to(shop: RunningShop, address: str, subject: str) -> str:
    """Wait for an email with this subject; return the link in it."""

    def find() -> EmailMessage | None:
        emails = [message for message in shop.messages() if message["Subject"] == subject]
        return emails[-1] if emails and address in str(emails[-1]["To"]) else None

    live_server.wait_until(find)
    message = find()
    assert message
    found = re.search(r"https?://\S+/invitations/\S+", message.get_content())
    assert found
    return found[0]


@pytest.mark.parametrize("has_scripts", [True, False])
def test_a_user_joins_and_resets_the_password_by_email(shop: RunningShop, window: OpenPage, has_scripts: bool) -> None:
    admin = window()
    accept_invitation(admin, shop)
    admin.goto(f"{shop.url}/settings/people")
    admin.get_by_label("Email address").fill("noor@example.com")
    admin.get_by_label("Email the link to this address").check()
    admin.get_by_role("button", name="Create invitation link").click()
    expect(admin.get_by_text("on its way to noor@example.com")).to_be_visible()

    page = window(javascript=has_scripts)
    page.goto(link_in_email_to(shop, "noor@example.com", "Your invitation to Onecode"))
    expect(page.get_by_label("Email address")).to_have_value("noor@example.com")
    expect(page.get_by_label("Email address")).not_to_be_editable()
    page.get_by_label("Name").fill("Noor Haddad")
    page.get_by_label("Password", exact=True).fill("noor.haddad-1")
    page.get_by_label("Repeat password").fill("noor.haddad-1")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_text("it contains your name").last).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("Noor Haddad")
    page.get_by_label("Password", exact=True).fill(FIRST)
    page.get_by_label("Repeat password").fill(FIRST)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_text("Welcome, Noor Haddad")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()

    page.get_by_role("link", name="Forgot your password?").click()
    page.get_by_label("Email address").fill("noor@example.com")
    page.get_by_role("button", name="Send link").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()
    page.goto(link_in_email_to(shop, "noor@example.com", "Reset your Onecode password"))
    page.get_by_label("New password", exact=True).fill(SECOND)
    page.get_by_label("Repeat new password").fill(SECOND)
    page.get_by_role("button", name="Set password").click()
    expect(page.get_by_text("Your new password was set.")).to_be_visible()
