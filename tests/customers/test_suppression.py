"""The list of those who must not be mailed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select

from webapp.customers import queries, suppression_actions
from webapp.customers.models import Customer, Suppression, hashed_email
from webapp.extensions import db

Make = Callable[..., Customer]


def listed() -> dict[str, str]:
    db.session.expire_all()
    return {row.email: row.reason for row in db.session.scalars(select(Suppression))}


def put(email: str = "ada@example.com", reason: str = "bounced", source: int | str = "staff", words: str = "") -> bool:
    changed = suppression_actions.put(email, reason, source, words)
    db.session.commit()
    return changed


@pytest.mark.parametrize(
    ("first", "then", "stays"),
    [
        ("bounced", "unsubscribed", "unsubscribed"),
        ("bounced", "complained", "complained"),
        ("unsubscribed", "complained", "complained"),
        ("unsubscribed", "bounced", "unsubscribed"),
        ("complained", "unsubscribed", "complained"),
        ("complained", "bounced", "complained"),
        ("bounced", "bounced", "bounced"),
    ],
)
def test_the_first_reason_stays_unless_the_new_one_is_stronger(app: Flask, first: str, then: str, stays: str) -> None:
    assert put(reason=first, words="first")
    assert put(reason=then, words="then") is (stays != first)
    row = db.session.get_one(Suppression, "ada@example.com")
    assert (row.reason, row.words) == (stays, "first" if stays == first else "then")


def test_an_address_may_be_nobodys_but_not_when_a_campaign_says_so(app: Flask, customer: Make) -> None:
    customer("ada@example.com")
    assert put("nobody@example.com", source="import")
    assert not put("gone@example.com", source=3)
    assert put("ada@example.com", source=3)
    assert listed() == {"nobody@example.com": "bounced", "ada@example.com": "bounced"}
    assert db.session.get_one(Suppression, "ada@example.com").source == "campaign 3"


def test_who_of_these_is_on_the_list_also_by_the_hash_of_the_address(app: Flask, customer: Make) -> None:
    ada, bob, eve, zoë = (customer(f"{name}@example.com") for name in ("ada", "bob", "eve", "zoë"))
    put("ada@example.com", "bounced")
    put(hashed_email("ada@example.com"), "complained")
    put(hashed_email("zoë@example.com"), "unsubscribed")
    put("eve@example.com", "unsubscribed")

    assert queries.suppressed_among([ada.id, bob.id, eve.id, zoë.id, 999]) == {
        ada.id: "complained",
        eve.id: "unsubscribed",
        zoë.id: "unsubscribed",
    }
    assert queries.suppressed_among([bob.id]) == queries.suppressed_among([]) == {}
