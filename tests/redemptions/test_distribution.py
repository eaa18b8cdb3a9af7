"""Statements of redeeming suit tables that are distributed by offer (docs/operations/scaling.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import ROLLBACK
from tests.support.sql_statements import recorded_statements
from webapp.core.extensions import db
from webapp.customers.models import Audience
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

BY_OFFER = {"redemption", "rollback", "offer_counter"}
ON_EVERY_NODE = {"offer", "offer_code", "customer", "audience_member", "signing_key"}
TABLE = re.compile(r"\b(?:from|join|into|update)\s+([a-z_]+)")
NEW = RedemptionRequest(channel="api", code="SUMMER25", email="new@example.com", api_key_id=1)
ADA = replace(NEW, email="ada@example.com", idempotency_key="k1", body_hash=b"1")
UNDONE = replace(NEW, email="undone@example.com", order=Order("A-1", 4999, "EUR"))


@pytest.fixture
def offers(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    """Two redeemed offers, an undone redemption, an offer for an audience without members, and one that is used up."""
    club = Audience(name="Club")
    db.session.add(club)
    db.session.flush()
    make_offer("SUMMER25", max_redemptions=9), make_offer("WINTER10"), make_offer("CLUB20", audience_id=club.id)
    make_offer("USEDUP", max_redemptions=1, redeemed=1, frozen_at=text("now()"))
    for email in ("new@example.com", "ada@example.com", "undone@example.com"):
        make_customer(email)
    group_commit.redeem(ADA)
    group_commit.redeem(replace(NEW, code="WINTER10"))
    redemption_rollback.roll_back_redemption(group_commit.redeem(UNDONE).public_id, **ROLLBACK)


def record_reads(run: Callable[[], object]) -> list[tuple[set[str], Any]]:
    """Run something; return the tables of each statement, and its parameters."""
    with recorded_statements() as recorded:
        run()
    return [(set(TABLE.findall(statement)) & (BY_OFFER | ON_EVERY_NODE), values) for statement, values in recorded]


REQUESTS = {
    "new": [NEW],
    "repeated": [ADA],
    "undone": [UNDONE],
    "redeemed before": [replace(ADA, idempotency_key=None)],
    "unknown customer": [replace(NEW, email="nobody@example.com")],
    "not in the audience": [replace(NEW, code="CLUB20")],
    "used up": [replace(NEW, code="USEDUP")],
    "two offers": [NEW, ADA, replace(ADA, code="WINTER10", idempotency_key="k2")],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_statement_of_redeeming_reads_the_redemptions_of_one_offer_or_none(offers: None, name: str) -> None:
    reads = record_reads(lambda: redemption_actions.redeem_all(REQUESTS[name]))

    assert any(tables & ON_EVERY_NODE for tables, _ in reads)
    for tables, values in reads:
        if tables & BY_OFFER:
            assert tables <= BY_OFFER
            assert isinstance(values["offer_id"], int)


NEW_ROW, REPEAT = ["select", "insert", "update"], ["select", "insert", "select"]
GROUPS = {
    "new": ([NEW], [NEW_ROW]),
    "repeat": ([ADA], [REPEAT]),
    "redeemed before": ([replace(ADA, idempotency_key=None)], [REPEAT]),
    "undone": ([UNDONE], [REPEAT]),
    "used up": ([replace(NEW, code="USEDUP")], [REPEAT]),
    "repeats": ([ADA, ADA, replace(ADA, order=Order("B-2"))], [REPEAT]),
    "new and repeat": ([NEW, ADA], [["select", "insert", "select", "update"]]),
    "two of one customer": ([NEW, NEW, NEW], [NEW_ROW, REPEAT]),
    "unknown customer": ([replace(NEW, email="nobody@example.com")], [["select", "select"]]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_repeats_and_refusals_are_completed_in_the_transaction_of_their_group(
    app: Flask, offers: None, name: str
) -> None:
    """Only a second new request of a customer needs another transaction."""
    requests, expected = GROUPS[name]
    rounds: list[list[str]] = []

    def note_begin(_: object) -> None:
        rounds.append([])

    def note_statement(_: object, __: object, statement: str, *___: object) -> None:
        rounds[-1].append(statement.split()[0])

    # A connection older than the listeners would not be recorded.
    group_commit.get_group_committer().close()
    event.listen(db.engine, "begin", note_begin)
    event.listen(db.engine, "before_cursor_execute", note_statement)
    try:
        group_commit.get_group_committer()._redeem_group(requests)
    finally:
        event.remove(db.engine, "begin", note_begin)
        event.remove(db.engine, "before_cursor_execute", note_statement)

    assert rounds == expected


EMAILS = ("new@example.com", "new@example.com", "ada@example.com", "nobody@example.com")


def record_refusals(emails: Iterable[str]) -> list[list[str]]:
    """Request the used-up offer for each email; return the statements of each request."""
    statements = []
    for email in emails:
        with recorded_statements() as recorded:
            [refusal] = redemption_actions.redeem_all([replace(NEW, code="USEDUP", email=email)])
        assert isinstance(refusal, RedemptionRefused)
        statements.append([statement for statement, _ in recorded])
    return statements


def test_a_refusal_of_a_used_up_offer_takes_the_same_statements_for_every_email(offers: None) -> None:
    """The response time must not reveal who is a customer, once the process knows that the offer is used up."""
    first, *others = record_refusals(EMAILS)

    assert [statement.split()[0] for statement in first] == ["select", "insert", "select"]
    assert others == [[first[0], first[2]]] * 3


@pytest.mark.parametrize(("cap", "redeemed"), [(1, 0), (2, 0), (2, 1), (2, 2)])
def test_a_process_that_redeems_the_last_unit_knows_that_the_offer_is_used_up(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer, cap: int, redeemed: int
) -> None:
    """`redeemed` of the cap's redemptions are made by another process, after this one has seen the offer."""
    customers = [make_customer(email).email for email in ("new@example.com", "ada@example.com", "c@example.com")]
    offer_id = make_offer("USEDUP", max_redemptions=cap, frozen_at=text("now()")).id
    look_up = redemption_actions._look_up

    def redeem_elsewhere(*args: Any) -> Any:
        with db.engine.begin() as other:
            other.execute(
                text("update offer_counter set redeemed = :n where offer_id = :id"), {"id": offer_id, "n": redeemed}
            )
        return look_up(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redemption_actions, "_look_up", redeem_elsewhere)
        redemption_actions.redeem_all([replace(NEW, code="USEDUP", email=email) for email in customers[:cap]])

    others = record_refusals(EMAILS)

    assert others == [others[0]] * 4
    assert [statement.split()[0] for statement in others[0]] == ["select", "select"]


def test_the_offers_of_a_customer_are_looked_up_apart_from_their_redemptions(app: Flask, offers: None) -> None:
    ada = db.session.execute(text("select id from customer where email = 'ada@example.com'")).scalar_one()
    found: list[Any] = []

    reads = record_reads(lambda: found.extend(redemption_facts.load_current_offer_facts(ada)))

    assert {facts.offer.code: facts.redemption is not None for facts in found} == {
        "SUMMER25": True,
        "WINTER10": False,
        "CLUB20": False,
        "USEDUP": False,
    }
    assert {facts.offer.code: (facts.offer.redeemed, facts.offer.max_redemptions) for facts in found} == {
        "SUMMER25": (1, 9),
        "WINTER10": (0, None),
        "CLUB20": (0, None),
        "USEDUP": (1, 1),
    }
    assert len(reads) == 3
    assert all(tables <= BY_OFFER or not tables & BY_OFFER for tables, _ in reads)


def test_redemptions_of_a_group_have_the_time_of_their_evaluation(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_offer("WINTER10")
    requests = [
        replace(NEW, code=code, email=make_customer(f"c{n}.{code}@example.com").email)
        for n in range(2)
        for code in ("SUMMER25", "WINTER10")
    ]

    results = redemption_actions.redeem_all(requests)

    stored = db.session.execute(text("select distinct redeemed_at from redemption")).scalars().all()
    assert len(stored) == 1
    assert {result.row.redeemed_at for result in results if isinstance(result, RedemptionRecord)} == set(stored)


def test_a_repeat_of_an_undone_redemption_redeems_nothing(offers: None) -> None:
    [repeat] = redemption_actions.redeem_all([UNDONE])

    assert isinstance(repeat, RedemptionRecord)
    assert (repeat.is_replay, repeat.row.reason) == (True, ROLLBACK["reason"])
    assert db.session.execute(text("select count(*) from redemption")).scalar_one() == 2
