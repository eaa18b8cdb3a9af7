from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from webapp.core import signing_keys
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.redemptions import base32, personal_codes, personal_links, public_ids
from webapp.redemptions.rules import (
    OfferFacts,
    Order,
    RedemptionFacts,
    RedemptionRequest,
    RedemptionRow,
    calculate_discount_amount,
    evaluate,
    find_replayed_redemption,
)

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
OFFER = OfferFacts(
    id=1,
    code="SUMMER25",
    name="Summer",
    discount=Discount("percent", percent=Decimal(25)),
    starts_at=NOW - timedelta(days=1),
    ends_at=NOW + timedelta(days=1),
    time_zone="UTC",
    is_paused=False,
    audience_id=None,
    personal_code_required=False,
    max_redemptions=10,
    redeemed=0,
    is_frozen=True,
)
FACTS = RedemptionFacts(
    evaluated_at=NOW,
    offer=OFFER,
    customer_id=7,
    email="ada@example.com",
    is_in_audience=True,
    personal_code_status="none",
)
USE = RedemptionRow(redeemed_at=NOW, channel="api", api_key_id=1, order_id="A-1", idempotency_key="k1", body_hash=b"1")

NOBODY = replace(FACTS, customer_id=None, email=None)
ELSEWHERE = replace(FACTS, is_in_audience=False)
WRONG = replace(FACTS, personal_code_status="wrong")


def of(**values: object) -> RedemptionFacts:
    """The facts with another offer."""
    return replace(FACTS, offer=replace(OFFER, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (FACTS, None),
        (replace(FACTS, offer=None), "not_found"),
        (NOBODY, "customer_unknown"),
        (replace(FACTS, redemption=USE), "already_redeemed"),
        (of(starts_at=NOW + timedelta(microseconds=1)), "offer_not_started"),
        (of(starts_at=NOW), None),
        (of(ends_at=NOW), "offer_expired"),
        (of(ends_at=NOW + timedelta(microseconds=1)), None),
        (of(ends_at=None), None),
        (of(is_paused=True), "offer_paused"),
        (ELSEWHERE, "customer_not_eligible"),
        (of(personal_code_required=True), "personal_code_required"),
        (replace(of(personal_code_required=True), personal_code_status="right"), None),
        (WRONG, "personal_code_required"),
        (of(redeemed=10), "offer_exhausted"),
        (of(redeemed=9), None),
        (of(max_redemptions=None), None),
    ],
)
def test_the_rule(facts: RedemptionFacts, reason: str | None) -> None:
    assert evaluate(facts).reason == reason


def test_of_several_failures_the_first_in_order_is_the_reason() -> None:
    worst = replace(
        of(ends_at=NOW, is_paused=True, personal_code_required=True, redeemed=10), redemption=USE, is_in_audience=False
    )

    judged = evaluate(worst)

    assert [check.reason for check in judged.checks if check.passed is False] == [
        "already_redeemed",
        "offer_expired",
        "offer_paused",
        "customer_not_eligible",
        "personal_code_required",
        "offer_exhausted",
    ]
    assert judged.reason == "already_redeemed"


def test_every_check_is_always_answered_even_where_nothing_is_known() -> None:
    names = [[check.name for check in evaluate(facts).checks] for facts in (FACTS, NOBODY, replace(FACTS, offer=None))]

    assert names[0] == names[1] == names[2]
    assert len(names[0]) == 8


@pytest.mark.parametrize(
    "offer", [{}, {"ends_at": NOW}, {"starts_at": NOW + timedelta(1)}, {"is_paused": True}, {"redeemed": 10}]
)
def test_a_stranger_hears_the_same_of_whoever_may_not_use_it(offer: dict[str, object]) -> None:
    heard = {
        evaluate(replace(facts, offer=replace(OFFER, **offer))).public_reason  # type: ignore[arg-type]
        for facts in (NOBODY, ELSEWHERE, WRONG, replace(WRONG, redemption=USE), replace(ELSEWHERE, redemption=USE))
    }

    assert len(heard) == 1


@pytest.mark.parametrize(
    "offer", [{"ends_at": NOW}, {"starts_at": NOW + timedelta(1)}, {"is_paused": True}, {"redeemed": 10}]
)
def test_on_an_offer_nobody_can_use_a_customer_hears_what_a_stranger_hears(offer: dict[str, object]) -> None:
    known, unknown = (
        evaluate(replace(facts, offer=replace(OFFER, **offer))).public_reason  # type: ignore[arg-type]
        for facts in (FACTS, NOBODY)
    )

    assert known == unknown


def test_the_customer_hears_that_it_was_used() -> None:
    assert evaluate(replace(FACTS, redemption=USE)).public_reason == "already_redeemed"
    assert evaluate(replace(of(redeemed=10), redemption=USE)).public_reason == "already_redeemed"


def test_on_an_offer_that_nobody_can_use_a_stranger_does_not_hear_who_has_used_it() -> None:
    assert evaluate(replace(of(ends_at=NOW), redemption=USE)).public_reason == "offer_expired"
    assert evaluate(replace(of(is_paused=True), redemption=USE)).public_reason == "offer_paused"


def ask(key: str | None = None, order: str | None = None, body: bytes = b"1", api_key: int = 1) -> RedemptionRequest:
    return RedemptionRequest(
        channel="api",
        idempotency_key=key,
        order=Order(order) if order else None,
        body_hash=body,
        api_key_id=api_key,
    )


USED = replace(FACTS, redemption=USE)
UNDONE = replace(USE, rolled_back_at=NOW)


@pytest.mark.parametrize(
    ("asked", "repeated"),
    [
        (ask(key="k1"), True),
        (ask(order="A-1"), True),
        (ask(key="k2", order="A-1"), True),
        (ask(key="k2"), False),
        (ask(order="A-2"), False),
        (ask(), False),
        (ask(key="k1", api_key=2), False),
        (ask(order="A-1", api_key=2), False),
    ],
)
def test_the_same_request_again_is_told_from_another_one(asked: RedemptionRequest, repeated: bool) -> None:
    assert (find_replayed_redemption(asked, USED) is not None) is repeated


def test_an_idempotency_key_with_another_body_is_refused() -> None:
    with pytest.raises(InvalidInput):
        find_replayed_redemption(ask(key="k1", body=b"2"), USED)


def test_the_key_of_an_undone_redemption_answers_that_one_also_after_it_was_redeemed_anew() -> None:
    anew = replace(USE, idempotency_key="k2")

    assert (
        find_replayed_redemption(
            ask(key="k1", order="A-1"), replace(FACTS, redemption=anew, rolled_back_redemption=UNDONE)
        )
        == UNDONE
    )


def test_an_order_with_a_new_key_means_the_live_redemption() -> None:
    assert find_replayed_redemption(ask(key="k3", order="A-1"), USED) == USE


@pytest.mark.parametrize(
    ("order", "taken"),
    [
        (None, None),
        (Order("A-1"), None),
        (Order("A-1", 4999, "EUR"), 500),
        (Order("A-1", 300, "EUR"), 300),
        (Order("A-1", 0, "EUR"), 0),
    ],
)
def test_what_is_taken_off_an_order(order: Order | None, taken: int | None) -> None:
    assert calculate_discount_amount(order, Discount("amount", amount=500, currency="EUR")) == taken


@pytest.mark.parametrize(
    ("order", "key"),
    [
        (Order("A-1", 4999), "currency_missing"),
        (Order("A-1", 4999, "USD"), "currency_mismatch"),
        (Order("A-1", None, "USD"), "currency_mismatch"),
    ],
)
def test_a_fixed_amount_is_not_taken_off_an_order_in_another_currency(order: Order, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        calculate_discount_amount(order, Discount("amount", amount=500, currency="EUR"))
    assert error.value.errors[0].key == key


def test_a_percentage_needs_no_currency() -> None:
    assert calculate_discount_amount(Order("A-1", 4999), Discount("percent", percent=Decimal(25))) == 1250


@given(st.integers(0, 2**128 - 1))
def test_base32_is_read_as_it_was_written(number: int) -> None:
    assert base32.decode_base32(base32.encode_base32(number, 26)) == number


def test_base32_takes_the_letters_that_people_type_for_digits() -> None:
    assert base32.decode_base32("o1iL") == base32.decode_base32("0111")


PURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@PURE
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**43 - 1),
    st.datetimes(datetime(1970, 1, 1), datetime(2250, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_a_public_id_leads_back_to_its_redemption(app: Flask, offer: int, customer: int, at: datetime) -> None:
    public_id = public_ids.encode_public_id(offer, customer, at)

    assert list(public_ids.decode_public_id(public_id)) == [(offer, customer, at)]
    assert len(public_id) == public_ids.PUBLIC_ID_LENGTH


@PURE
@given(st.text(max_size=30))
def test_anything_else_is_no_public_id_or_leads_to_something_improbable(app: Flask, typed: str) -> None:
    assert len(list(public_ids.decode_public_id(typed))) <= 1


def test_public_ids_of_neighbours_have_nothing_in_common(app: Flask) -> None:
    first, second = public_ids.encode_public_id(1, 1, NOW), public_ids.encode_public_id(1, 2, NOW)

    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def new_key(purpose: str, version: int) -> None:
    db.session.add(signing_keys.SigningKey(purpose=purpose, version=version, secret=bytes([7] * 32)))
    db.session.commit()
    signing_keys.clear_key_cache()


def test_an_old_key_still_reads_what_it_wrote(app: Flask) -> None:
    public_id, token, code = (
        public_ids.encode_public_id(1, 2, NOW),
        personal_links.build_personal_url(1, 2),
        personal_codes.derive_personal_code("SUMMER25", 1, 2),
    )
    for purpose in (
        public_ids.PUBLIC_ID_PURPOSE,
        personal_links.PERSONAL_LINK_PURPOSE,
        personal_codes.PERSONAL_CODE_PURPOSE,
    ):
        new_key(purpose, 1000)

    try:
        assert (1, 2, NOW) in list(public_ids.decode_public_id(public_id))
        assert personal_links.parse_personal_token(token.rpartition("/")[2]) == (1, 2)
        assert personal_codes.verify_personal_code(code.rpartition("-")[2], 1, 2)
        assert public_ids.encode_public_id(1, 2, NOW) != public_id
    finally:
        db.session.execute(db.delete(signing_keys.SigningKey).where(signing_keys.SigningKey.version == 1000))
        db.session.commit()
        signing_keys.clear_key_cache()


def test_a_personal_code_belongs_to_one_customer_and_one_offer(app: Flask) -> None:
    suffix = personal_codes.derive_personal_code("SUMMER25", 1, 2).rpartition("-")[2]

    assert personal_codes.verify_personal_code(suffix, 1, 2)
    assert not personal_codes.verify_personal_code(suffix, 1, 3)
    assert not personal_codes.verify_personal_code(suffix, 2, 2)
    assert len(suffix) == personal_codes.SUFFIX_LENGTH


@pytest.mark.parametrize("token", ["", "x", "WzEsMl0.x", "ä", "[1,2]", "a" * 5000])
def test_a_made_up_link_is_nobodys(app: Flask, token: str) -> None:
    assert personal_links.parse_personal_token(token) is None


def test_a_token_of_another_purpose_is_no_link(app: Flask) -> None:
    assert personal_links.parse_personal_token(signing_keys.sign_token("unsubscribe", [1, 2])) is None
