"""Steps and checks that browser tests share."""

from __future__ import annotations

import csv
import email
import email.policy
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app
from playwright.sync_api import Page, expect
from sqlalchemy import text

from tests.support import live_server
from webapp.accounts import api_key_actions, invitation_actions
from webapp.core.extensions import db
from webapp.core.settings import ROOT


@dataclass
class RunningShop:
    """The running program and the folder with the emails that it sent."""

    url: str
    mails: Path
    app: Flask

    def messages(self) -> list[EmailMessage]:
        files = sorted(self.mails.glob("*.eml"))
        return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default) for file in files]

    def mail_to(self, address: str) -> EmailMessage:
        """Wait for an email to an address; return the newest."""
        found: list[EmailMessage] = []

        def is_there() -> bool:
            found[:] = [message for message in self.messages() if address in str(message["To"])]
            return bool(found)

        live_server.wait_until(is_there, what=f"an email to {address}", interval=0.1)
        return found[-1]

    def link_to(self, address: str) -> str:
        """The personal link in the newest email to an address."""
        body = self.mail_to(address).get_body(("plain",))
        assert body is not None
        found = re.search(r"https?://\S+/r/[\w.-]+", body.get_content())
        assert found, body.get_content()
        return found[0]

    def invitation(self, role: str = "admin") -> str:
        """Create an invitation; return its URL on this server."""
        return (
            self.url + "/invitations/" + invitation_actions.create_invitation(role, None, by="tests").rpartition("/")[2]
        )

    @cached_property
    def key(self) -> str:
        """An API key with every scope."""
        return api_key_actions.create_api_key("browser tests", ["read", "redeem", "manage"], by="tests")


OpenPage = Callable[..., Page]


def accept_invitation(page: Page, shop: RunningShop, role: str = "admin") -> None:
    """Create an account from an invitation, which also signs in."""
    page.goto(shop.invitation(role))
    page.get_by_label("Name").fill("Grace Hopper")
    page.get_by_label("Email").fill("grace@example.com")
    page.get_by_label("Password", exact=True).fill("correct horse battery")
    page.get_by_label("Repeat password").fill("correct horse battery")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_text("Welcome, Grace Hopper")).to_be_visible()


def write_csv(folder: Path, rows: int) -> Path:
    file = folder / "customers.csv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["email", "name"])
        writer.writerow(["ada@example.com", "Ada Lovelace"])
        writer.writerows([f"person{n}@example.com", f"Person {n}"] for n in range(rows - 2))
        writer.writerow(["not an address", "Nobody"])
    return file


def submit_code(page: Page, code: str, address: str) -> None:
    page.get_by_label("Code").fill(code)
    page.get_by_label("Email").fill(address)
    page.get_by_role("button").last.click()


def reach_address_limit() -> None:
    """Let the browser's address reach the limit of customers of the public form."""
    statement = """
        insert into address_customers
        select '127.0.0.1', jsonb_object_agg(n, 1), now() + interval '1 hour' from generate_series(1, :limit) n
        on conflict (address) do update set customers = excluded.customers, expires_at = excluded.expires_at
    """
    limit = current_app.config["SETTINGS"].public_customers_per_address
    db.session.execute(text(statement), {"limit": limit})
    db.session.commit()


def call_api(
    shop: RunningShop, method: str, path: str, body: Any = None, media_type: str = "application/json"
) -> tuple[int, Any]:
    """Call the API with a key that has every scope; return status and body."""
    data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = {"Authorization": f"Bearer {shop.key}", "Content-Type": media_type}
    request = urllib.request.Request(f"{shop.url}/api/v1{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def wait_for_status(fetch: Callable[[], dict[str, Any]], status: str) -> dict[str, Any]:
    resource: dict[str, Any] = {}

    def has_status() -> bool:
        resource.update(fetch())
        return bool(resource["status"] == status)

    live_server.wait_until(has_status, what=lambda: f"still {resource}", interval=0.2)
    return resource


AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text()
# Tags of axe's rules, and those rules whose result depends on colours.
STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
APPEARANCES: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800}}
# `appearance` is one of them, for pages that are opened again in each; the fast tests check the light ones.
in_each_appearance = pytest.mark.parametrize(
    "appearance", ["light", pytest.param("dark", marks=pytest.mark.slow), pytest.param("phone", marks=pytest.mark.slow)]
)


# Finds tables that are cut off: nothing on the screen shows that there are more columns.
FIND_CLIPPED_TABLES = """() => [...document.querySelectorAll(".table-responsive")]
    .filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => `the table ${box.ariaLabel} is cut off: ${box.scrollWidth} of ${box.clientWidth} pixels`)"""


def problems_by_appearance(page: Page) -> dict[str, list[str]]:
    """Return the problems of an open page in each of the appearances; leave it light and wide."""
    problems = {}
    for name, look in APPEARANCES.items():
        page.emulate_media(color_scheme="dark" if look.get("dark") else "light")
        page.set_viewport_size({"width": look.get("width", 1280), "height": look.get("height", 900)})
        # The dark pages are the light ones in other colours.
        problems[name] = page_problems(page, COLOUR_RULES if name == "dark" else STANDARD)
    page.set_viewport_size({"width": 1280, "height": 900})
    return problems


def page_problems(page: Page, rules: Sequence[str] = STANDARD) -> list[str]:
    """Return the violations of axe's rules, and tables and pages that are cut off."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    problems: list[str] = page.evaluate(
        "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations'], preload: false}).then("
        "found => found.violations.map(rule => rule.id + ' at ' + rule.nodes.map(node => node.target).join(', ')))",
        list(rules),
    )
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        problems.append("wider than the screen")
    problems += page.evaluate(FIND_CLIPPED_TABLES)
    return [f"{page.url}: {problem}" for problem in problems]
