"""Repeats and rollbacks; see also test_actions.py."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.factories import MakeCustomer, MakeOffer
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
from webapp.customers.validation import CustomerValues
from webapp.offers import actions as offer_actions
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import caps, evaluation, group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.evaluation import AcceptedRequest
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

PLAIN = RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com", api_key_id=1)
KEYED = replace(PLAIN, idempotency_key="k1", body_hash=b"1")
BODY: dict[str, Any] = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
HOUR = timedelta(hours=1)


def change(offer: Offer, **changes: Any) -> None:
    offer_actions.update_offer(offer.id, changes, version=None, by="ann")


def post(api: Any, key: str, body: dict[str, Any] = BODY) -> Any:
    return api.post("/api/v1/redemptions", json=body, headers={"Idempotency-Key": key})


def roll_back(api: Any, public_id: str) -> Any:
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
def test_a_repeat_gets_200_after_any_change_of_the_offer(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer, changes: dict[str, Any], more: dict[str, Any]
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()
    first = post(api, "k1", BODY | more)
    change(offer, **changes)
    offer_actions.pause_offer(offer.id, by="ann")

    repeat = post(api, "k1", BODY | more)

    assert (first.status_code, repeat.status_code, repeat.json) == (201, 200, first.json)


def test_an_idempotency_key_applies_to_one_offer_and_one_customer(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_offer("WINTER25")
    make_customer(), make_customer("bob@example.com")
    requests = [KEYED, replace(KEYED, code="WINTER25"), replace(KEYED, email="bob@example.com")]

    redemptions = [group_commit.redeem(request) for request in requests]

    assert len({r.public_id for r in redemptions}) == count_redemptions() == 3
    assert not any(r.is_replay for r in redemptions)


def test_an_order_applies_to_one_offer_and_one_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("WINTER25")
    make_customer(), make_customer("bob@example.com")
    request = replace(PLAIN, order=Order("A-1"))

    requests = (request, replace(request, code="WINTER25"), replace(request, email="bob@example.com"))
    redemptions = [group_commit.redeem(r) for r in requests]

    assert not any(r.is_replay for r in redemptions)


def test_concurrent_repeats_of_an_order_create_one_redemption(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()

    results = run_concurrently(app, *[lambda: group_commit.redeem(replace(PLAIN, order=Order("A-1")))] * 12)

    assert len({result.public_id for result in results}) == 1
    assert sum(not result.is_replay for result in results) == 1
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_a_repeat_after_a_change_of_the_email_returns_the_redemption(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    ada = make_customer()
    first = group_commit.redeem(KEYED)
    customer_actions.update_customer(ada.id, CustomerValues(email="ada@example.org"), [], by="ann")

    assert group_commit.redeem(replace(KEYED, email="ada@example.org")).public_id == first.public_id
    assert refusal_key(replace(PLAIN, email="ada@example.org")) == "already_redeemed"


def test_refusals_are_not_stored_for_an_idempotency_key(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer()
    offer_actions.pause_offer(offer.id, by="ann")
    refusals = [post(api, "k1").json["code"], post(api, "k1").json["code"]]
    make_customer()
    refusals.append(post(api, "k1").json["code"])
    offer_actions.resume_offer(offer.id, by="ann")

    # Another body is accepted, because the first one created nothing.
    response = post(api, "k1", BODY | {"metadata": {"try": 4}})

    assert refusals == ["customer_unknown", "customer_unknown", "offer_paused"]
    assert response.status_code == 201


def test_of_concurrent_requests_with_one_key_only_one_body_succeeds(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    requests = [replace(KEYED, body_hash=body) for body in (b"1", b"2") * 4]

    results = run_concurrently(app, *[lambda a=a: group_commit.redeem(a) for a in requests])

    assert sum(isinstance(result, InvalidInput) for result in results) == 4
    assert (
        len({result.public_id for result in results if isinstance(result, RedemptionRecord)})
        == count_redemptions()
        == 1
    )


# --- rollbacks ------------------------------------------------------------------------------------


def test_a_rollback_keeps_the_redemption_with_actor_and_reason(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    request = replace(KEYED, order=Order("A-1", 4999, "EUR"), metadata={"till": 7})
    public_id = group_commit.redeem(request).public_id
    before = dict(db.session.execute(text("select * from redemption")).mappings().one())

    redemption_rollback.roll_back_redemption(public_id, "  order \n cancelled ", by="ann")

    rollback = dict(db.session.execute(text("select * from rollback")).mappings().one())
    assert before.items() <= rollback.items()
    assert (rollback["reason"], rollback["rolled_back_by"]) == ("order cancelled", "ann")
    assert rollback["rolled_back_at"] > rollback["redeemed_at"]
    assert count_redemptions() == 0


def test_a_rollback_by_the_api_stores_the_name_of_the_key(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    roll_back(api, post(api, "k1").json["id"])

    assert db.session.execute(text("select rolled_back_by from rollback")).scalar_one() == "API key tests"


def test_another_customer_may_redeem_after_a_rollback(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    make_customer(), make_customer("bob@example.com")
    bob = replace(PLAIN, email="bob@example.com")
    first = group_commit.redeem(PLAIN)
    assert refusal_key(bob) == "offer_exhausted"

    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    assert group_commit.redeem(bob).is_replay is False
    assert refusal_key(PLAIN) == "offer_exhausted"
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_repeated_rollbacks_of_an_older_redemption_keep_the_newer_one(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()
    old = group_commit.redeem(PLAIN).public_id
    redemption_rollback.roll_back_redemption(old, **ROLLBACK)
    new = group_commit.redeem(PLAIN).public_id

    results = run_concurrently(app, *[lambda: redemption_rollback.roll_back_redemption(old, **ROLLBACK)] * 6)

    assert {result.key for result in results if isinstance(result, DomainError)} == {"already_rolled_back"}
    assert [redemption.public_id for redemption in redemption_queries.list_latest_redemptions(offer.id, 5)] == [new]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_every_rollback_for_a_customer_and_an_offer_is_stored(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=1)
    ada = make_customer()
    for reason in ("first", "second", "third"):
        redemption_rollback.roll_back_redemption(group_commit.redeem(PLAIN).public_id, reason, by="ann")

    assert [redemption.row.reason for redemption in redemption_queries.list_customer_redemptions(ada.id)] == [
        "third",
        "second",
        "first",
    ]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (0, 0)


def test_after_a_rollback_the_same_key_with_another_body_is_still_refused(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    roll_back(api, post(api, "k1").json["id"])

    response = post(api, "k1", BODY | {"metadata": {"a": 1}})

    assert (response.status_code, response.json["errors"][0]["code"]) == (422, "idempotency_key_reused")
    assert count_redemptions() == 0


@pytest.mark.parametrize("more", [{"idempotency_key": "k2"}, {"idempotency_key": None, "order": Order("A-2")}])
def test_after_a_rollback_a_new_key_redeems_and_the_old_key_returns_the_rollback(
    make_offer: MakeOffer, make_customer: MakeCustomer, more: dict[str, Any]
) -> None:
    make_offer(), make_customer()
    request = replace(KEYED, order=Order("A-1"))
    first = group_commit.redeem(request)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    new = group_commit.redeem(replace(request, **more))

    assert new.is_replay is False
    assert group_commit.redeem(replace(request, **more)).public_id == new.public_id
    old = group_commit.redeem(request)
    assert (old.public_id, old.row.rolled_back_at is None, count_redemptions()) == (first.public_id, False, 1)


def test_the_order_of_several_rollbacks_returns_the_newest(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()
    request = replace(PLAIN, order=Order("A-1"))
    keyed = [replace(request, idempotency_key=key, body_hash=b"1") for key in ("k1", "k2", "k3")]
    public_ids = []
    for one in keyed:
        public_ids.append(group_commit.redeem(one).public_id)
        redemption_rollback.roll_back_redemption(public_ids[-1], **ROLLBACK)

    assert group_commit.redeem(request).public_id == public_ids[2]
    assert [group_commit.redeem(one).public_id for one in keyed] == public_ids


@pytest.mark.parametrize("more", [{}, {"idempotency_key": None, "order": Order("A-1")}])
def test_after_a_rollback_key_and_order_do_not_apply_to_another_api_key(
    make_offer: MakeOffer, make_customer: MakeCustomer, more: dict[str, Any]
) -> None:
    make_offer(), make_customer()
    request = replace(KEYED, **more)
    redemption_rollback.roll_back_redemption(group_commit.redeem(request).public_id, **ROLLBACK)

    assert group_commit.redeem(replace(request, api_key_id=2)).is_replay is False


@pytest.mark.parametrize("more", [{}, {"idempotency_key": None, "order": Order("A-1")}])
def test_after_a_rollback_key_and_order_do_not_apply_to_another_offer_or_customer(
    make_offer: MakeOffer, make_customer: MakeCustomer, more: dict[str, Any]
) -> None:
    make_offer(), make_offer("WINTER25"), make_offer("PAUSED", paused_at=datetime(2026, 1, 1, tzinfo=UTC))
    make_customer(), make_customer("bob@example.com")
    request = replace(KEYED, **more)
    redemption_rollback.roll_back_redemption(group_commit.redeem(request).public_id, **ROLLBACK)

    others = [
        group_commit.redeem(other)
        for other in (replace(request, code="WINTER25"), replace(request, email="bob@example.com"))
    ]

    assert [other.is_replay for other in others] == [False, False]
    assert refusal_key(replace(request, code="PAUSED")) == "offer_paused"


def test_a_rollback_waits_for_a_running_sweep(app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    """The sweep may have counted the redemption, so the rollback waits until it ends."""
    make_offer(), make_customer()
    public_id = group_commit.redeem(PLAIN).public_id
    with db.engine.connect() as sweep:
        sweep.execute(text("select pg_advisory_xact_lock(hashtext('onecode.redemption_tally'))"))
        rollback_thread = threading.Thread(
            target=lambda: run_concurrently(
                app, lambda: redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
            )
        )
        rollback_thread.start()
        while rollback_thread.is_alive() and not count_lock_waiters("advisory"):
            db.session.rollback()
        before = count_redemptions()
        sweep.rollback()
    rollback_thread.join()
    db.session.rollback()

    assert (before, count_redemptions()) == (1, 0)


def test_a_repeat_during_a_rollback_returns_the_redemption(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    """After the rollback, a row would not conflict any more."""
    make_offer(max_redemptions=5), make_customer()
    first = group_commit.redeem(KEYED).public_id
    rollback_thread = threading.Thread(
        target=lambda: run_concurrently(app, lambda: redemption_rollback.roll_back_redemption(first, **ROLLBACK))
    )
    with db.engine.connect() as other:
        other.execute(text("select 1 from offer_counter for update"))
        rollback_thread.start()
        while rollback_thread.is_alive() and not count_lock_waiters("transactionid"):
            db.session.rollback()
        repeat = group_commit.redeem(KEYED)
    rollback_thread.join()

    assert (repeat.public_id, repeat.is_replay, count_redemptions()) == (first, True, 0)


@pytest.mark.parametrize("repeats", [False, True])
def test_a_rollback_between_insert_and_lookup_lets_the_next_round_redeem(
    monkeypatch: pytest.MonkeyPatch, make_offer: MakeOffer, make_customer: MakeCustomer, repeats: bool
) -> None:
    """The insert finds the offer used up, or the customer's redemption; the lookup does not any more."""
    offer = make_offer(max_redemptions=1)
    ada, bob = make_customer().email, make_customer("bob@example.com").email
    first = group_commit.redeem(PLAIN).public_id
    # As in a process that has not seen the offer used up.
    caps.get_used_up_offer_ids().clear()
    look_up = evaluation.look_up_and_evaluate
    lookups: list[object] = []

    def roll_back_before_the_first_lookup(*args: Any) -> dict[int, Any]:
        if not lookups:
            redemption_rollback.roll_back_redemption(first, **ROLLBACK)
        lookups.append(look_up(*args))
        return lookups[-1]  # type: ignore[return-value]

    monkeypatch.setattr(redemption_actions, "look_up_and_evaluate", roll_back_before_the_first_lookup)
    email = ada if repeats else bob
    redemption = group_commit.redeem(replace(PLAIN, email=email))

    assert (redemption.email, redemption.is_replay) == (email, False)
    assert [list(map(type, found.values())) for found in lookups] == [[AcceptedRequest], []]  # type: ignore[attr-defined]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


# --- frozen offers --------------------------------------------------------------------------------


def test_the_first_redemption_freezes_the_discount_and_the_existence_of_a_cap(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer()
    make_customer()
    change(offer, discount=Discount("percent", percent=Decimal(30)))
    redemption = group_commit.redeem(PLAIN)

    for changes in ({"discount": Discount("percent", percent=Decimal(50))}, {"max_redemptions": 10}):
        with pytest.raises(InvalidInput):
            change(offer, **changes)
        db.session.rollback()
    change(offer, name="Autumn", ends_at=None)
    redemption_rollback.roll_back_redemption(redemption.public_id, **ROLLBACK)
    with pytest.raises(InvalidInput):
        change(offer, discount=Discount("percent", percent=Decimal(50)))
    db.session.rollback()

    found = redemption_queries.find_redemption(redemption.public_id)
    assert found is not None
    assert found.discount == redemption.discount == Discount("percent", percent=Decimal(30))


def test_lowering_the_cap_during_redemptions_never_puts_it_below_their_number(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=8)
    emails = [make_customer(f"c{n}@example.com").email for n in range(12)]
    offer_id = offer.id

    results = run_concurrently(
        app,
        *[lambda e=e: group_commit.redeem(replace(PLAIN, email=e)) for e in emails],
        *[lambda: offer_actions.update_offer(offer_id, {"max_redemptions": 4}, version=None, by="ann") and None] * 2,
    )

    db.session.refresh(offer)
    redeemed_count = sum(isinstance(result, RedemptionRecord) for result in results)
    assert count_redemptions() == offer.redeemed == redeemed_count <= (offer.max_redemptions or 0)
    assert offer.max_redemptions == (8 if any(isinstance(result, InvalidInput) for result in results) else 4)
    assert redeemed_count == offer.max_redemptions


def test_a_lowered_cap_is_compared_with_the_counter_after_the_wait_for_its_lock(
    app: Flask, make_offer: MakeOffer
) -> None:
    """A redemption may be counted between the start of the change and its lock."""
    offer = make_offer(max_redemptions=8, redeemed=4, frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    offer_id = offer.id
    results: list[Any] = []
    update_thread = threading.Thread(
        target=lambda: results.extend(
            run_concurrently(
                app, lambda: offer_actions.update_offer(offer_id, {"max_redemptions": 4}, version=None, by="ann")
            )
        )
    )
    with db.engine.connect() as redeeming:
        redeeming.execute(text("update offer_counter set redeemed = 5"))
        update_thread.start()
        while update_thread.is_alive() and not count_lock_waiters("transactionid"):
            db.session.rollback()
        redeeming.commit()
    update_thread.join()

    [error] = results
    assert isinstance(error, InvalidInput)
    assert [field_error.key for field_error in error.errors] == ["cap_below_redeemed"]


def test_rollbacks_and_a_raised_cap_allow_redemptions_immediately(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=1)
    emails = [make_customer(f"c{n}@example.com").email for n in range(4)]
    requests = [replace(PLAIN, email=email) for email in emails]
    first = group_commit.redeem(requests[0])
    change(offer, max_redemptions=2)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    is_redeemed = [isinstance(result, RedemptionRecord) for result in redemption_actions.redeem_all(requests)]

    assert is_redeemed == [True, True, False, False]
    assert (count_redemptions(), redeemed_counter(offer.id)) == (2, 2)
