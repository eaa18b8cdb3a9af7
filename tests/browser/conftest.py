"""A real Chromium against the real web server, worker and an SMTP server that keeps every mail."""

from __future__ import annotations

import email
import email.policy
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cached_property
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from local.mailsink.smtp_handler import SinkHandler
from tests import live
from tests.live import CHROMIUM
from webapp.accounts import actions as account_actions

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WHY_SKIPPED = "BROWSER TESTS SKIPPED: no Chromium on this machine (on Debian: apt install chromium)"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium. Without one the test is skipped, or fails where REQUIRE_BROWSER is set."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("REQUIRE_BROWSER is set and there is no Chromium")
        pytest.skip(WHY_SKIPPED)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Shop:
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
        return account_actions.create_api_key("browser tests", ["read", "redeem", "manage"], by="tests")


@pytest.fixture
def shop(app: Flask, tmp_path: Path, with_settings: Callable[..., object]) -> Iterator[Shop]:
    """Web server, worker and SMTP server, on empty tables."""
    mails = tmp_path / "mails"
    mails.mkdir()
    port = live.free_port()
    relay = Controller(SinkHandler(mails), hostname="127.0.0.1", port=port, enable_SMTPUTF8=True)
    relay.start()
    with_settings(mail_port=port)
    settings = app.config["SETTINGS"]
    try:
        with live.web_server(settings) as web, live.worker(settings, PUBLIC_URL=web.url):
            yield Shop(web.url, mails, app)
    finally:
        relay.stop()


@pytest.fixture
def window(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages in windows of their own; a script error or a breach of the content policy fails the test."""
    contexts: list[BrowserContext] = []
    trouble: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        # The browser also logs answers such as 409 as errors; those are part of the story.
        if message.type == "error" and "Failed to load resource" not in message.text:
            trouble.append(f"{message.text} ({message.location.get('url', '')})")

    def make(javascript: bool = True, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        context = chromium.new_context(
            java_script_enabled=javascript,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            locale="en-GB",
        )
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert trouble == []
