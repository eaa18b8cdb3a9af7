"""Numbers, money, dates and addresses as people and machines read them."""

from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from webapp.core import formatting
from webapp.core.money import Discount


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (1e-9, "<0.1%"),
        (0.0004999, "<0.1%"),
        (0.0005, "<0.1%"),
        (0.00051, "0.1%"),
        (0.001, "0.1%"),
        (0.125, "12.5%"),
        (1, "100%"),
        (12.345, "1,234.5%"),
    ],
)
def test_a_share_above_zero_is_never_shown_as_zero(share: float, text: str) -> None:
    assert formatting.format_share(share) == text


@pytest.mark.parametrize(
    ("minor", "currency", "locale", "text"),
    [
        (500, "EUR", "en", "€5.00"),
        (123456, "EUR", "de", "1.234,56\xa0€"),
        (500, "JPY", "en", "¥500"),
        (5001, "KWD", "en", "KWD5.001"),
        (1, "USD", "en", "$0.01"),
    ],
)
def test_money_has_the_minor_units_of_its_currency(minor: int, currency: str, locale: str, text: str) -> None:
    assert formatting.format_money(minor, currency, locale) == text


@pytest.mark.parametrize(
    ("discount", "locale", "text"),
    [
        (Discount("percent", percent=Decimal(25)), "en", "25%"),
        (Discount("percent", percent=Decimal("12.50")), "en", "12.5%"),
        (Discount("percent", percent=Decimal("0.01")), "de", "0,01\xa0%"),
        (Discount("percent", percent=Decimal(25)), "ar_EG", "٢٥٪\u061c"),
        (Discount("amount", amount=500, currency="EUR"), "en", "€5.00"),
    ],
)
def test_a_discount_is_a_percentage_or_an_amount(discount: Discount, locale: str, text: str) -> None:
    assert formatting.format_discount(discount, locale) == text


def test_numbers_are_those_of_the_language() -> None:
    assert (formatting.format_number(1234567), formatting.format_number(1234.5, "de")) == ("1,234,567", "1.234,5")
    assert formatting.format_share(0.1255, "de") == "12,6%"
    assert formatting.format_share(0.0001, "de") == "<0,1%"


def test_times_for_customers_are_those_of_the_language() -> None:
    at = datetime(2026, 5, 3, 22, 30, tzinfo=UTC)

    assert formatting.format_day(at, "Europe/Berlin", "de") == "4. Mai 2026"
    assert formatting.format_customer_datetime(at, "Europe/Berlin", "de") == "4. Mai 2026, 00:30 CEST"
    assert formatting.format_customer_datetime(at, "UTC", "en") == "3 May 2026, 22:30 UTC"
    assert formatting.format_customer_datetime(at, "UTC", "en_US") == "May 3, 2026, 10:30\u202fPM UTC"
    assert formatting.format_customer_datetime(at, "UTC", "co") == "3 di maghju di u 2026 à 22:30 UTC"
    assert formatting.format_last_day(at, "UTC", "ar_EG") == "٣ مايو ٢٠٢٦، ١٠:٣٠ م"


def test_times_for_machines_are_in_utc() -> None:
    assert formatting.format_rfc3339(None) is None
    noon = datetime(2026, 5, 3, 12, tzinfo=UTC)
    assert formatting.format_rfc3339(noon) == "2026-05-03T12:00:00Z"
    other_zone = noon.astimezone(timezone(timedelta(hours=2))).replace(microsecond=5)
    assert formatting.format_rfc3339(other_zone) == "2026-05-03T12:00:00.000005Z"


@pytest.mark.parametrize(
    ("ends_at", "zone", "text"),
    [
        ("2026-06-01T00:00:00Z", "UTC", "31 May 2026"),
        ("2026-05-31T22:00:00Z", "Europe/Berlin", "31 May 2026"),
        ("2026-05-31T22:00:00Z", "UTC", "31 May 2026, 22:00"),
        ("2026-06-01T00:00:01Z", "UTC", "1 June 2026, 00:00"),
        ("2026-06-01T00:01:00Z", "UTC", "1 June 2026, 00:01"),
        ("2026-06-01T01:00:00Z", "UTC", "1 June 2026, 01:00"),
    ],
)
def test_a_window_that_ends_at_midnight_ends_on_the_day_before(ends_at: str, zone: str, text: str) -> None:
    assert formatting.format_last_day(datetime.fromisoformat(ends_at), zone) == text


def test_days_and_times_are_those_of_the_zone() -> None:
    late = datetime(2026, 5, 3, 22, 30, tzinfo=UTC)

    assert formatting.format_day(late) == "3 May 2026"
    assert formatting.format_day(late, "Europe/Berlin") == "4 May 2026"
    assert formatting.format_datetime(late, "Europe/Berlin") == "4 May 2026, 00:30 CEST"
    assert formatting.format_customer_datetime(late, "Europe/Berlin", "en") == "4 May 2026, 00:30 CEST"
    assert formatting.format_datetime(None, "UTC") == "–"
    assert formatting.format_date(date(2026, 5, 3)) == "3 May 2026"


@pytest.mark.parametrize(
    ("email", "masked"),
    [
        ("ada@example.com", "a…a@example.com"),
        ("bo@example.com", "b…@example.com"),
        ("x@example.com", "x…@example.com"),
        ('"a@b"@example.com', '"…"@example.com'),
        ("sha256:abc", "sha256:abc"),
    ],
)
def test_a_masked_address_shows_its_first_and_last_letter(email: str, masked: str) -> None:
    assert formatting.mask_email(email) == masked


def test_every_numbering_system_starts_with_its_digit_zero() -> None:
    digits = [chr(zero + n) for zero in formatting._ZERO_DIGITS.values() for n in range(10)]

    assert [unicodedata.decimal(digit) for digit in digits] == [*range(10)] * len(formatting._ZERO_DIGITS)
