"""Repeats and rollbacks, sentence by sentence as they are promised. What is not here stands in test_actions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.redemptions import (
    ROLLBACK,
    count_lock_waiters,
    count_redemptions,
    redeemed_counter,
    refusal_key,
    run_concurrently,
)
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.validation import CustomerValues
from webapp.offers import actions as offer_actions
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
PLAIN = RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com", api_key_id=1)
KEYED = replace(PLAIN, idempotency_key="k1", body_hash=b"1")
BODY: dict[str, Any] = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
HOUR = timedelta(hours=1)


def change(row: Offer, **changes: Any) -> None:
    offer_actions.update_offer(row.id, changes, version=None, by="ann")


def post(api: Any, key: str, body: dict[str, Any] = BODY) -> Any:
    return api.post("/api/v1/redemptions", json=body, headers={"Idempotency-Key": key})


def undo(api: Any, public_id: str) -> Any:
    return api.post(f"/api/v1/redemptions/{public_id}/rollback", json={"reason": "order cancelled"})


# --- repeats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"ends_at": datetime.now(UTC) - HOUR},
        {"starts_at": datetime.now(UTC) + HOUR, "ends_at": None},
        {"personal_code_required": True},
        {"max_redemptions": 1},
    ],
    ids=["ended", "moved to later", "personal", "used up"],
)
@pytest.mark.parametrize("more", [{}, {"order": {"id": "A-1"}}])
def test_a_repeat_answers_200_whatever_has_become_of_the_offer(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer, changes: dict[str, Any], more: dict[str, Any]
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()
    first = post(api, "k1", BODY | more)
    change(offer, **changes)
    offer_actions.pause_offer(offer.id, by="ann")

    again = post(api, "k1", BODY | more)

    assert (first.status_code, again.status_code, again.json) == (201, 200, first.json)


def test_a_key_belongs_to_one_offer_and_one_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("WINTER25")
    make_customer(), make_customer("bob@example.com")
    asks = [KEYED, replace(KEYED, code="WINTER25"), replace(KEYED, email="bob@example.com")]

    done = [group_commit.redeem(ask) for ask in asks]

    assert len({one.public_id for one in done}) == count_redemptions() == 3
    assert not any(one.is_replay for one in done)


def test_an_order_belongs_to_one_offer_and_one_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("WINTER25")
    make_customer(), make_customer("bob@example.com")
    ask = replace(PLAIN, order=Order("A-1"))

    done = [group_commit.redeem(a) for a in (ask, replace(ask, code="WINTER25"), replace(ask, email="bob@example.com"))]

    assert not any(one.is_replay for one in done)


def test_repeats_by_one_order_at_once_make_one_row_and_all_hear_of_it(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()

    answers = run_concurrently(app, *[lambda: group_commit.redeem(replace(PLAIN, order=Order("A-1")))] * 12)

    assert len({answer.public_id for answer in answers}) == 1
    assert sum(not answer.is_replay for answer in answers) == 1
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_a_customer_who_has_another_email_now_is_still_the_one_who_redeemed(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    ada = make_customer()
    first = group_commit.redeem(KEYED)
    customer_actions.update_customer(ada.id, CustomerValues(email="ada@example.org"), [], by="ann")

    assert group_commit.redeem(replace(KEYED, email="ada@example.org")).public_id == first.public_id
    assert refusal_key(replace(PLAIN, email="ada@example.org")) == "already_redeemed"


def test_a_refusal_is_not_remembered(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    offer_actions.pause_offer(offer.id, by="ann")
    refused = [post(api, "k1").json["code"], post(api, "k1").json["code"]]
    make_customer()
    refused.append(post(api, "k1").json["code"])
    offer_actions.resume_offer(offer.id, by="ann")

    # Also with another body: nothing was made by the first one.
    done = post(api, "k1", BODY | {"metadata": {"try": 4}})

    assert refused == ["customer_unknown", "customer_unknown", "offer_paused"]
    assert done.status_code == 201


def test_of_a_key_that_came_with_two_bodies_at_once_one_body_wins(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    asks = [replace(KEYED, body_hash=body) for body in (b"1", b"2") * 4]

    answers = run_concurrently(app, *[lambda a=a: group_commit.redeem(a) for a in asks])

    assert sum(isinstance(answer, InvalidInput) for answer in answers) == 4
    assert (
        len({answer.public_id for answer in answers if isinstance(answer, RedemptionRecord)})
        == count_redemptions()
        == 1
    )


# --- rollbacks ------------------------------------------------------------------------------------


def test_a_rollback_keeps_the_redemption_as_it_was_with_who_and_why(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    ask = replace(KEYED, order=Order("A-1", 4999, "EUR"), metadata={"till": 7})
    public_id = group_commit.redeem(ask).public_id
    before = dict(db.session.execute(text("select * from redemption")).mappings().one())

    redemption_rollback.roll_back_redemption(public_id, "  order \n cancelled ", by="ann")

    kept = dict(db.session.execute(text("select * from rollback")).mappings().one())
    assert before.items() <= kept.items()
    assert (kept["reason"], kept["rolled_back_by"]) == ("order cancelled", "ann")
    assert kept["rolled_back_at"] > kept["redeemed_at"]
    assert count_redemptions() == 0


def test_who_undid_it_is_the_key_that_did(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()

    undo(api, post(api, "k1").json["id"])

    assert db.session.execute(text("select rolled_back_by from rollback")).scalar_one() == "key tests"


def test_a_unit_that_came_back_is_for_anybody(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    make_customer(), make_customer("bob@example.com")
    bob = replace(PLAIN, email="bob@example.com")
    first = group_commit.redeem(PLAIN)
    assert refusal_key(bob) == "offer_exhausted"

    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    assert group_commit.redeem(bob).is_replay is False
    assert refusal_key(PLAIN) == "offer_exhausted"
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_undoing_the_older_one_again_leaves_the_newer_one_its_row_and_its_unit(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()
    old = group_commit.redeem(PLAIN).public_id
    redemption_rollback.roll_back_redemption(old, **ROLLBACK)
    new = group_commit.redeem(PLAIN).public_id

    answers = run_concurrently(app, *[lambda: redemption_rollback.roll_back_redemption(old, **ROLLBACK)] * 6)

    assert {answer.key for answer in answers if isinstance(answer, DomainError)} == {"already_rolled_back"}
    assert [done.public_id for done in redemption_queries.list_latest_redemptions(offer.id, 5)] == [new]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_each_of_several_rollbacks_of_a_pair_is_kept(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    ada = make_customer()
    for reason in ("first", "second", "third"):
        redemption_rollback.roll_back_redemption(group_commit.redeem(PLAIN).public_id, reason, by="ann")

    assert [done.row.reason for done in redemption_queries.list_customer_redemptions(ada.id)] == [
        "third",
        "second",
        "first",
    ]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (0, 0)


def test_after_a_rollback_the_same_key_with_another_body_is_still_refused(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    undo(api, post(api, "k1").json["id"])

    answer = post(api, "k1", BODY | {"metadata": {"a": 1}})

    assert (answer.status_code, answer.json["errors"][0]["code"]) == (422, "idempotency_key_reused")
    assert count_redemptions() == 0


@pytest.mark.parametrize("more", [{"idempotency_key": "k2"}, {"idempotency_key": None, "order": Order("A-2")}])
def test_after_a_rollback_a_new_key_or_order_redeems_anew_and_the_old_key_still_tells_of_the_old_one(
    make_offer: MakeOffer, make_customer: MakeCustomer, more: dict[str, Any]
) -> None:
    make_offer(), make_customer()
    ask = replace(KEYED, order=Order("A-1"))
    first = group_commit.redeem(ask)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    anew = group_commit.redeem(replace(ask, **more))

    assert anew.is_replay is False
    assert group_commit.redeem(replace(ask, **more)).public_id == anew.public_id
    old = group_commit.redeem(ask)
    assert (old.public_id, old.row.rolled_back_at is None, count_redemptions()) == (first.public_id, False, 1)


@pytest.mark.parametrize("more", [{}, {"idempotency_key": None, "order": Order("A-1")}])
def test_after_a_rollback_the_key_and_the_order_are_still_nothing_to_another_machine(
    make_offer: MakeOffer, make_customer: MakeCustomer, more: dict[str, Any]
) -> None:
    make_offer(), make_customer()
    ask = replace(KEYED, **more)
    redemption_rollback.roll_back_redemption(group_commit.redeem(ask).public_id, **ROLLBACK)

    assert group_commit.redeem(replace(ask, api_key_id=2)).is_replay is False


def test_undoing_waits_for_whoever_counts_hours(app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    """Step by step: the count has begun, so a redemption that it may have seen can't go before it is over."""
    make_offer(), make_customer()
    public_id = group_commit.redeem(PLAIN).public_id
    with db.engine.connect() as counting:
        counting.execute(text("select pg_advisory_xact_lock(hashtext('onecode.redemption_tally'))"))
        undoing = threading.Thread(
            target=lambda: run_concurrently(
                app, lambda: redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
            )
        )
        undoing.start()
        while undoing.is_alive() and not count_lock_waiters("advisory"):
            db.session.rollback()
        before = count_redemptions()
        counting.rollback()
    undoing.join()
    db.session.rollback()

    assert (before, count_redemptions()) == (1, 0)


# --- terms ----------------------------------------------------------------------------------------


def test_from_the_first_redemption_the_discount_and_having_a_cap_stay_and_receipts_with_them(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer()
    make_customer()
    change(offer, discount=Discount("percent", percent=Decimal(30)))
    done = group_commit.redeem(PLAIN)

    for changes in ({"discount": Discount("percent", percent=Decimal(50))}, {"max_redemptions": 10}):
        with pytest.raises(InvalidInput):
            change(offer, **changes)
        db.session.rollback()
    change(offer, name="Autumn", ends_at=None)
    redemption_rollback.roll_back_redemption(done.public_id, **ROLLBACK)
    with pytest.raises(InvalidInput):
        change(offer, discount=Discount("percent", percent=Decimal(50)))
    db.session.rollback()

    found = redemption_queries.find_redemption(done.public_id)
    assert found is not None
    assert found.discount == done.discount == Discount("percent", percent=Decimal(30))


def test_a_cap_falls_not_below_what_is_used_while_customers_redeem(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=8)
    emails = [make_customer(f"c{n}@example.com").email for n in range(12)]
    number = offer.id

    answers = run_concurrently(
        app,
        *[lambda e=e: group_commit.redeem(replace(PLAIN, email=e)) for e in emails],
        *[lambda: offer_actions.update_offer(number, {"max_redemptions": 4}, version=None, by="ann") and None] * 2,
    )

    db.session.refresh(offer)
    redeemed = sum(isinstance(answer, RedemptionRecord) for answer in answers)
    assert count_redemptions() == offer.redeemed == redeemed <= (offer.max_redemptions or 0)
    assert offer.max_redemptions == (8 if any(isinstance(answer, InvalidInput) for answer in answers) else 4)
    assert redeemed == offer.max_redemptions


def test_what_staff_undo_and_raise_is_sold_at_once(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    emails = [make_customer(f"c{n}@example.com").email for n in range(4)]
    asks = [replace(PLAIN, email=email) for email in emails]
    first = group_commit.redeem(asks[0])
    change(offer, max_redemptions=2)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    told = [isinstance(answer, RedemptionRecord) for answer in redemption_actions.redeem_all(asks)]

    assert told == [True, True, False, False]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (2, 2)
