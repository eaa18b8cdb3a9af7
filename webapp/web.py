"""Small helpers for the HTML doors: a page or a piece of it, formatted values, errors put where they belong."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

import jinja2_fragments.flask
from babel import Locale, dates, numbers
from flask import Flask, Response, g, make_response, render_template, request
from flask_login import current_user
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter, IntegerConverter, Map

from webapp.accounts import queries as accounts
from webapp.errors import DomainError
from webapp.offers.models import Discount
from webapp.shop import queries as shop

_DAY = timedelta(days=1)
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The zero of each set of digits that a language of CLDR writes by default, beside our own. Babel knows which set, and
# not how it is written.
_ZEROS = {
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


_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\u200f\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")


class RowId(IntegerConverter):
    """A number in an address that can be the id of a row: a larger one is no page rather than an error."""

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=2**63 - 1)


class Address(BaseConverter):
    """An e-mail in an address, or what may be meant for one: a source id without an @ that ends like it is another."""

    regex = "[^/]*@[^/]*"
    part_isolating = True


def is_htmx() -> bool:
    """Whether htmx asks for a piece. A page restored from its history wants the whole page."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def render(template: str, block: str | None = None, status: int = 200, **values: object) -> Response:
    """The page, or only its `block` when htmx asked; the same template serves both."""
    if block and is_htmx():
        body = jinja2_fragments.flask.render_block(template, block, **values)
    else:
        body = render_template(template, **values)
    response = make_response(body, status)
    response.headers["Vary"] = "HX-Request"
    return response


def with_frames(response: Response) -> Response:
    """A page that shows another page of ours in a frame."""
    response.headers["Content-Security-Policy"] = f"{CSP}; frame-src 'self'"
    return response


def framed(html: str) -> Response:
    """Somebody's HTML, to be shown in a frame: no script runs, nothing is fetched from elsewhere."""
    response = make_response(html)
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'self'; "
        "base-uri 'none'; form-action 'none'; sandbox"
    )
    return response


def attach(form: object, error: DomainError) -> None:
    """Put a rule's errors at the form's fields; what belongs to no field goes on top (`form.form_errors`)."""
    for item in error.errors:
        field = getattr(form, item.field.replace(".", "_"), None)
        if field is None:
            form.form_errors.append(item.message)  # type: ignore[attr-defined]
        else:
            field.errors = [*field.errors, item.message]
    if not error.errors:
        form.form_errors.append(error.message)  # type: ignore[attr-defined]


def number(value: float | Decimal, locale: str = "en") -> str:
    """1234567 -> 1,234,567"""
    return numbers.format_decimal(value, locale=locale)


def share(value: float, locale: str = "en") -> str:
    """0.125 -> 12.5%. What is more than nothing is never written as nothing."""
    if 0 < value < 0.0005:
        return "<" + share(0.001, locale)
    return numbers.format_percent(value, format="#,##0.#%", locale=locale)


def money(minor: int, currency: str, locale: str = "en") -> str:
    """500, EUR -> €5.00. Minor units as ISO 4217 has them: a yen has none, a dinar a thousand."""
    exact = Decimal(minor).scaleb(-numbers.get_currency_precision(currency))
    return _native(numbers.format_currency(exact, currency, locale=locale, numbering_system="default"), locale)


@lru_cache(1000)
def discount(value: Discount, locale: str = "en") -> str:
    """25% or €5.00"""
    if value.type == "percent" and value.percent is not None:
        return percent(value.percent, locale)
    return money(value.amount or 0, value.currency or "EUR", locale)


def percent(value: Decimal, locale: str = "en") -> str:
    """12.5 -> 12.5%, with the sign where the language has it."""
    pattern = re.sub(r"0(?=[^0-9#.,]*$)", "0.##", Locale.parse(locale).percent_formats[None].pattern.split(";")[0])
    text = numbers.format_percent(value / 100, format=pattern, locale=locale, numbering_system="default")
    return _native(text, locale)


def when(value: datetime | None, zone: str | None = None) -> str:
    """3 May 2026, 12:00 CEST, in a zone (the staff member's own if none is given)."""
    if value is None:
        return "–"
    place = ZoneInfo(zone or getattr(current_user, "time_zone", None) or "UTC")
    text = dates.format_datetime(value, "d MMM y, HH:mm", tzinfo=place, locale="en")
    return f"{text} {value.astimezone(place).tzname()}"


def moment(value: datetime, zone: str, locale: str) -> str:
    """3 May 2026, 12:00 CEST, as customers read it: in the form and the digits of `last_day`."""
    local = value.astimezone(ZoneInfo(zone))
    return f"{_day_and_time(local, locale)} {local.tzname()}"


def clock(value: datetime, zone: str | None = None) -> str:
    """23:25, in a zone (the staff member's own if none is given)."""
    place = ZoneInfo(zone or getattr(current_user, "time_zone", None) or "UTC")
    return f"{value.astimezone(place):%H:%M}"


def day(value: datetime, zone: str = "UTC", locale: str = "en") -> str:
    """31 May 2026, in a zone."""
    return _date(value.astimezone(ZoneInfo(zone)).date(), locale)


def on(value: date) -> str:
    """31 May 2026, of a day that is one already."""
    return _date(value, "en")


def last_day(ends_at: datetime, zone: str, locale: str = "en") -> str:
    """The last day (or moment) of a half-open window: what ends at midnight ends "on 31 May" for people."""
    local = ends_at.astimezone(ZoneInfo(zone))
    if local.hour == local.minute == local.second == 0:
        return _date(local.date() - _DAY, locale)
    return _day_and_time(local, locale)


def _day_and_time(local: datetime, locale: str) -> str:
    if locale == "en":
        return f"{_date(local.date(), locale)}, {dates.format_time(local, 'HH:mm', locale=locale)}"
    # CLDR's way to join a day and a time: {1} is the day.
    joined = str(dates.get_datetime_format("medium", locale=locale)).replace("'", "")
    time = _native(dates.format_time(local, "short", locale=locale), locale)
    return joined.replace("{1}", _date(local.date(), locale)).replace("{0}", time)


@lru_cache(1000)
def _date(value: date, locale: str) -> str:
    # Babel takes plain "en" for American; most who read English write the day first, and so do our other dates.
    return _native(dates.format_date(value, "long", locale="en_001" if locale == "en" else locale), locale)


def _native(text: str, locale: str) -> str:
    """With the digits and the percent sign that CLDR gives for the language."""
    known = Locale.parse(locale)
    system = known.default_numbering_system
    zero = _ZEROS.get(system)
    if zero is None:
        return text
    sign = known.number_symbols.get(system, {}).get("percentSign", "%")
    return text.translate({ord("0") + n: chr(zero + n) for n in range(10)}).replace("%", str(sign))


def isolated(text: str) -> str:
    """A value of another language among English words; writing from right to left does not turn them round (UAX 9)."""
    text = str(text)
    if not _RIGHT_TO_LEFT.search(text):
        return text
    # An address is read from the left, whatever letters it begins with.
    return f"\u2066{text}\u2069" if "@" in text else f"\u2068{text}\u2069"


def named(text: str | None) -> str | None:
    """With a colleague's name for the e-mail that a text ends with (`paused by ada@example.com`), where it is known."""
    head, space, email = (text or "").rpartition(" ")
    if "@" not in email:
        return text
    if "staff_names" not in g:
        g.staff_names = accounts.names()
    return f"{head}{space}{g.staff_names.get(email, email)}"


def masked(email: str) -> str:
    """a…a@example.com: enough for its owner to know it again."""
    local, _, domain = email.rpartition("@")
    if not local:
        # Of an erased customer there is nothing to mask.
        return email
    return f"{local[0]}…{local[-1] if len(local) > 2 else ''}@{domain}"


def init_app(app: Flask) -> None:
    """Give the templates the same formatting."""
    app.jinja_env.filters.update(
        number=number,
        share=share,
        money=money,
        discount=discount,
        when=when,
        clock=clock,
        day=day,
        last_day=last_day,
        moment=moment,
        named=named,
        masked=masked,
        isolated=isolated,
    )
    app.jinja_env.globals.update(now=lambda: datetime.now(UTC), is_htmx=is_htmx)

    @app.context_processor
    def what_the_shop_is_called() -> dict[str, object]:
        # Looked up once for a page, and only if the page says it.
        found = lru_cache(1)(_shop)
        return {"shop_name": LocalProxy(lambda: found().name), "shop_colour": LocalProxy(lambda: found().colour)}


def _shop() -> shop.ShopValues:
    try:
        return shop.shop()
    except SQLAlchemyError:
        # The page that says so when the database is away needs no database.
        return shop.ShopValues("")
