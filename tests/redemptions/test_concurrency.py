"""The promise at the centre: never above the cap, never twice for one customer, on any door, at once, in truth.

Real threads with real connections against the real web server in two processes, through every door there is.
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
from webapp.accounts import api_key_actions
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import personal_links

CLIENTS = 32
CAP = 40


@dataclass(frozen=True)
class Answer:
    """What a door said: redeemed, already_redeemed or offer_exhausted, and the reference if it gave one."""

    door: str
    email: str
    said: str
    reference: str | None = None


@dataclass(frozen=True)
class Doors:
    """Every way in, each over a connection of its own from an address of its own, as different people have."""

    netloc: str
    code: str
    tokens: dict[str, str]
    key: str
    cookie: str
    token: str

    def form(self, email: str, address: str) -> Answer:
        status, _, page = self._send(address, "/redeem", urlencode({"code": self.code, "email": email}))
        return Answer("form", email, _said(status, page), _reference(page))

    def link(self, email: str, address: str) -> Answer:
        status, _, page = self._send(address, f"/r/{self.tokens[email]}", "")
        # The link shows the receipt again, and says so.
        said = "already_redeemed" if "your receipt again" in page else _said(status, page)
        return Answer("link", email, said, _reference(page))

    def api(self, email: str, address: str) -> Answer:
        status, found = self._call("/api/v1/redemptions", email, address)
        return Answer("api", email, "redeemed" if status == 201 else found["code"], found.get("id"))

    def api_with_key(self, email: str, address: str) -> Answer:
        status, found = self._call("/api/v1/redemptions", email, address, {"Idempotency-Key": "the same"})
        said = {201: "redeemed", 200: "repeated"}.get(status) or found["code"]
        return Answer("api with key", email, said, found.get("id"))

    def api_with_order(self, email: str, address: str) -> Answer:
        status, found = self._call("/api/v1/redemptions", email, address, order={"id": "the same"})
        said = {201: "redeemed", 200: "repeated"}.get(status) or found["code"]
        return Answer("api with order", email, said, found.get("id"))

    def validation(self, email: str, address: str) -> Answer:
        _, found = self._call("/api/v1/validations", email, address)
        return Answer("validation", email, "valid" if found["valid"] else found["reason"])

    def _call(
        self, path: str, email: str, address: str, headers: dict[str, str] | None = None, **more: object
    ) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"code": self.code, "customer": {"email": email}} | more)
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"} | (headers or {})
        status, _, page = self._send(address, path, body, given)
        return status, json.loads(page)

    def staff(self, email: str, address: str) -> Answer:
        body = urlencode({"code": self.code, "email": email, "csrf_token": self.token})
        status, goal, page = self._send(address, "/redemptions/new", body, {"Cookie": self.cookie})
        return Answer("staff", email, "redeemed" if status == 302 else _said(status, page), goal.rpartition("/")[2])

    def _send(self, address: str, path: str, body: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection(self.netloc, timeout=60, source_address=(address, 0))
        try:
            given = {"Content-Type": "application/x-www-form-urlencoded"} | (headers or {})
            connection.request("POST", path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Location") or "", answer.read().decode()
        finally:
            connection.close()


def _said(status: int, page: str) -> str:
    if status == 200:
        return "redeemed"
    for words, said in (
        ("already redeemed with", "already_redeemed"),
        ("has already redeemed this offer", "already_redeemed"),
        ("reached its limit", "offer_exhausted"),
    ):
        if words in page:
            return said
    raise AssertionError(f"{status}: {page[:2000]}")


def _reference(page: str) -> str | None:
    found = re.search(r"<dd>([0-9A-Z]{26})</dd>", page)
    return found.group(1) if found else None


@pytest.fixture
def customers(app: Flask) -> list[Customer]:
    """Three times as many as the cap has room for."""
    emails = [f"c{n}@example.com" for n in range(3 * CAP)]
    db.session.add_all(Customer(email=email, email_as_given=email, name="") for email in emails)
    db.session.commit()
    return list(db.session.query(Customer).order_by(Customer.id))


@pytest.fixture
def doors(
    app: Flask, offer: Callable[..., Offer], customers: list[Customer], staff_user: Callable[..., StaffUser]
) -> Iterator[Doors]:
    """The real server with a capped offer, a key, links, and a manager who has signed in."""
    row = offer(max_redemptions=CAP)
    tokens = {c.email: personal_links.build_personal_url(row.id, c.id).rpartition("/")[2] for c in customers}
    key = api_key_actions.create_api_key("tests", ["redeem"], by="tests")
    cookie, token = _signed_in(app, staff_user("manager"))
    # Cookies are named after the port people see, which the server here must share with the test.
    with live_server.web_server(app.config["SETTINGS"], workers=2, PUBLIC_URL=app.config["SETTINGS"].public_url) as web:
        name = app.config["SESSION_COOKIE_NAME"]
        yield Doors(urlsplit(web.url).netloc, row.code, tokens, key, f"{name}={cookie}", token)


def _signed_in(app: Flask, user: StaffUser) -> tuple[str, str]:
    """What a browser's cookie holds after signing in, and the token of its forms."""
    with app.test_request_context():
        token = generate_csrf()
        session["_user_id"], session["_fresh"] = user.get_id(), True
        serializer: Any = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
        return serializer.dumps(dict(session)), token


def at_once(asks: list[Callable[[str], Answer]]) -> list[Answer]:
    """All asks by 32 clients that begin together, each from an address of its own."""
    ready = threading.Barrier(CLIENTS)

    def client(number: int) -> list[Answer]:
        ready.wait()
        return [ask(f"127.0.1.{number + 1}") for ask in asks[number::CLIENTS]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]


def rows() -> dict[str, str]:
    """E-mail and channel of every redemption."""
    found = db.session.execute(
        text("select c.email, r.channel from redemption r join customer c on c.id = r.customer_id")
    )
    return {row.email: row.channel for row in found}


def counter() -> int:
    return int(db.session.execute(text("select redeemed from offer")).scalar_one())


def test_many_customers_on_every_door_fill_the_cap_exactly_and_hear_the_truth(
    doors: Doors, customers: list[Customer]
) -> None:
    every = [doors.form, doors.link, doors.api, doors.staff]
    first = [(every[n % 4], c.email) for n, c in enumerate(customers)]
    # Each comes once more, by another door, while the others are still at it.
    again = [(every[(n + 1) % 4], c.email) for n, c in enumerate(customers)]

    answers = at_once([lambda a, go=go, e=e: go(e, a) for go, e in first + again])  # type: ignore[misc]

    made = rows()
    told = Counter(answer.email for answer in answers if answer.said == "redeemed")
    assert len(made) == counter() == CAP
    assert told == Counter(made.keys())
    assert {answer.email for answer in answers if answer.said == "already_redeemed"} <= made.keys()
    assert {a.door for a in answers if a.said == "redeemed"} == set(made.values()) >= {"form", "link", "api"}
    for answer in answers:
        if answer.said == "redeemed":
            assert made[answer.email] == answer.door
        if answer.said == "offer_exhausted" and answer.email in made:
            pytest.fail(f"{answer.email} has redeemed and was told that the offer is used up, by {answer.door}")


def test_one_customer_at_sixty_four_places_at_once_redeems_once_and_hears_the_truth(
    doors: Doors, customers: list[Customer]
) -> None:
    """With several customers one after the other, so that each door comes to be the first one some time."""
    once = [doors.form, doors.link, doors.staff, doors.api]
    every = [doors.api_with_key, *once, doors.api_with_order, doors.validation, doors.api_with_key]

    for number, email in enumerate([customer.email for customer in customers[:4]]):
        turned = every[number:] + every[:number]
        answers = at_once([lambda a, n=n, e=email, t=turned: t[n % 8](e, a) for n in range(64)])  # type: ignore[misc]

        _check_truth(answers)
        assert len(rows()) == counter() == number + 1
        assert doors.validation(email, "127.0.1.1").said == "already_redeemed"


def _check_truth(answers: list[Answer]) -> None:
    """One heard that it redeemed; its own repeats hear the same, and all others that it was used."""
    [winner] = [answer for answer in answers if answer.said == "redeemed"]
    assert len({answer.reference for answer in answers if answer.reference}) == 1
    for door in {answer.door for answer in answers}:
        said = {answer.said for answer in answers if answer.door == door and answer is not winner}
        if door == "validation":
            assert said <= {"valid", "already_redeemed"}
        elif door == winner.door and door.startswith("api with"):
            # The same request again, though it came while the first was still under way.
            assert said == {"repeated"}
        else:
            assert said == {"already_redeemed"}
