"""Discounts, codes and validity periods."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.core import local_time
from webapp.core.errors import InvalidInput
from webapp.core.local_time import LocalDateTime
from webapp.core.money import Discount
from webapp.offers.code_actions import GENERATED_ALPHABET, generate_code
from webapp.offers.models import CODE_ALPHABET, normalise_code

BERLIN = ZoneInfo("Europe/Berlin")


@given(
    st.integers(0, 10**12),
    st.decimals(min_value="0.01", max_value=100, places=2),
)
def test_a_percentage_is_rounded_half_up_and_never_above_the_order(amount: int, percent: Decimal) -> None:
    discount = Discount("percent", percent=percent).amount_off(amount, "EUR")

    exact = Decimal(amount) * percent / 100
    assert 0 <= discount <= amount
    assert Decimal("-0.5") < discount - exact <= Decimal("0.5") or discount == amount


def test_half_a_cent_is_rounded_in_favour_of_the_customer() -> None:
    assert Discount("percent", percent=Decimal("12.5")).amount_off(4, "EUR") == 1


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_an_amount_is_never_above_the_order(amount: int, order: int) -> None:
    assert Discount("amount", amount=amount, currency="EUR").amount_off(order, "EUR") == min(amount, order)


def test_an_amount_in_another_currency_is_refused() -> None:
    with pytest.raises(InvalidInput) as error:
        Discount("amount", amount=500, currency="EUR").amount_off(1000, "USD")
    assert error.value.errors[0].key == "currency_mismatch"


@given(
    st.lists(
        st.tuples(st.sampled_from("abcXYZ019"), st.sampled_from(["", " ", "-", "–", "_\t"])), min_size=1, max_size=30
    )
)
def test_case_spaces_and_dashes_of_a_code_do_not_matter(pairs: list[tuple[str, str]]) -> None:
    typed = "".join(letter + noise for letter, noise in pairs)

    assert normalise_code(typed) == "".join(letter for letter, _ in pairs).upper()


@pytest.mark.parametrize("typed", ["", "  ", "--", "SÜMMER", "SUMMER!25", "A\0B", "СУММЕР", "x" * 200])
def test_a_code_with_other_characters_is_rejected(typed: str) -> None:
    with pytest.raises(InvalidInput) as error:
        normalise_code(typed)
    assert error.value.errors[0].key == "code_invalid"


def test_full_width_letters_are_normalised() -> None:
    assert normalise_code("ＳＵＭＭＥＲ２５") == "SUMMER25"


def test_a_generated_code_has_no_ambiguous_characters() -> None:
    letters = set("".join(generate_code() for _ in range(200))) - {"-"}

    assert letters <= set(GENERATED_ALPHABET) <= CODE_ALPHABET
    assert not letters & set("0O1IL")


def test_a_date_as_the_end_means_the_end_of_that_day_in_the_zone() -> None:
    assert local_time.window_end(LocalDateTime(date(2026, 5, 31)), BERLIN) == datetime(2026, 5, 31, 22, tzinfo=UTC)


def test_a_date_as_the_start_means_the_start_of_that_day_in_the_zone() -> None:
    assert local_time.window_start(LocalDateTime(date(2026, 12, 1)), BERLIN) == datetime(2026, 11, 30, 23, tzinfo=UTC)


def test_a_time_that_does_not_exist_is_rejected() -> None:
    with pytest.raises(InvalidInput) as error:
        local_time.window_start(LocalDateTime(date(2026, 3, 29), time(2, 30)), BERLIN)
    assert error.value.errors[0].key == "time_missing"


def test_an_ambiguous_time_is_rejected() -> None:
    with pytest.raises(InvalidInput) as error:
        local_time.window_end(LocalDateTime(date(2026, 10, 25), time(2, 30)), BERLIN)
    assert error.value.errors[0].key == "time_ambiguous"


@pytest.mark.parametrize(("fold", "hour"), [(0, 0), (1, 1)])
def test_the_fold_resolves_an_ambiguous_time(fold: int, hour: int) -> None:
    at = local_time.window_end(LocalDateTime(date(2026, 10, 25), time(2, 30), fold), BERLIN)

    assert at == datetime(2026, 10, 25, hour, 30, tzinfo=UTC)


def test_a_day_without_midnight_starts_at_its_first_time() -> None:
    # In Lebanon clocks are set forward at midnight, so the day starts at 01:00.
    at = local_time.window_start(LocalDateTime(date(2026, 3, 29)), ZoneInfo("Asia/Beirut"))

    assert at.astimezone(ZoneInfo("Asia/Beirut")).time() == time(1)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Beirut", "America/Havana"]),
    st.booleans(),
)
def test_converting_to_local_time_and_back_returns_the_same_moment(naive: datetime, name: str, closes: bool) -> None:
    at, zone = naive.replace(tzinfo=UTC), ZoneInfo(name)
    local = local_time.utc_to_local(at, zone, is_window_end=closes)

    assert (local_time.window_end if closes else local_time.window_start)(local, zone) == at


def test_every_listed_time_zone_exists() -> None:
    assert [local_time.parse_time_zone(name).key for name in local_time.list_time_zones()] == list(
        local_time.list_time_zones()
    )


def test_an_unknown_time_zone_is_rejected() -> None:
    with pytest.raises(InvalidInput) as error:
        local_time.parse_time_zone("../etc/passwd")
    assert error.value.errors[0].key == "time_zone_unknown"
