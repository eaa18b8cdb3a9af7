"""The redemption rules, public ids, personal codes and personal links."""

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
REDEMPTION = RedemptionRow(
    redeemed_at=NOW, channel="api", api_key_id=1, order_id="A-1", idempotency_key="k1", body_hash=b"1"
)

UNKNOWN_CUSTOMER = replace(FACTS, customer_id=None, email=None)
NOT_ELIGIBLE = replace(FACTS, is_in_audience=False)
WRONG_PERSONAL_CODE = replace(FACTS, personal_code_status="wrong")


def encode(offer_id: int, customer_id: int, redeemed_at: datetime) -> str:
    return public_ids.encode_public_id(offer_id, customer_id, redeemed_at, public_ids.load_secret())


def with_offer(**values: object) -> RedemptionFacts:
    """Return the facts with other values of the offer."""
    return replace(FACTS, offer=replace(OFFER, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (FACTS, None),
        (replace(FACTS, offer=None), "not_found"),
        (UNKNOWN_CUSTOMER, "customer_unknown"),
        (replace(FACTS, redemption=REDEMPTION), "already_redeemed"),
        (with_offer(starts_at=NOW + timedelta(microseconds=1)), "offer_not_started"),
        (with_offer(starts_at=NOW), None),
        (with_offer(ends_at=NOW), "offer_expired"),
        (with_offer(ends_at=NOW + timedelta(microseconds=1)), None),
        (with_offer(ends_at=None), None),
        (with_offer(is_paused=True), "offer_paused"),
        (NOT_ELIGIBLE, "customer_not_eligible"),
        (with_offer(personal_code_required=True), "personal_code_required"),
        (replace(with_offer(personal_code_required=True), personal_code_status="right"), None),
        (WRONG_PERSONAL_CODE, "personal_code_required"),
        (with_offer(redeemed=10), "offer_exhausted"),
        (with_offer(redeemed=9), None),
        (with_offer(max_redemptions=None), None),
    ],
)
def test_each_failed_check_has_its_reason(facts: RedemptionFacts, reason: str | None) -> None:
    assert evaluate(facts).reason == reason


def test_the_first_failed_check_is_the_reason() -> None:
    facts = replace(
        with_offer(ends_at=NOW, is_paused=True, personal_code_required=True, redeemed=10),
        redemption=REDEMPTION,
        is_in_audience=False,
    )

    evaluation = evaluate(facts)

    assert [check.reason for check in evaluation.checks if check.passed is False] == [
        "already_redeemed",
        "offer_expired",
        "offer_paused",
        "customer_not_eligible",
        "personal_code_required",
        "offer_exhausted",
    ]
    assert evaluation.reason == "already_redeemed"


def test_every_evaluation_has_all_checks() -> None:
    names = [
        [check.name for check in evaluate(facts).checks]
        for facts in (FACTS, UNKNOWN_CUSTOMER, replace(FACTS, offer=None))
    ]

    assert names[0] == names[1] == names[2]
    assert len(names[0]) == 8


@pytest.mark.parametrize(
    "offer", [{}, {"ends_at": NOW}, {"starts_at": NOW + timedelta(1)}, {"is_paused": True}, {"redeemed": 10}]
)
def test_the_public_reason_does_not_reveal_why_a_customer_is_refused(offer: dict[str, object]) -> None:
    public_reasons = {
        evaluate(replace(facts, offer=replace(OFFER, **offer))).public_reason  # type: ignore[arg-type]
        for facts in (
            UNKNOWN_CUSTOMER,
            NOT_ELIGIBLE,
            WRONG_PERSONAL_CODE,
            replace(WRONG_PERSONAL_CODE, redemption=REDEMPTION),
            replace(NOT_ELIGIBLE, redemption=REDEMPTION),
        )
    }

    assert len(public_reasons) == 1


@pytest.mark.parametrize(
    "offer", [{"ends_at": NOW}, {"starts_at": NOW + timedelta(1)}, {"is_paused": True}, {"redeemed": 10}]
)
def test_for_an_unavailable_offer_the_public_reason_does_not_reveal_customers(offer: dict[str, object]) -> None:
    known, unknown = (
        evaluate(replace(facts, offer=replace(OFFER, **offer))).public_reason  # type: ignore[arg-type]
        for facts in (FACTS, UNKNOWN_CUSTOMER)
    )

    assert known == unknown


def test_the_public_reason_for_a_second_redemption_is_already_redeemed() -> None:
    assert evaluate(replace(FACTS, redemption=REDEMPTION)).public_reason == "already_redeemed"
    assert evaluate(replace(with_offer(redeemed=10), redemption=REDEMPTION)).public_reason == "already_redeemed"


def test_for_an_unavailable_offer_the_public_reason_does_not_reveal_redemptions() -> None:
    assert evaluate(replace(with_offer(ends_at=NOW), redemption=REDEMPTION)).public_reason == "offer_expired"
    assert evaluate(replace(with_offer(is_paused=True), redemption=REDEMPTION)).public_reason == "offer_paused"


def make_request(
    key: str | None = None, order: str | None = None, body: bytes = b"1", api_key: int = 1
) -> RedemptionRequest:
    return RedemptionRequest(
        channel="api",
        idempotency_key=key,
        order=Order(order) if order else None,
        body_hash=body,
        api_key_id=api_key,
    )


REDEEMED = replace(FACTS, redemption=REDEMPTION)
ROLLED_BACK = replace(REDEMPTION, rolled_back_at=NOW)


@pytest.mark.parametrize(
    ("repeat", "is_replay"),
    [
        (make_request(key="k1"), True),
        (make_request(order="A-1"), True),
        (make_request(key="k2", order="A-1"), True),
        (make_request(key="k2"), False),
        (make_request(order="A-2"), False),
        (make_request(), False),
        (make_request(key="k1", api_key=2), False),
        (make_request(order="A-1", api_key=2), False),
    ],
)
def test_a_replay_is_recognised_by_its_key_or_order(repeat: RedemptionRequest, is_replay: bool) -> None:
    assert (find_replayed_redemption(repeat, REDEEMED) is not None) is is_replay


def test_an_idempotency_key_with_another_body_is_rejected() -> None:
    with pytest.raises(InvalidInput):
        find_replayed_redemption(make_request(key="k1", body=b"2"), REDEEMED)


def test_the_key_of_a_rolled_back_redemption_replays_it_even_after_a_new_one() -> None:
    new = replace(REDEMPTION, idempotency_key="k2")

    assert (
        find_replayed_redemption(
            make_request(key="k1", order="A-1"), replace(FACTS, redemption=new, rolled_back_redemption=ROLLED_BACK)
        )
        == ROLLED_BACK
    )


def test_an_order_with_a_new_key_replays_the_live_redemption() -> None:
    assert find_replayed_redemption(make_request(key="k3", order="A-1"), REDEEMED) == REDEMPTION


@pytest.mark.parametrize(
    ("order", "discount_amount"),
    [
        (None, None),
        (Order("A-1"), None),
        (Order("A-1", 4999, "EUR"), 500),
        (Order("A-1", 300, "EUR"), 300),
        (Order("A-1", 0, "EUR"), 0),
    ],
)
def test_the_discount_amount_of_an_order(order: Order | None, discount_amount: int | None) -> None:
    assert calculate_discount_amount(order, Discount("amount", amount=500, currency="EUR")) == discount_amount


@pytest.mark.parametrize(
    ("order", "key"),
    [
        (Order("A-1", 4999), "currency_missing"),
        (Order("A-1", 4999, "USD"), "currency_mismatch"),
        (Order("A-1", None, "USD"), "currency_mismatch"),
    ],
)
def test_a_fixed_amount_requires_the_currency_of_the_order(order: Order, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        calculate_discount_amount(order, Discount("amount", amount=500, currency="EUR"))
    assert error.value.errors[0].key == key


def test_a_percentage_requires_no_currency() -> None:
    assert calculate_discount_amount(Order("A-1", 4999), Discount("percent", percent=Decimal(25))) == 1250


@given(st.integers(0, 2**128 - 1))
def test_base32_is_decoded_to_the_encoded_number(number: int) -> None:
    assert base32.decode_base32(base32.encode_base32(number, 26)) == number


def test_base32_accepts_letters_that_look_like_digits() -> None:
    assert base32.decode_base32("o1iL") == base32.decode_base32("0111")


PROPERTY_SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@PROPERTY_SETTINGS
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**43 - 1),
    st.datetimes(datetime(1970, 1, 1), datetime(2250, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_a_public_id_is_decoded_to_its_redemption(app: Flask, offer: int, customer: int, at: datetime) -> None:
    public_id = encode(offer, customer, at)

    assert list(public_ids.decode_public_id(public_id)) == [(offer, customer, at)]
    assert len(public_id) == public_ids.PUBLIC_ID_LENGTH


EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = EARLIEST + timedelta(microseconds=2**53 - 1)


@pytest.mark.parametrize(
    ("customer", "at"),
    [
        (-1, NOW),
        (2**43, NOW),
        (1, EARLIEST - timedelta(microseconds=1)),
        (1, LATEST + timedelta(microseconds=1)),
    ],
)
def test_values_out_of_range_have_no_public_id(app: Flask, customer: int, at: datetime) -> None:
    with pytest.raises(ValueError, match="out of range"):
        encode(1, customer, at)


@pytest.mark.parametrize("at", [EARLIEST, LATEST])
def test_the_extreme_times_have_a_public_id(app: Flask, at: datetime) -> None:
    assert list(public_ids.decode_public_id(encode(1, 2**43 - 1, at))) == [(1, 2**43 - 1, at)]


@PROPERTY_SETTINGS
@given(st.text(max_size=30))
def test_any_other_text_is_decoded_to_at_most_one_candidate(app: Flask, typed: str) -> None:
    assert len(list(public_ids.decode_public_id(typed))) <= 1


def test_similar_redemptions_have_different_public_ids(app: Flask) -> None:
    first, second = (
        encode(1, 1, NOW),
        encode(1, 2, NOW),
    )

    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def add_key(purpose: str, version: int) -> None:
    db.session.add(signing_keys.SigningKey(purpose=purpose, version=version, secret=bytes([7] * 32)))
    db.session.commit()
    signing_keys.clear_key_cache()


def test_values_signed_with_an_old_key_are_accepted(app: Flask) -> None:
    public_id, token, code = (
        encode(1, 2, NOW),
        personal_links.build_personal_url(1, 2),
        personal_codes.derive_personal_code("SUMMER25", 1, 2),
    )
    for purpose in (
        public_ids.PUBLIC_ID_PURPOSE,
        personal_links.PERSONAL_LINK_PURPOSE,
        personal_codes.PERSONAL_CODE_PURPOSE,
    ):
        add_key(purpose, 1000)

    try:
        assert (1, 2, NOW) in list(public_ids.decode_public_id(public_id))
        assert personal_links.parse_personal_token(token.rpartition("/")[2]) == (1, 2)
        assert personal_codes.verify_personal_code(code.rpartition("-")[2], 1, 2)
        assert encode(1, 2, NOW) != public_id
    finally:
        db.session.execute(db.delete(signing_keys.SigningKey).where(signing_keys.SigningKey.version == 1000))
        db.session.commit()
        signing_keys.clear_key_cache()


def test_a_personal_code_is_valid_for_one_customer_and_one_offer(app: Flask) -> None:
    suffix = personal_codes.derive_personal_code("SUMMER25", 1, 2).rpartition("-")[2]

    assert personal_codes.verify_personal_code(suffix, 1, 2)
    assert not personal_codes.verify_personal_code(suffix, 1, 3)
    assert not personal_codes.verify_personal_code(suffix, 2, 2)
    assert len(suffix) == personal_codes.SUFFIX_LENGTH


def test_a_personal_code_is_accepted_with_letters_that_look_like_digits(app: Flask) -> None:
    codes = (personal_codes.derive_personal_code("SUMMER25", 1, n) for n in range(10_000))
    number, code = next((n, code) for n, code in enumerate(codes) if {"0", "1"} <= set(code.rpartition("-")[2]))
    suffix = code.rpartition("-")[2]

    for typed in (suffix, suffix.replace("0", "O").replace("1", "I"), suffix.replace("1", "L")):
        shared, normalised = personal_codes.split_personal_code(f"SUMMER25{typed}")
        assert shared == "SUMMER25"
        assert personal_codes.verify_personal_code(normalised or "", 1, number)


@pytest.mark.parametrize("token", ["", "x", "WzEsMl0.x", "ä", "[1,2]", "a" * 5000])
def test_an_invalid_token_is_not_parsed(app: Flask, token: str) -> None:
    assert personal_links.parse_personal_token(token) is None


def test_a_token_with_another_purpose_is_not_parsed(app: Flask) -> None:
    assert personal_links.parse_personal_token(signing_keys.sign_token("unsubscribe", [1, 2])) is None
