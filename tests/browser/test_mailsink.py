"""The mail sink in a real browser: somebody's HTML does nothing, links lead on, the folder is emptied by a click."""

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
from tests.support.browser import APPEARANCES, page_problems

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
NAME = "1700000000000000000-1-0.eml"


@dataclass
class Elsewhere:
    """A site that a mail would like to call on; remembers what was asked of it."""

    url: str
    asked: list[str]


@contextmanager
def served(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    app, asked = Flask("elsewhere"), list[str]()

    @app.route("/<path:path>", methods=["GET", "POST"])
    def answer(path: str) -> str:
        asked.append(path)
        if path == "form":
            return '<script>document.title = "scripts run"</script>' + str(request.headers.get("Referer"))
        return ""

    with served(app) as url:
        yield Elsewhere(url, asked)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mails"
    folder.mkdir()
    return folder


@pytest.fixture
def sink(folder: Path) -> Iterator[str]:
    with served(create_sink_app(MailIndex(folder))) as url:
        yield url


@pytest.fixture
def plain(chromium: Browser) -> Iterator[Page]:
    """A window whose console is not watched: a hostile mail fills it with refusals."""
    context = chromium.new_context(locale="en-GB")
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()


def put(folder: Path, html: str, name: str = NAME) -> None:
    head = "To: Ada <ada@example.com>\r\nSubject: Hello\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    (folder / name).write_text(head + html)


def test_a_hostile_mail_runs_nothing_and_fetches_nothing(
    sink: str, folder: Path, plain: Page, elsewhere: Elsewhere
) -> None:
    bad = elsewhere.url
    put(
        folder,
        f"""<html><head><base href="{bad}/base/"><link rel="stylesheet" href="{bad}/style">
        <link rel="prefetch" href="{bad}/prefetch"><meta http-equiv="refresh" content="0;url={bad}/refresh">
        <style>@import "{bad}/import"; @font-face {{font-family: f; src: url({bad}/font)}}
        body {{background: url({bad}/background); font-family: f}}</style></head>
        <body onload="document.title='run'; top.location='{bad}/top'"><p id="words">Still here</p>
        <script>fetch("{bad}/fetch"); new Image().src = "{bad}/image"</script><script src="{bad}/script"></script>
        <img src="{bad}/img" onerror="document.title='run'"><iframe src="{bad}/frame"></iframe>
        <video src="{bad}/video" poster="{bad}/poster" autoplay></video><object data="{bad}/object"></object>
        <svg><image href="{bad}/svg"></image></svg><form id="f" action="{bad}/posted"><button>Send</button></form>
        </body></html>""",
    )
    for address in (f"{sink}/{NAME}", f"{sink}/{NAME}/html"):
        plain.goto(address)
        shown = plain if address.endswith("html") else plain.frame_locator("iframe")
        shown.locator("#words").wait_for()
        shown.get_by_role("button", name="Send").click()
        plain.wait_for_timeout(300)
        assert plain.url == address
        assert plain.title() != "run"
    assert elsewhere.asked == []


def test_a_link_of_a_mail_opens_a_page_that_works_and_hears_nothing_of_the_sink(
    sink: str, folder: Path, plain: Page, elsewhere: Elsewhere
) -> None:
    put(folder, f'<!doctype html><p><a href="{elsewhere.url}/form">Use it now</a></p>')
    plain.goto(f"{sink}/{NAME}")
    with plain.context.expect_page() as opened:
        plain.frame_locator("iframe").get_by_role("link").click()
    opened.value.wait_for_load_state()
    assert opened.value.title() == "scripts run"
    assert "None" in opened.value.inner_text("body")
    assert plain.url == f"{sink}/{NAME}"


def test_the_sink_is_emptied_by_a_click_that_says_what_it_does(
    sink: str, folder: Path, window: Callable[..., Page]
) -> None:
    put(folder, "<p>Hi</p>")
    page = window(javascript=False)
    page.goto(sink)
    assert not page.get_by_role("button", name="Delete it").is_visible()
    page.get_by_text("Empty the sink").click()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_role("heading", name="No mail yet").wait_for()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("look_of", list(APPEARANCES))
def test_everybody_can_use_its_pages(sink: str, folder: Path, window: Callable[..., Page], look_of: str) -> None:
    page = window(**APPEARANCES[look_of])
    page.goto(sink)
    wrong = page_problems(page)
    put(folder, f"<html lang='en'><title>x</title><p>{'long' * 200}</p></html>")
    for address in ("/", "/?q=nobody", f"/{NAME}", f"/{NAME}?view=phone", f"/{NAME}?view=text", "/none.eml"):
        page.goto(sink + address)
        wrong += page_problems(page)
    assert wrong == []
