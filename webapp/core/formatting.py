"""Format numbers, money, dates and times."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

from babel import Locale, dates, numbers

from webapp.core.money import Discount


def format_rfc3339(at: datetime | None) -> str | None:
    """Return a time as RFC 3339 in UTC with `Z`; None for None."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


_ONE_DAY = timedelta(days=1)
# The zero of each numbering system that is the default of a CLDR locale, other than `latn`. Babel knows which system a
# locale uses, but not its digits.
_ZERO_DIGITS = {
    "adlm": 0x1E950,
    "arab": 0x0660,
    "arabext": 0x06F0,
    "beng": 0x09E6,
    "cakm": 0x11136,
    "deva": 0x0966,
    "hmnp": 0x1E140,
    "mtei": 0xABF0,
    "mymr": 0x1040,
    "nkoo": 0x07C0,
    "olck": 0x1C50,
    "tibt": 0x0F20,
}


_RIGHT_TO_LEFT_PATTERN = re.compile(
    "[\u0590-\u08ff\u200f\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)


def format_number(value: float | Decimal, locale: str = "en") -> str:
    """Format a number with thousands separators, such as 1,234,567."""
    return numbers.format_decimal(value, locale=locale)


def format_share(value: float, locale: str = "en") -> str:
    """Format a fraction as a percentage, such as 12.5% for 0.125.

    Values above 0 are shown as at least <0.1%.
    """
    if 0 < value <= 0.0005:
        return "<" + format_share(0.001, locale)
    return numbers.format_percent(value, format="#,##0.#%", locale=locale)


def format_money(minor: int, currency: str, locale: str = "en") -> str:
    """Format an amount in minor units, such as €5.00 for 500 EUR.

    Minor units are those of ISO 4217: the yen has none, the dinar a thousand.
    """
    amount = Decimal(minor).scaleb(-numbers.get_currency_precision(currency))
    return _localise_digits(
        numbers.format_currency(amount, currency, locale=locale, numbering_system="default"), locale
    )


@lru_cache(1000)
def format_discount(value: Discount, locale: str = "en") -> str:
    """Format a discount, such as 25% or €5.00."""
    if value.type == "percent" and value.percent is not None:
        return format_percent(value.percent, locale)
    return format_money(value.amount or 0, value.currency or "EUR", locale)


def format_percent(value: Decimal, locale: str = "en") -> str:
    """Format a percentage, such as 12.5%.

    The percent sign is placed as in the language.
    """
    pattern = re.sub(r"0(?=[^0-9#.,]*$)", "0.##", Locale.parse(locale).percent_formats[None].pattern.split(";")[0])
    text = numbers.format_percent(value / 100, format=pattern, locale=locale, numbering_system="default")
    return _localise_digits(text, locale)


def format_customer_datetime(value: datetime, zone: str, locale: str) -> str:
    """Format a time for customers, such as 3 May 2026, 12:00 CEST.

    It has the pattern and the digits of the locale, as in `format_last_day`.
    """
    local = value.astimezone(ZoneInfo(zone))
    return f"{_format_day_and_time(local, locale)} {local.tzname()}"  # no translation


def format_day(value: datetime, zone: str = "UTC", locale: str = "en") -> str:
    """Format the date of a time in a time zone, such as 31 May 2026."""
    return _format_local_date(value.astimezone(ZoneInfo(zone)).date(), locale)


def format_date(value: date) -> str:
    """Format a date without a time zone, such as 31 May 2026."""
    return _format_local_date(value, "en")


def format_last_day(ends_at: datetime, zone: str, locale: str = "en") -> str:
    """Format the last day (or minute) of a half-open window.

    A window that ends at the midnight after 31 May is shown as ending on 31 May.
    """
    local = ends_at.astimezone(ZoneInfo(zone))
    if local.hour == local.minute == local.second == 0:
        return _format_local_date(local.date() - _ONE_DAY, locale)
    return _format_day_and_time(local, locale)


def _format_day_and_time(local: datetime, locale: str) -> str:
    if locale == "en":
        time = dates.format_time(local, "HH:mm", locale=locale)
        return f"{_format_local_date(local.date(), locale)}, {time}"  # no translation
    # CLDR's pattern that joins a date and a time: {1} is the date.
    joined = str(dates.get_datetime_format("medium", locale=locale)).replace("'", "")
    time = _localise_digits(dates.format_time(local, "short", locale=locale), locale)
    return joined.replace("{1}", _format_local_date(local.date(), locale)).replace("{0}", time)


@lru_cache(1000)
def _format_local_date(value: date, locale: str) -> str:
    # Babel takes plain "en" for American English. The other dates have the day first, as in most English locales.
    return _localise_digits(dates.format_date(value, "long", locale="en_001" if locale == "en" else locale), locale)


def _localise_digits(text: str, locale: str) -> str:
    """Replace the digits and the percent sign by those of the locale (CLDR)."""
    parsed = Locale.parse(locale)
    system = parsed.default_numbering_system
    zero = _ZERO_DIGITS.get(system)
    if zero is None:
        return text
    sign = parsed.number_symbols.get(system, {}).get("percentSign", "%")
    return text.translate({ord("0") + digit: chr(zero + digit) for digit in range(10)}).replace("%", str(sign))


def bidi_isolate(text: str) -> str:
    """Isolate a value with right-to-left text: the text around keeps its order.

    It uses the isolates of the Unicode bidirectional algorithm (UAX 9).
    """
    text = str(text)
    if not _RIGHT_TO_LEFT_PATTERN.search(text):
        return text
    # An email address is always displayed left to right.
    return f"\u2066{text}\u2069" if "@" in text else f"\u2068{text}\u2069"


def mask_email(email: str) -> str:
    """Mask the local part of an email address, such as a…a@example.com.

    The owner can still recognise the address.
    """
    local, _, domain = email.rpartition("@")
    if not local:
        # The hashed address of an erased customer needs no masking.
        return email
    return f"{local[0]}…{local[-1] if len(local) > 2 else ''}@{domain}"


def format_datetime(value: datetime | None, zone: str) -> str:
    """Format a time in a time zone, such as 3 May 2026, 12:00 CEST; a dash for None."""
    if value is None:
        return "–"
    local = value.astimezone(ZoneInfo(zone))
    text = dates.format_datetime(local, "d MMM y, HH:mm", tzinfo=local.tzinfo, locale="en")
    return f"{text} {local.tzname()}"  # no translation
