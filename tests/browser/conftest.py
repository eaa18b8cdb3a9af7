"""A real Chromium against the real web server, worker and an SMTP server that keeps every mail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from local.mailsink.smtp_handler import SinkHandler
from tests.support import live_server, ports
from tests.support.browser import RunningShop
from tests.support.chromium import CHROMIUM_FLAGS, find_chromium

WHY_SKIPPED = "BROWSER TESTS SKIPPED: no Chromium on this machine (on Debian: apt install chromium)"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium. Without one the test is skipped, or fails where REQUIRE_BROWSER is set."""
    path = find_chromium()
    if path is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("REQUIRE_BROWSER is set and there is no Chromium")
        pytest.skip(WHY_SKIPPED)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def shop(app: Flask, tmp_path: Path, with_settings: Callable[..., object]) -> Iterator[RunningShop]:
    """Web server, worker and SMTP server, on empty tables."""
    mails = tmp_path / "mails"
    mails.mkdir()
    port = ports.free_port()
    relay = Controller(SinkHandler(mails), hostname="127.0.0.1", port=port, enable_SMTPUTF8=True)
    relay.start()
    with_settings(mail_port=port)
    settings = app.config["SETTINGS"]
    try:
        with live_server.web_server(settings) as web, live_server.worker(settings, PUBLIC_URL=web.url):
            yield RunningShop(web.url, mails, app)
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
