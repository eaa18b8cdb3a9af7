"""Forms of the pages: sent once, and those of the staff pages after a confirmation where one is asked for.

The pages come from the app in this process. A form that is sent gets no page as its response (204), so that the
browser stays on the page and the form stays as it is while it waits for a response.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from playwright.sync_api import Page, Route, expect

from tests.support.browser import OpenPage
from tests.support.factories import MakeCustomer
from webapp.offers.models import Offer
from webapp.redemptions import personal_links

pytestmark = pytest.mark.browser

PAGE = "http://localhost/offers/1"


class AppRoutes:
    """Answers the requests of a browser, records POSTs, and holds those of htmx until `release`."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self._held: list[Route] = []
        self.posts: list[str] = []

    def answer(self, route: Route) -> None:
        if route.request.method != "POST":
            self._fulfill(route)
            return
        self.posts.append(urlsplit(route.request.url).path)
        if route.request.is_navigation_request():
            route.fulfill(status=204)
        else:
            self._held.append(route)

    def release(self) -> None:
        """Answer the held requests."""
        while self._held:
            self._fulfill(self._held.pop(0))

    def _fulfill(self, route: Route) -> None:
        request = route.request
        url = urlsplit(request.url)
        response = self._client.open(
            f"{url.path}?{url.query}",
            method=request.method,
            data=request.post_data_buffer,
            headers={name: value for name, value in request.headers.items() if name != "cookie"},
        )
        headers = {name: value for name, value in response.headers if name.lower() != "set-cookie"}
        route.fulfill(status=response.status_code, headers=headers, body=response.data)


@pytest.fixture
def pages(staff: FlaskClient) -> AppRoutes:
    return AppRoutes(staff)


@pytest.fixture
def open_page(pages: AppRoutes, window: OpenPage) -> Callable[[str], Page]:
    """Opens a page of the app for a signed-in manager: `open_page("http://localhost/offers/1")`."""

    def go(url: str) -> Page:
        page = window()
        page.route("**/*", pages.answer)
        page.clock.install(time=0)
        page.goto(url)
        # The time limit of a form that gets no response does not end while a test runs.
        page.clock.pause_at(60_000)
        return page

    return go


def wait_for_requests(page: Page) -> None:
    """Wait until the requests that the page has sent before have arrived."""
    page.evaluate("fetch('/healthz').then(response => response.text())")


# --- one submit at a time ---------------------------------------------------------------------------


@pytest.fixture
def paused_offer(make_offer: Callable[..., Offer]) -> Offer:
    """An offer whose page has a button that sends a form: Resume."""
    return make_offer(paused_at=datetime.now(UTC))


def test_a_form_is_sent_once_while_the_response_is_awaited(
    paused_offer: Offer, pages: AppRoutes, open_page: Callable[[str], Page]
) -> None:
    page = open_page(PAGE)
    button = page.get_by_role("button", name="Resume", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-busy", "true")
    button.click()
    button.press("Enter")
    wait_for_requests(page)
    assert pages.posts == ["/offers/1/resume"]


def test_a_page_that_is_shown_again_can_send_its_form_again(
    paused_offer: Offer, pages: AppRoutes, open_page: Callable[[str], Page]
) -> None:
    page = open_page(PAGE)
    button = page.get_by_role("button", name="Resume", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-busy", "true")
    # As the back button does.
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    expect(button).not_to_have_attribute("aria-busy", "true")
    button.click()
    wait_for_requests(page)
    assert pages.posts == ["/offers/1/resume"] * 2


def test_a_form_without_a_response_can_be_sent_again_after_ten_seconds(
    paused_offer: Offer, pages: AppRoutes, open_page: Callable[[str], Page]
) -> None:
    page = open_page(PAGE)
    button = page.get_by_role("button", name="Resume", exact=True)
    button.click()
    page.clock.run_for(9_900)
    button.click()
    wait_for_requests(page)
    assert len(pages.posts) == 1
    page.clock.run_for(200)
    button.click()
    wait_for_requests(page)
    assert len(pages.posts) == 2


@pytest.mark.parametrize("by_link", [False, True], ids=["form", "personal link"])
def test_a_customer_who_sends_a_form_twice_sees_the_receipt(
    make_offer: Callable[..., Offer],
    make_customer: MakeCustomer,
    pages: AppRoutes,
    open_page: Callable[[str], Page],
    by_link: bool,
) -> None:
    offer, customer = make_offer(), make_customer()
    url = personal_links.build_personal_url(offer.id, customer.id) if by_link else "http://localhost/redeem"
    page = open_page(url)
    if not by_link:
        page.get_by_label("Code").fill("SUMMER25")
        page.get_by_label("Email address").fill(customer.email)
    page.get_by_role("button", name="Redeem").dblclick()
    wait_for_requests(page)
    pages.release()
    expect(page.get_by_text("Redeemed. The discount is yours.")).to_be_visible()
    wait_for_requests(page)
    assert pages.posts == [urlsplit(url).path]
    expect(page.get_by_text("Redeemed. The discount is yours.")).to_be_visible()


def test_two_forms_of_a_page_do_not_block_each_other(
    paused_offer: Offer, pages: AppRoutes, open_page: Callable[[str], Page]
) -> None:
    page = open_page(PAGE)
    page.get_by_role("button", name="Resume", exact=True).click()
    page.evaluate(
        """() => {
            const form = document.createElement("form");
            Object.assign(form, {method: "post", action: "/offers/1/other"});
            document.body.append(form);
            form.requestSubmit();
        }"""
    )
    wait_for_requests(page)
    assert pages.posts == ["/offers/1/resume", "/offers/1/other"]


def test_a_fragment_can_be_requested_again_after_its_response(
    paused_offer: Offer, sign_in: Callable[..., FlaskClient], window: OpenPage
) -> None:
    pages = AppRoutes(sign_in("admin"))
    page = window()
    page.route("**/*", pages.answer)
    page.goto("http://localhost/settings/shop")
    button = page.get_by_role("button", name="Check relay")
    for n in (1, 2):
        button.click()
        expect(button).to_have_attribute("aria-busy", "true")
        button.click()
        wait_for_requests(page)
        assert len(pages.posts) == n
        pages.release()
        expect(page.locator("#shop-relay .alert")).to_be_visible()
        expect(button).not_to_have_attribute("aria-busy", "true")


# --- confirmation -----------------------------------------------------------------------------------


def test_a_button_with_a_question_sends_nothing_before_the_answer(
    make_offer: Callable[..., Offer], pages: AppRoutes, open_page: Callable[[str], Page]
) -> None:
    make_offer()
    page = open_page(PAGE)
    opener = page.locator("summary", has_text="Pause")
    dialog = page.get_by_role("dialog")
    cancel = dialog.get_by_role("button", name="Cancel")
    leaving: tuple[Callable[[], None], ...] = (lambda: cancel.click(), lambda: page.keyboard.press("Escape"))
    for leave in leaving:
        opener.click()
        expect(dialog).to_contain_text("Pause this offer?")
        leave()
        expect(dialog).to_have_count(0)
        expect(opener).to_be_focused()
    wait_for_requests(page)
    assert pages.posts == []
    opener.click()
    button = dialog.get_by_role("button", name="Pause")
    button.click()
    expect(button).to_have_attribute("aria-busy", "true")
    button.click()
    wait_for_requests(page)
    assert pages.posts == ["/offers/1/pause"]


QUESTION = "Resume this offer now?"


@pytest.fixture
def page_with_question(paused_offer: Offer, open_page: Callable[[str], Page]) -> Page:
    """A page with a form that asks before it is sent, outside of any dialog."""
    page = open_page(PAGE)
    page.locator("form[action$='/resume']").evaluate("(form, text) => { form.dataset.confirm = text; }", QUESTION)
    return page


@pytest.mark.parametrize("answer", ["Cancel", "Escape"])
def test_a_form_with_a_question_is_not_sent_without_a_yes(
    page_with_question: Page, pages: AppRoutes, answer: str
) -> None:
    page = page_with_question
    button = page.locator("form[action$='/resume'] button")
    button.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(QUESTION)
    expect(button).not_to_have_attribute("aria-busy", "true")
    if answer == "Escape":
        page.keyboard.press("Escape")
    else:
        dialog.get_by_role("button", name=answer).click()
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    wait_for_requests(page)
    assert pages.posts == []


def test_a_form_with_a_question_is_sent_once_after_a_yes(page_with_question: Page, pages: AppRoutes) -> None:
    page = page_with_question
    button = page.locator("form[action$='/resume'] button")
    button.click()
    page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    expect(button).to_have_attribute("aria-busy", "true")
    button.evaluate("button => button.click()")
    wait_for_requests(page)
    assert pages.posts == ["/offers/1/resume"]


def test_each_submit_is_asked_about(page_with_question: Page, pages: AppRoutes) -> None:
    page = page_with_question
    button = page.locator("form[action$='/resume'] button")
    button.click()
    page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    expect(button).to_have_attribute("aria-busy", "true")
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    button.click()
    expect(page.get_by_role("dialog")).to_contain_text(QUESTION)
    wait_for_requests(page)
    assert pages.posts == ["/offers/1/resume"]
