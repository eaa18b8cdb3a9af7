"""Model-based test: random sequences of actions, compared with a model in Python.

The sequences are the same each time. `MODEL_EXAMPLES=5000 pytest tests/redemptions/test_state_machine.py` runs 5000
random ones.
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
class ModelRedemption:
    """A redemption in the model, with the request that made it."""

    public_id: str
    api_key: int
    key: str | None
    order: str | None
    body: bytes
    percent: Decimal
    is_rolled_back: bool = False


@dataclass
class ModelCustomer:
    id: int
    email: str
    is_member: bool = False
    former: list[str] = field(default_factory=list)


@dataclass
class ModelOffer:
    """An offer in the model."""

    id: int
    code: str
    cap: int | None
    percent: Decimal = Decimal(25)
    window: str = "open"
    is_paused: bool = False
    is_frozen: bool = False
    for_members: bool = False
    personal_code_required: bool = False
    # The redemptions of each customer, oldest first; only the last one can be live.
    redemptions: dict[int, list[ModelRedemption]] = field(default_factory=lambda: {n: [] for n in CUSTOMERS})

    def live(self) -> dict[int, ModelRedemption]:
        return {
            n: redemptions[-1]
            for n, redemptions in self.redemptions.items()
            if redemptions and not redemptions[-1].is_rolled_back
        }


class RedemptionMachine(RuleBasedStateMachine):
    """A few offers and customers, and all actions on them."""

    def __init__(self) -> None:
        super().__init__()
        self.suffix = next(_number)
        self.audience = audience_actions.create_audience(f"Regulars {self.suffix}", BY).id
        self.customers = [self._create_customer(f"c{n}.{self.suffix}@example.com") for n in CUSTOMERS]
        self.offers = [self._create_offer(f"CODE{n}X{self.suffix}", cap=2 if n else None) for n in OFFERS]

    def teardown(self) -> None:
        db.session.remove()

    def _create_customer(self, email: str) -> ModelCustomer:
        return ModelCustomer(customer_actions.create_customer(CustomerValues(email=email), [], BY).id, email)

    def _create_offer(self, code: str, cap: int | None) -> ModelOffer:
        values = OfferValues(
            "Summer", Discount("percent", percent=Decimal(25)), starts_at=PAST, code=code, max_redemptions=cap
        )
        return ModelOffer(offer_actions.create_offer(values, BY).id, code, cap)

    # --- actions of customers and API clients -----------------------------------------------------

    @rule(
        o=st.sampled_from(OFFERS),
        c=st.sampled_from(CUSTOMERS),
        api_key=st.sampled_from([1, 1, 1, 2]),
        key=st.sampled_from([None, None, "k1", "k2", "k3"]),
        order=st.sampled_from([None, "A", "B"]),
        body=st.sampled_from([b"1", b"1", b"1", b"2"]),
        code=st.sampled_from(["shared", "shared", "right", "wrong"]),
    )
    def redeem(self, o: int, c: int, api_key: int, key: str | None, order: str | None, body: bytes, code: str) -> None:
        offer = self.offers[o]
        request = RedemptionRequest(
            channel="api",
            code=self._build_code(offer, c, code),
            email=self.customers[c].email,
            api_key_id=api_key,
            idempotency_key=key,
            body_hash=body,
            order=Order(order) if order else None,
        )
        expected = self._expected(offer, c, api_key, key, order, body, code)

        result = _outcome(group_commit.redeem, request)

        if not isinstance(expected, ModelRedemption):
            assert result == expected
            return
        assert isinstance(result, RedemptionRecord)
        assert result.is_replay == (expected in offer.redemptions[c])
        assert (result.row.rolled_back_at is not None) == expected.is_rolled_back
        if result.is_replay:
            assert result.public_id == expected.public_id
        else:
            expected.public_id = result.public_id
            offer.redemptions[c].append(expected)
            offer.is_frozen = True
        assert result.discount.percent == expected.percent == offer.percent

    @rule(o=st.sampled_from(OFFERS), c=st.sampled_from(CUSTOMERS), code=st.sampled_from(["shared", "right"]))
    def redeem_without_key(self, o: int, c: int, code: str) -> None:
        self.redeem(o, c, 1, None, None, b"1", code)

    @rule(o=st.sampled_from(OFFERS), c=st.sampled_from(CUSTOMERS), key=st.sampled_from(["k1", "k2"]))
    def redeem_with_a_key(self, o: int, c: int, key: str) -> None:
        self.redeem(o, c, 1, key, None, b"1", "right")

    @rule(o=st.sampled_from(OFFERS), c=st.sampled_from(CUSTOMERS), code=st.sampled_from(["shared", "right", "wrong"]))
    def validate(self, o: int, c: int, code: str) -> None:
        offer = self.offers[o]
        request = RedemptionRequest(
            channel="api", code=self._build_code(offer, c, code), email=self.customers[c].email, api_key_id=1
        )

        result = _outcome(redemption_actions.validate_redemption, request)

        assert (result if isinstance(result, str) else None) == self._refusal(offer, c, code)

    @precondition(lambda self: any(customer.former for customer in self.customers))
    @rule(o=st.sampled_from(OFFERS), data=st.data())
    def redeem_by_a_former_email(self, o: int, data: st.DataObject) -> None:
        former = data.draw(st.sampled_from([email for customer in self.customers for email in customer.former]))

        result = _outcome(
            group_commit.redeem, RedemptionRequest(channel="form", code=self.offers[o].code, email=former)
        )

        assert result == "customer_unknown"

    @precondition(lambda self: any(redemptions for offer in self.offers for redemptions in offer.redemptions.values()))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        all_redemptions = [
            redemption
            for offer in self.offers
            for redemptions in offer.redemptions.values()
            for redemption in redemptions
        ]
        redemption = data.draw(st.sampled_from(all_redemptions))

        result = _outcome(redemption_rollback.roll_back_redemption, redemption.public_id, "order cancelled", BY)

        if redemption.is_rolled_back:
            assert result == "already_rolled_back"
        else:
            assert isinstance(result, RedemptionRecord)
            assert (result.public_id, result.row.reason) == (redemption.public_id, "order cancelled")
            redemption.is_rolled_back = True

    # --- actions of staff -------------------------------------------------------------------------

    @rule(o=st.sampled_from(OFFERS), cap=st.sampled_from([None, 1, 2, 3, 4]))
    def change_cap(self, o: int, cap: int | None) -> None:
        offer = self.offers[o]
        allowed = not offer.is_frozen or (
            (cap is None) == (offer.cap is None) and (cap or 0) >= self._count_redeemed(offer)
        )

        assert self._update(offer, max_redemptions=cap) == allowed
        offer.cap = cap if allowed else offer.cap

    @rule(o=st.sampled_from(OFFERS), percent=st.sampled_from([Decimal(25), Decimal("12.5")]))
    def change_discount(self, o: int, percent: Decimal) -> None:
        offer = self.offers[o]
        allowed = not offer.is_frozen or percent == offer.percent

        assert self._update(offer, discount=Discount("percent", percent=percent)) == allowed
        offer.percent = percent if allowed else offer.percent

    @rule(o=st.sampled_from(OFFERS), window=st.sampled_from(["open", "open", "over", "not yet"]))
    def change_window(self, o: int, window: str) -> None:
        now = datetime.now(UTC)
        starts_at = now + SOON if window == "not yet" else PAST
        ends_at = now - timedelta(hours=1) if window == "over" else now + 2 * SOON

        assert self._update(self.offers[o], starts_at=starts_at, ends_at=ends_at)
        self.offers[o].window = window

    @rule(o=st.sampled_from(OFFERS), paused=st.booleans())
    def pause_or_resume(self, o: int, paused: bool) -> None:
        (offer_actions.pause_offer if paused else offer_actions.resume_offer)(self.offers[o].id, BY)
        self.offers[o].is_paused = paused

    @rule(o=st.sampled_from(OFFERS), for_members=st.booleans())
    def change_audience(self, o: int, for_members: bool) -> None:
        assert self._update(self.offers[o], audience_id=self.audience if for_members else None)
        self.offers[o].for_members = for_members

    @rule(o=st.sampled_from(OFFERS), required=st.booleans())
    def require_the_personal_code(self, o: int, required: bool) -> None:
        assert self._update(self.offers[o], personal_code_required=required)
        self.offers[o].personal_code_required = required

    @rule(c=st.sampled_from(CUSTOMERS), joins=st.booleans())
    def join_or_leave(self, c: int, joins: bool) -> None:
        self.customers[c].is_member = joins
        self._save(c)

    @rule(c=st.sampled_from(CUSTOMERS))
    def change_email(self, c: int) -> None:
        customer = self.customers[c]
        customer.former.append(customer.email)
        customer.email = f"c{c}.{next(_number)}.{self.suffix}@example.com"
        self._save(c)

    # --- invariants -------------------------------------------------------------------------------

    @invariant()
    def rows_and_counters_match_the_model(self) -> None:
        for offer in self.offers:
            live = {(self.customers[c].id, redemption.public_id) for c, redemption in offer.live().items()}
            found = redemption_queries.list_latest_redemptions(offer.id, 50)
            assert {(record.customer_id, record.public_id) for record in found} == live
            rolled_back = db.session.execute(
                text("select count(*), count(distinct (customer_id, redeemed_at)) from rollback where offer_id = :id"),
                {"id": offer.id},
            ).one()
            assert tuple(rolled_back) == (self._count_rolled_back(offer), self._count_rolled_back(offer))
            counter = db.session.execute(
                text(
                    "select redeemed, c.max_redemptions, o.max_redemptions, frozen_at is not null "
                    "from offer o join offer_counter c on c.offer_id = id where id = :id"
                ),
                {"id": offer.id},
            ).one()
            assert tuple(counter) == (len(live) if offer.cap else 0, offer.cap, offer.cap, offer.is_frozen)
            assert offer.cap is None or len(live) <= offer.cap
        db.session.rollback()

    # --- the model --------------------------------------------------------------------------------

    def _expected(
        self, offer: ModelOffer, c: int, api_key: int, key: str | None, order: str | None, body: bytes, code: str
    ) -> ModelRedemption | str:
        """Return the expected redemption, new or replayed, or the key of the refusal."""
        own = [redemption for redemption in reversed(offer.redemptions[c]) if redemption.api_key == api_key]
        by_key = next((redemption for redemption in own if key and redemption.key == key), None)
        if by_key is not None:
            return by_key if by_key.body == body else "invalid_payload"
        by_order = next((redemption for redemption in own if order and redemption.order == order), None)
        if by_order is not None and not (by_order.is_rolled_back and key):
            return by_order
        return self._refusal(offer, c, code) or ModelRedemption("", api_key, key, order, body, offer.percent)

    def _refusal(self, offer: ModelOffer, c: int, code: str) -> str | None:
        if c in offer.live():
            return "already_redeemed"
        if offer.window != "open":
            return "offer_expired" if offer.window == "over" else "offer_not_started"
        if offer.is_paused:
            return "offer_paused"
        if offer.for_members and not self.customers[c].is_member:
            return "customer_not_eligible"
        if code == "wrong" or (code == "shared" and offer.personal_code_required):
            return "personal_code_required"
        if offer.cap is not None and len(offer.live()) >= offer.cap:
            return "offer_exhausted"
        return None

    def _count_redeemed(self, offer: ModelOffer) -> int:
        return len(offer.live()) if offer.cap is not None else 0

    def _count_rolled_back(self, offer: ModelOffer) -> int:
        return sum(
            redemption.is_rolled_back for redemptions in offer.redemptions.values() for redemption in redemptions
        )

    def _build_code(self, offer: ModelOffer, c: int, code: str) -> str:
        if code == "shared":
            return offer.code
        owner = self.customers[c if code == "right" else (c + 1) % len(self.customers)]
        return personal_codes.derive_personal_code(offer.code, offer.id, owner.id).replace("-", "")

    def _update(self, offer: ModelOffer, **changes: Any) -> bool:
        result = _outcome(offer_actions.update_offer, offer.id, changes, None, BY)
        assert result == "invalid_payload" or not isinstance(result, str)
        return not isinstance(result, str)

    def _save(self, c: int) -> None:
        customer = self.customers[c]
        customer_actions.update_customer(
            customer.id, CustomerValues(email=customer.email), [self.audience] * customer.is_member, BY
        )


def _outcome(action: Any, *arguments: Any) -> Any:
    """Return the result of an action, or the key of its error."""
    try:
        return action(*arguments)
    except DomainError as error:
        return error.key
    finally:
        db.session.rollback()


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("examples", [10, pytest.param(25, marks=pytest.mark.slow)])
def test_the_database_matches_the_model_after_any_sequence_of_actions(examples: int) -> None:
    run_state_machine_as_test(
        RedemptionMachine,
        settings=settings(
            max_examples=int(LONG or examples),
            stateful_step_count=40,
            derandomize=LONG is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
