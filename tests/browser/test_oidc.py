"""Linking an account at an OpenID Connect provider and signing in with it, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import expect
from sqlalchemy import func, select

from tests.support import live_server, oidc_provider
from tests.support.browser import APPEARANCES, OpenPage, RunningShop, accept_invitation, problems_by_appearance
from tests.support.oidc_provider import OidcProvider
from webapp.accounts.models import StaffDevice
from webapp.core.extensions import db
from webapp.core.settings import Settings

pytestmark = pytest.mark.browser


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with oidc_provider.running() as provider:
        provider.claims = {"email": "grace@sso.example", "name": "Grace"}
        yield provider


@pytest.fixture
def linked_shop(app: Flask, test_settings: Settings, tmp_path: Path, provider: OidcProvider) -> Iterator[RunningShop]:
    """A web server that uses the provider."""
    settings = {
        "OIDC_ISSUER": provider.url,
        "OIDC_CLIENT_ID": oidc_provider.CLIENT_ID,
        "OIDC_CLIENT_SECRET": oidc_provider.CLIENT_SECRET,
        "OIDC_NAME": "Example SSO",
    }
    with live_server.web_server(test_settings, 1, **settings) as web:
        yield RunningShop(web.url, tmp_path, app)


def test_an_account_is_linked_and_signs_in(linked_shop: RunningShop, window: OpenPage) -> None:
    page = window()
    page.goto(f"{linked_shop.url}/sign-in")
    page.get_by_role("link", name="Sign in with Example SSO").click()
    expect(page.get_by_role("heading", name="This account is not linked")).to_be_visible()
    found = [problems_by_appearance(page)]

    accept_invitation(page, linked_shop)
    page.goto(f"{linked_shop.url}/settings/profile/two-step")
    page.get_by_role("button", name="Link account").click()
    expect(page.get_by_role("heading", name="Link this account?")).to_be_visible()
    found.append(problems_by_appearance(page))
    page.get_by_role("button", name="Link account").click()
    expect(page.get_by_text("Linked with grace@sso.example")).to_be_visible()
    found.append(problems_by_appearance(page))

    page.get_by_role("button", name="Sign out").first.click()
    found.append(problems_by_appearance(page))
    page.get_by_role("link", name="Sign in with Example SSO").click()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()
    # The browser is known: its device cookie was sent, although it came from another site.
    assert db.session.scalar(select(func.count()).select_from(StaffDevice)) == 1

    page.goto(linked_shop.invitation("viewer"))
    found.append(problems_by_appearance(page))
    problems = {name: [problem for of_page in found for problem in of_page[name]] for name in APPEARANCES}
    assert problems == {name: [] for name in APPEARANCES}
