"""Chromium, the real web server and worker, and an SMTP server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from sqlalchemy import text

from local.mailsink.smtp_handler import SinkHandler
from tests.support import live_server, ports, program
from tests.support.browser import RunningShop
from tests.support.chromium import CHROMIUM_FLAGS, PATIENCE_MS, find_chromium
from tests.support.databases import migrated_database
from webapp.core.extensions import db
from webapp.core.settings import Settings

Program = tuple[str, SinkHandler]
WHY_SKIPPED = "BROWSER TESTS SKIPPED: no Chromium on this machine (on Debian: apt install chromium-headless-shell)"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The installed Chromium.

    Without one the test is skipped, or fails if REQUIRE_BROWSER is set.
    """
    path = find_chromium()
    if path is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("REQUIRE_BROWSER is set and there is no Chromium")
        pytest.skip(WHY_SKIPPED)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


# The program serves all tests of a process and has its own database, so that its worker sees no rows of other tests.


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    with migrated_database() as url:
        yield url


@pytest.fixture(scope="session")
def test_settings(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return program.settings_for_tests(database_url, tmp_path_factory.mktemp("instance"), ports.free_port())


@pytest.fixture(scope="session")
def session_app(test_settings: Settings) -> Flask:
    return program.create_test_app(test_settings)


@pytest.fixture
def app(session_app: Flask) -> Iterator[Flask]:
    """The app on empty tables, except that of the worker, which keeps running."""
    with program.on_empty_tables(session_app, keep=["worker"]):
        yield session_app


@pytest.fixture(scope="session")
def live_program(test_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Start web server, worker and SMTP server; yield the URL and the SMTP handler.

    The host is localhost, where browsers offer passkeys.
    """
    handler = SinkHandler(tmp_path_factory.mktemp("mails"))
    relay = Controller(handler, hostname="127.0.0.1", port=test_settings.mail_port, enable_SMTPUTF8=True)
    relay.start()
    try:
        with (
            live_server.web_server(test_settings, workers=2, host="localhost") as web,
            live_server.worker(test_settings, PUBLIC_URL=web.url),
        ):
            yield web.url, handler
    finally:
        relay.stop()


@pytest.fixture
def shop(app: Flask, live_program: Program, tmp_path: Path) -> Iterator[RunningShop]:
    """Web server, worker and SMTP server, on empty tables."""
    url, handler = live_program
    handler.folder = tmp_path / "mails"
    handler.folder.mkdir()
    live_server.wait_until(lambda: _exists("select from worker where seen_at > now() - interval '1 minute'"))
    yield RunningShop(url, handler.folder, app)
    # Wait until no task or query of this test can touch the tables of the next one.
    live_server.wait_until(lambda: not _exists(RUNNING_WORK))


RUNNING_WORK = """
select from huey_task union all select from batch where status = 'sending' union all
select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'
"""


def _exists(rows: str) -> bool:
    found = db.session.execute(text(f"select exists ({rows})")).scalar_one()
    db.session.rollback()
    return bool(found)


@pytest.fixture
def window(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages in separate windows; fail on script errors and policy violations."""
    contexts: list[BrowserContext] = []
    console_errors: list[str] = []

    def record_error(message: ConsoleMessage) -> None:
        # The browser also logs responses such as 409 as errors, which the tests expect.
        if message.type == "error" and "Failed to load resource" not in message.text:
            console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def make(javascript: bool = True, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        context = chromium.new_context(
            java_script_enabled=javascript,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            locale="en-GB",
        )
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", record_error)
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert console_errors == []
