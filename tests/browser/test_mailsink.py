"""The mail sink in a browser: hostile HTML, links, emptying the folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask, request
from playwright.sync_api import Browser, Page
from werkzeug.serving import make_server

from local.mailsink.index import MailIndex
from local.mailsink.web_app import create_sink_app
from tests.support.browser import APPEARANCES, in_each_appearance, page_problems
from tests.support.chromium import PATIENCE_MS

pytestmark = pytest.mark.browser
NAME = "1700000000000000000-1-0.eml"


@dataclass
class ExternalSite:
    """An external site that records the requests it receives."""

    url: str
    requested: list[str]


@contextmanager
def run_server(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def external_site() -> Iterator[ExternalSite]:
    app, requested = Flask("external"), list[str]()

    @app.route("/<path:path>", methods=["GET", "POST"])
    def record(path: str) -> str:
        requested.append(path)
        if path == "form":
            return '<script>document.title = "scripts run"</script>' + str(request.headers.get("Referer"))
        return ""

    with run_server(app) as url:
        yield ExternalSite(url, requested)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mails"
    folder.mkdir()
    return folder


@pytest.fixture
def sink(folder: Path) -> Iterator[str]:
    with run_server(create_sink_app(MailIndex(folder))) as url:
        yield url


@pytest.fixture
def unwatched_page(chromium: Browser) -> Iterator[Page]:
    """A page whose console is not checked, since a hostile email fills it with errors."""
    context = chromium.new_context(locale="en-GB")
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def write_email(folder: Path, html: str, name: str = NAME) -> None:
    headers = "To: Ada <ada@example.com>\r\nSubject: Hello\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    (folder / name).write_text(headers + html)


def test_a_hostile_email_runs_no_script_and_loads_nothing(
    sink: str, folder: Path, unwatched_page: Page, external_site: ExternalSite
) -> None:
    url = external_site.url
    write_email(
        folder,
        f"""<html><head><base href="{url}/base/"><link rel="stylesheet" href="{url}/style">
        <link rel="prefetch" href="{url}/prefetch"><meta http-equiv="refresh" content="0;url={url}/refresh">
        <style>@import "{url}/import"; @font-face {{font-family: f; src: url({url}/font)}}
        body {{background: url({url}/background); font-family: f}}</style></head>
        <body onload="document.title='run'; top.location='{url}/top'"><p id="words">Still here</p>
        <script>fetch("{url}/fetch"); new Image().src = "{url}/image"</script><script src="{url}/script"></script>
        <img src="{url}/img" onerror="document.title='run'"><iframe src="{url}/frame"></iframe>
        <video src="{url}/video" poster="{url}/poster" autoplay></video><object data="{url}/object"></object>
        <svg><image href="{url}/svg"></image></svg><form id="f" action="{url}/posted"><button>Send</button></form>
        </body></html>""",
    )
    for page_url in (f"{sink}/{NAME}", f"{sink}/{NAME}/html"):
        # What the policy blocks may keep the page from ever being loaded completely.
        unwatched_page.goto(page_url, wait_until="domcontentloaded")
        content = unwatched_page if page_url.endswith("html") else unwatched_page.frame_locator("iframe")
        content.locator("#words").wait_for()
        content.get_by_role("button", name="Send").click()
        unwatched_page.wait_for_timeout(300)
        assert unwatched_page.url == page_url
        assert unwatched_page.title() != "run"
    assert external_site.requested == []


def test_a_link_opens_a_working_page_without_a_referrer(
    sink: str, folder: Path, unwatched_page: Page, external_site: ExternalSite
) -> None:
    write_email(folder, f'<!doctype html><p><a href="{external_site.url}/form">Use it now</a></p>')
    unwatched_page.goto(f"{sink}/{NAME}")
    with unwatched_page.context.expect_page() as opened:
        unwatched_page.frame_locator("iframe").get_by_role("link").click()
    opened.value.wait_for_load_state()
    assert opened.value.title() == "scripts run"
    assert "None" in opened.value.inner_text("body")
    assert unwatched_page.url == f"{sink}/{NAME}"


def test_the_sink_is_emptied_after_a_confirmation(sink: str, folder: Path, window: Callable[..., Page]) -> None:
    write_email(folder, "<p>Hi</p>")
    page = window(javascript=False)
    page.goto(sink)
    assert not page.get_by_role("button", name="Delete email").is_visible()
    page.get_by_text("Delete all emails").click()
    page.get_by_role("button", name="Delete email").click()
    page.get_by_role("heading", name="No emails yet").wait_for()
    assert list(folder.iterdir()) == []


@in_each_appearance
def test_the_pages_of_the_sink_are_accessible(
    sink: str, folder: Path, window: Callable[..., Page], appearance: str
) -> None:
    page = window(**APPEARANCES[appearance])
    page.goto(sink)
    problems = page_problems(page)
    write_email(folder, f"<html lang='en'><title>x</title><p>{'long' * 200}</p></html>")
    for path in ("/", "/?q=nobody", f"/{NAME}", f"/{NAME}?view=phone", f"/{NAME}?view=text", "/none.eml"):
        page.goto(sink + path)
        problems += page_problems(page)
    assert problems == []
