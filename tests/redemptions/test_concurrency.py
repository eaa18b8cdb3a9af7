"""Concurrent redemptions never exceed the cap, and none is a customer's second.

Threads with real connections use all interfaces of the real web server, which runs in two processes.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from flask import Flask, session
from flask_wtf.csrf import generate_csrf
from sqlalchemy import text

from tests.support import live_server
from tests.support.sessions import TEST_CLIENT
from webapp.accounts import api_key_actions, session_actions
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import personal_links

CLIENTS = 32
CAP = 40


@dataclass(frozen=True)
class LoadOutcome:
    """The outcome of a request to an interface, and the reference if there is one."""

    interface: str
    email: str
    result: str
    reference: str | None = None


@dataclass(frozen=True)
class Interfaces:
    """Clients of all interfaces; each request opens a connection from its own address."""

    netloc: str
    code: str
    tokens: dict[str, str]
    key: str
    cookie: str
    token: str

    def form(self, email: str, address: str) -> LoadOutcome:
        status, _, page = self._send(address, "/redeem", urlencode({"code": self.code, "email": email}))
        return LoadOutcome("form", email, _parse_result(status, page), _reference(page))

    def link(self, email: str, address: str) -> LoadOutcome:
        status, _, page = self._send(address, f"/r/{self.tokens[email]}", "")
        # The link shows the receipt again with a notice.
        result = "already_redeemed" if "your receipt again" in page else _parse_result(status, page)
        return LoadOutcome("link", email, result, _reference(page))

    def api(self, email: str, address: str) -> LoadOutcome:
        status, found = self._call("/api/v1/redemptions", email, address)
        return LoadOutcome("api", email, "redeemed" if status == 201 else found["code"], found.get("id"))

    def api_with_key(self, email: str, address: str) -> LoadOutcome:
        status, found = self._call("/api/v1/redemptions", email, address, {"Idempotency-Key": "the same"})
        result = {201: "redeemed", 200: "repeated"}.get(status) or found["code"]
        return LoadOutcome("api with key", email, result, found.get("id"))

    def api_with_order(self, email: str, address: str) -> LoadOutcome:
        status, found = self._call("/api/v1/redemptions", email, address, order={"id": "the same"})
        result = {201: "redeemed", 200: "repeated"}.get(status) or found["code"]
        return LoadOutcome("api with order", email, result, found.get("id"))

    def validation(self, email: str, address: str) -> LoadOutcome:
        _, found = self._call("/api/v1/validations", email, address)
        return LoadOutcome("validation", email, "valid" if found["valid"] else found["reason"])

    def _call(
        self, path: str, email: str, address: str, headers: dict[str, str] | None = None, **more: object
    ) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"code": self.code, "customer": {"email": email}} | more)
        all_headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"} | (headers or {})
        status, _, page = self._send(address, path, body, all_headers)
        return status, json.loads(page)

    def staff(self, email: str, address: str) -> LoadOutcome:
        body = urlencode({"code": self.code, "email": email, "csrf_token": self.token})
        status, goal, page = self._send(address, "/redemptions/new", body, {"Cookie": self.cookie})
        return LoadOutcome(
            "staff", email, "redeemed" if status == 302 else _parse_result(status, page), goal.rpartition("/")[2]
        )

    def _send(self, address: str, path: str, body: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection(self.netloc, timeout=60, source_address=(address, 0))
        try:
            all_headers = {"Content-Type": "application/x-www-form-urlencoded"} | (headers or {})
            connection.request("POST", path, body, all_headers)
            response = connection.getresponse()
            return response.status, response.getheader("Location") or "", response.read().decode()
        finally:
            connection.close()


def _parse_result(status: int, page: str) -> str:
    if status == 200:
        return "redeemed"
    for phrase, result in (
        ("already been redeemed with", "already_redeemed"),
        ("has already redeemed this offer", "already_redeemed"),
        ("reached its limit", "offer_exhausted"),
        ("reached its redemption limit", "offer_exhausted"),
    ):
        if phrase in page:
            return result
    raise AssertionError(f"{status}: {page[:2000]}")


def _reference(page: str) -> str | None:
    """Return the reference on a receipt, and None for another page."""
    found = re.search(r'class="reference">([0-9A-Z]{26})<', page)
    return found.group(1) if found else None


@pytest.fixture
def customers(app: Flask) -> list[Customer]:
    """Three customers for each unit of the cap."""
    emails = [f"c{n}@example.com" for n in range(3 * CAP)]
    db.session.add_all(Customer(email=email, email_as_given=email, name="") for email in emails)
    db.session.commit()
    return list(db.session.query(Customer).order_by(Customer.id))


@pytest.fixture
def interfaces(
    app: Flask, make_offer: Callable[..., Offer], customers: list[Customer], make_staff_user: Callable[..., StaffUser]
) -> Iterator[Interfaces]:
    """The real server with a capped offer, an API key, links and a signed-in manager."""
    offer = make_offer(max_redemptions=CAP)
    tokens = {c.email: personal_links.build_personal_url(offer.id, c.id).rpartition("/")[2] for c in customers}
    key = api_key_actions.create_api_key("tests", ["redeem"], by="tests")
    cookie, token = _sign_in(app, make_staff_user("manager"))
    # The cookie name contains the port of the public URL, which server and test must share.
    with live_server.web_server(app.config["SETTINGS"], workers=2, PUBLIC_URL=app.config["SETTINGS"].public_url) as web:
        name = app.config["SESSION_COOKIE_NAME"]
        yield Interfaces(urlsplit(web.url).netloc, offer.code, tokens, key, f"{name}={cookie}", token)


def _sign_in(app: Flask, user: StaffUser) -> tuple[str, str]:
    """Return the session cookie and the CSRF token of a signed-in user."""
    with app.test_request_context():
        token = generate_csrf()
        session["_user_id"] = session_actions.start_staff_session(user.id, TEST_CLIENT).token
        serializer: Any = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
        return serializer.dumps(dict(session)), token


def run_concurrently(requests: list[Callable[[str], LoadOutcome]]) -> list[LoadOutcome]:
    """Make all requests by 32 clients that start together, each from its own address."""
    ready = threading.Barrier(CLIENTS)

    def client(number: int) -> list[LoadOutcome]:
        ready.wait()
        return [request(f"127.0.1.{number + 1}") for request in requests[number::CLIENTS]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [outcome for outcomes in pool.map(client, range(CLIENTS)) for outcome in outcomes]


def redemptions_by_email() -> dict[str, str]:
    """Return the channel of every redemption by email."""
    rows = db.session.execute(
        text("select c.email, r.channel from redemption r join customer c on c.id = r.customer_id")
    )
    return {row.email: row.channel for row in rows}


def redeemed_counter() -> int:
    return int(db.session.execute(text("select redeemed from offer_counter")).scalar_one())


def test_concurrent_customers_on_all_interfaces_reach_the_cap_exactly(
    interfaces: Interfaces, customers: list[Customer]
) -> None:
    all_interfaces = [interfaces.form, interfaces.link, interfaces.api, interfaces.staff]
    first = [(all_interfaces[n % 4], c.email) for n, c in enumerate(customers)]
    # Each customer tries again over another interface while the first requests are running.
    repeats = [(all_interfaces[(n + 1) % 4], c.email) for n, c in enumerate(customers)]

    outcomes = run_concurrently([lambda a, call=call, e=e: call(e, a) for call, e in first + repeats])  # type: ignore[misc]

    stored = redemptions_by_email()
    confirmed = Counter(outcome.email for outcome in outcomes if outcome.result == "redeemed")
    assert len(stored) == redeemed_counter() == CAP
    assert confirmed == Counter(stored.keys())
    assert {outcome.email for outcome in outcomes if outcome.result == "already_redeemed"} <= stored.keys()
    assert {a.interface for a in outcomes if a.result == "redeemed"} == set(stored.values()) >= {"form", "link", "api"}
    for outcome in outcomes:
        if outcome.result == "redeemed":
            assert stored[outcome.email] == outcome.interface
        if outcome.result == "offer_exhausted" and outcome.email in stored:
            pytest.fail(f"{outcome.email} has redeemed but {outcome.interface} responded that the offer is used up")


def test_sixty_four_concurrent_requests_of_one_customer_redeem_once(
    interfaces: Interfaces, customers: list[Customer]
) -> None:
    """Several customers take turns, so that each interface comes first at least once."""
    without_repeats = [interfaces.form, interfaces.link, interfaces.staff, interfaces.api]
    all_interfaces = [
        interfaces.api_with_key,
        *without_repeats,
        interfaces.api_with_order,
        interfaces.validation,
        interfaces.api_with_key,
    ]

    for number, email in enumerate([customer.email for customer in customers[:4]]):
        rotated = all_interfaces[number:] + all_interfaces[:number]
        outcomes = run_concurrently([lambda a, n=n, e=email, t=rotated: t[n % 8](e, a) for n in range(64)])  # type: ignore[misc]

        _check_consistency(outcomes)
        assert len(redemptions_by_email()) == redeemed_counter() == number + 1
        assert interfaces.validation(email, "127.0.1.1").result == "already_redeemed"


def _check_consistency(outcomes: list[LoadOutcome]) -> None:
    """Check that one request redeemed, its repeats match it and all others failed."""
    [winner] = [outcome for outcome in outcomes if outcome.result == "redeemed"]
    assert winner.reference
    assert {outcome.reference for outcome in outcomes if outcome.reference} == {winner.reference}
    for interface in {outcome.interface for outcome in outcomes}:
        result = {outcome.result for outcome in outcomes if outcome.interface == interface and outcome is not winner}
        if interface == "validation":
            assert result <= {"valid", "already_redeemed"}
        elif interface == winner.interface and interface.startswith("api with"):
            # A repeat of the same request, even if the first was still running.
            assert result == {"repeated"}
        else:
            assert result == {"already_redeemed"}
