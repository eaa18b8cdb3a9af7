"""Redeeming and everything that bears on it, held to a model in plain Python that hypothesis leads through any order.

The same walks every time; `MODEL_EXAMPLES=5000 pytest tests/redemptions/test_state_machine.py` takes so many new ones.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text

from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers import actions as customer_actions
from webapp.customers import audience_actions
from webapp.customers.validation import CustomerValues
from webapp.offers import actions as offer_actions
from webapp.offers.models import OfferValues
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import group_commit, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

LONG = os.environ.get("MODEL_EXAMPLES")
BY = "ann"
PAST, SOON = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=30)
CUSTOMERS, OFFERS = range(4), range(2)
_number = itertools.count(1)


@dataclass
class Receipt:
    """A redemption that was made, with what it was made by."""

    public_id: str
    machine: int
    key: str | None
    order: str | None
    body: bytes
    percent: Decimal
    is_undone: bool = False


@dataclass
class Person:
    id: int
    email: str
    is_member: bool = False
    former: list[str] = field(default_factory=list)


@dataclass
class Given:
    """An offer as the model has it."""

    id: int
    code: str
    cap: int | None
    percent: Decimal = Decimal(25)
    window: str = "open"
    is_paused: bool = False
    is_frozen: bool = False
    for_members: bool = False
    wants_personal_code: bool = False
    # Of each customer, oldest first; only the last one can be live.
    made: dict[int, list[Receipt]] = field(default_factory=lambda: {n: [] for n in CUSTOMERS})

    def live(self) -> dict[int, Receipt]:
        return {n: receipts[-1] for n, receipts in self.made.items() if receipts and not receipts[-1].is_undone}


class Shop(RuleBasedStateMachine):
    """A few offers and customers, and all that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = next(_number)
        self.audience = audience_actions.create_audience(f"Regulars {self.mark}", BY).id
        self.people = [self._person(f"c{n}.{self.mark}@example.com") for n in CUSTOMERS]
        self.offers = [self._offer(f"CODE{n}X{self.mark}", cap=2 if n else None) for n in OFFERS]

    def teardown(self) -> None:
        db.session.remove()

    def _person(self, email: str) -> Person:
        return Person(customer_actions.create_customer(CustomerValues(email=email), [], BY).id, email)

    def _offer(self, code: str, cap: int | None) -> Given:
        values = OfferValues(
            "Summer", Discount("percent", percent=Decimal(25)), starts_at=PAST, code=code, max_redemptions=cap
        )
        return Given(offer_actions.create_offer(values, BY).id, code, cap)

    # --- what customers and machines do -----------------------------------------------------------

    @rule(
        o=st.sampled_from(OFFERS),
        c=st.sampled_from(CUSTOMERS),
        machine=st.sampled_from([1, 1, 1, 2]),
        key=st.sampled_from([None, None, "k1", "k2", "k3"]),
        order=st.sampled_from([None, "A", "B"]),
        body=st.sampled_from([b"1", b"1", b"1", b"2"]),
        code=st.sampled_from(["shared", "shared", "right", "wrong"]),
    )
    def redeem(self, o: int, c: int, machine: int, key: str | None, order: str | None, body: bytes, code: str) -> None:
        offer = self.offers[o]
        ask = RedemptionRequest(
            channel="api",
            code=self._typed(offer, c, code),
            email=self.people[c].email,
            api_key_id=machine,
            idempotency_key=key,
            body_hash=body,
            order=Order(order) if order else None,
        )
        expected = self._expected(offer, c, machine, key, order, body, code)

        answer = _outcome(group_commit.redeem, ask)

        if not isinstance(expected, Receipt):
            assert answer == expected
            return
        assert isinstance(answer, RedemptionRecord)
        assert answer.is_replay == (expected in offer.made[c])
        assert (answer.row.rolled_back_at is not None) == expected.is_undone
        if answer.is_replay:
            assert answer.public_id == expected.public_id
        else:
            expected.public_id = answer.public_id
            offer.made[c].append(expected)
            offer.is_frozen = True
        assert answer.discount.percent == expected.percent == offer.percent

    @rule(o=st.sampled_from(OFFERS), c=st.sampled_from(CUSTOMERS), code=st.sampled_from(["shared", "right"]))
    def redeem_without_ado(self, o: int, c: int, code: str) -> None:
        self.redeem(o, c, 1, None, None, b"1", code)

    @rule(o=st.sampled_from(OFFERS), c=st.sampled_from(CUSTOMERS), key=st.sampled_from(["k1", "k2"]))
    def redeem_with_a_key(self, o: int, c: int, key: str) -> None:
        self.redeem(o, c, 1, key, None, b"1", "right")

    @rule(o=st.sampled_from(OFFERS), c=st.sampled_from(CUSTOMERS), code=st.sampled_from(["shared", "right", "wrong"]))
    def validate(self, o: int, c: int, code: str) -> None:
        offer = self.offers[o]
        ask = RedemptionRequest(
            channel="api", code=self._typed(offer, c, code), email=self.people[c].email, api_key_id=1
        )

        answer = _outcome(redemption_actions.validate_redemption, ask)

        assert (answer if isinstance(answer, str) else None) == self._refusal(offer, c, code)

    @precondition(lambda self: any(person.former for person in self.people))
    @rule(o=st.sampled_from(OFFERS), data=st.data())
    def redeem_by_an_email_of_before(self, o: int, data: st.DataObject) -> None:
        former = data.draw(st.sampled_from([email for person in self.people for email in person.former]))

        answer = _outcome(
            group_commit.redeem, RedemptionRequest(channel="form", code=self.offers[o].code, email=former)
        )

        assert answer == "customer_unknown"

    @precondition(lambda self: any(receipts for offer in self.offers for receipts in offer.made.values()))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        every = [receipt for offer in self.offers for receipts in offer.made.values() for receipt in receipts]
        receipt = data.draw(st.sampled_from(every))

        answer = _outcome(redemption_rollback.roll_back_redemption, receipt.public_id, "order cancelled", BY)

        if receipt.is_undone:
            assert answer == "already_rolled_back"
        else:
            assert isinstance(answer, RedemptionRecord)
            assert (answer.public_id, answer.row.reason) == (receipt.public_id, "order cancelled")
            receipt.is_undone = True

    # --- what staff do ----------------------------------------------------------------------------

    @rule(o=st.sampled_from(OFFERS), cap=st.sampled_from([None, 1, 2, 3, 4]))
    def change_cap(self, o: int, cap: int | None) -> None:
        offer = self.offers[o]
        allowed = not offer.is_frozen or ((cap is None) == (offer.cap is None) and (cap or 0) >= self._used(offer))

        assert self._changed(offer, max_redemptions=cap) == allowed
        offer.cap = cap if allowed else offer.cap

    @rule(o=st.sampled_from(OFFERS), percent=st.sampled_from([Decimal(25), Decimal("12.5")]))
    def change_discount(self, o: int, percent: Decimal) -> None:
        offer = self.offers[o]
        allowed = not offer.is_frozen or percent == offer.percent

        assert self._changed(offer, discount=Discount("percent", percent=percent)) == allowed
        offer.percent = percent if allowed else offer.percent

    @rule(o=st.sampled_from(OFFERS), window=st.sampled_from(["open", "open", "over", "not yet"]))
    def change_window(self, o: int, window: str) -> None:
        now = datetime.now(UTC)
        starts_at = now + SOON if window == "not yet" else PAST
        ends_at = now - timedelta(hours=1) if window == "over" else now + 2 * SOON

        assert self._changed(self.offers[o], starts_at=starts_at, ends_at=ends_at)
        self.offers[o].window = window

    @rule(o=st.sampled_from(OFFERS), paused=st.booleans())
    def pause_or_resume(self, o: int, paused: bool) -> None:
        (offer_actions.pause_offer if paused else offer_actions.resume_offer)(self.offers[o].id, BY)
        self.offers[o].is_paused = paused

    @rule(o=st.sampled_from(OFFERS), for_members=st.booleans())
    def change_audience(self, o: int, for_members: bool) -> None:
        assert self._changed(self.offers[o], audience_id=self.audience if for_members else None)
        self.offers[o].for_members = for_members

    @rule(o=st.sampled_from(OFFERS), required=st.booleans())
    def ask_for_the_personal_code(self, o: int, required: bool) -> None:
        assert self._changed(self.offers[o], personal_code_required=required)
        self.offers[o].wants_personal_code = required

    @rule(c=st.sampled_from(CUSTOMERS), joins=st.booleans())
    def join_or_leave(self, c: int, joins: bool) -> None:
        self.people[c].is_member = joins
        self._save(c)

    @rule(c=st.sampled_from(CUSTOMERS))
    def change_email(self, c: int) -> None:
        person = self.people[c]
        person.former.append(person.email)
        person.email = f"c{c}.{next(_number)}.{self.mark}@example.com"
        self._save(c)

    # --- what holds at any time -------------------------------------------------------------------

    @invariant()
    def rows_and_counters_are_those_of_the_model(self) -> None:
        for offer in self.offers:
            live = {(self.people[c].id, receipt.public_id) for c, receipt in offer.live().items()}
            found = redemption_queries.list_latest_redemptions(offer.id, 50)
            assert {(done.customer_id, done.public_id) for done in found} == live
            undone = db.session.execute(
                text("select count(*), count(distinct (customer_id, redeemed_at)) from rollback where offer_id = :id"),
                {"id": offer.id},
            ).one()
            assert tuple(undone) == (self._undone(offer), self._undone(offer))
            counter = db.session.execute(
                text("select redeemed, max_redemptions, frozen_at is not null from offer where id = :id"),
                {"id": offer.id},
            ).one()
            assert tuple(counter) == (len(live) if offer.cap else 0, offer.cap, offer.is_frozen)
            assert offer.cap is None or len(live) <= offer.cap
        db.session.rollback()

    # --- the model --------------------------------------------------------------------------------

    def _expected(
        self, offer: Given, c: int, machine: int, key: str | None, order: str | None, body: bytes, code: str
    ) -> Receipt | str:
        """The receipt that comes back, new or as it was; or the key of the refusal."""
        mine = [receipt for receipt in reversed(offer.made[c]) if receipt.machine == machine]
        by_key = next((receipt for receipt in mine if key and receipt.key == key), None)
        if by_key is not None:
            return by_key if by_key.body == body else "invalid_payload"
        by_order = next((receipt for receipt in mine if order and receipt.order == order), None)
        if by_order is not None and not (by_order.is_undone and key):
            return by_order
        return self._refusal(offer, c, code) or Receipt("", machine, key, order, body, offer.percent)

    def _refusal(self, offer: Given, c: int, code: str) -> str | None:
        if c in offer.live():
            return "already_redeemed"
        if offer.window != "open":
            return "offer_expired" if offer.window == "over" else "offer_not_started"
        if offer.is_paused:
            return "offer_paused"
        if offer.for_members and not self.people[c].is_member:
            return "customer_not_eligible"
        if code == "wrong" or (code == "shared" and offer.wants_personal_code):
            return "personal_code_required"
        if offer.cap is not None and len(offer.live()) >= offer.cap:
            return "offer_exhausted"
        return None

    def _used(self, offer: Given) -> int:
        return len(offer.live()) if offer.cap is not None else 0

    def _undone(self, offer: Given) -> int:
        return sum(receipt.is_undone for receipts in offer.made.values() for receipt in receipts)

    def _typed(self, offer: Given, c: int, code: str) -> str:
        if code == "shared":
            return offer.code
        whose = self.people[c if code == "right" else (c + 1) % len(self.people)]
        return personal_codes.derive_personal_code(offer.code, offer.id, whose.id).replace("-", "")

    def _changed(self, offer: Given, **changes: Any) -> bool:
        answer = _outcome(offer_actions.update_offer, offer.id, changes, None, BY)
        assert answer == "invalid_payload" or not isinstance(answer, str)
        return not isinstance(answer, str)

    def _save(self, c: int) -> None:
        person = self.people[c]
        customer_actions.update_customer(
            person.id, CustomerValues(email=person.email), [self.audience] * person.is_member, BY
        )


def _outcome(action: Any, *arguments: Any) -> Any:
    """What an action answers, or the key of its refusal."""
    try:
        return action(*arguments)
    except DomainError as error:
        return error.key
    finally:
        db.session.rollback()


@pytest.mark.usefixtures("app")
def test_whatever_happens_in_whatever_order_the_database_says_what_the_model_says() -> None:
    run_state_machine_as_test(
        Shop,
        settings=settings(
            max_examples=int(LONG or 25),
            stateful_step_count=40,
            derandomize=LONG is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
