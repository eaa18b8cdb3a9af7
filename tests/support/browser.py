"""Steps and checks that browser tests share."""

from __future__ import annotations

import csv
import email
import email.policy
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cached_property
from pathlib import Path
from typing import Any

from flask import Flask
from playwright.sync_api import Page, expect

from webapp.accounts import actions as account_actions
from webapp.accounts import api_key_actions
from webapp.core.settings import ROOT


@dataclass
class RunningShop:
    """The running program, and what it mailed."""

    url: str
    mails: Path
    app: Flask

    def messages(self) -> list[EmailMessage]:
        files = sorted(self.mails.glob("*.eml"))
        return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default) for file in files]

    def mail_to(self, address: str, seconds: float = 60) -> EmailMessage:
        """The newest mail to an address; waits for it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [message for message in self.messages() if address in str(message["To"])]
            if found:
                return found[-1]
            time.sleep(0.1)
        raise AssertionError(f"no mail to {address}")

    def link_to(self, address: str) -> str:
        """The personal link in the mail to an address."""
        text = self.mail_to(address).get_body(("plain",))
        assert text is not None
        found = re.search(r"https?://\S+/r/[\w.-]+", text.get_content())
        assert found, text.get_content()
        return found[0]

    def invitation(self, role: str = "admin") -> str:
        """An invitation, on the address of this server."""
        return self.url + "/invitations/" + account_actions.create_invitation(role, None, by="tests").rpartition("/")[2]

    @cached_property
    def key(self) -> str:
        """An API key that may do everything."""
        return api_key_actions.create_api_key("browser tests", ["read", "redeem", "manage"], by="tests")


OpenPage = Callable[..., Page]


def accept_invitation(page: Page, shop: RunningShop, role: str = "admin") -> None:
    """Choose name and password by an invitation, which also signs in."""
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


def call_api(
    shop: RunningShop, method: str, path: str, body: Any = None, media_type: str = "application/json"
) -> tuple[int, Any]:
    """A shop's request, with a key that may do everything."""
    data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = {"Authorization": f"Bearer {shop.key}", "Content-Type": media_type}
    request = urllib.request.Request(f"{shop.url}/api/v1{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def wait_for_status(look: Callable[[], dict[str, Any]], status: str, seconds: float = 90) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = look()
        if seen["status"] == status:
            return seen
        time.sleep(0.2)
    raise AssertionError(f"still {seen}")


AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text()
STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
LOOKS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800}}


# Tables of which a part is out of sight, so that somebody would have to guess that there is more.
CLIPPED_TEXT = """() => [...document.querySelectorAll(".table-responsive")]
    .filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => `the table ${box.ariaLabel} is cut off: ${box.scrollWidth} of ${box.clientWidth} pixels`)"""


def page_problems(page: Page) -> list[str]:
    """What is wrong with the page as it stands."""
    page.evaluate(AXE)
    wrong: list[str] = page.evaluate(
        "standard => axe.run(document, {runOnly: standard}).then(found => found.violations.map("
        "rule => rule.id + ' at ' + rule.nodes.map(node => node.target).join(', ')))",
        STANDARD,
    )
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        wrong.append("wider than the screen")
    wrong += page.evaluate(CLIPPED_TEXT)
    return [f"{page.url}: {one}" for one in wrong]
