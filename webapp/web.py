"""Small helpers for the HTML doors: a page or a piece of it, formatted values, errors put where they belong."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

import jinja2_fragments.flask
from babel import dates, numbers
from flask import Flask, Response, make_response, render_template, request
from flask_login import current_user
from werkzeug.routing import BaseConverter, IntegerConverter, Map

from webapp.errors import DomainError
from webapp.offers.models import Discount

_DAY = timedelta(days=1)
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


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
    """0.125 -> 12.5%"""
    return numbers.format_percent(value, format="#,##0.#%", locale=locale)


def money(minor: int, currency: str, locale: str = "en") -> str:
    """500, EUR -> €5.00. Minor units as ISO 4217 has them: a yen has none, a dinar a thousand."""
    exact = Decimal(minor).scaleb(-numbers.get_currency_precision(currency))
    return numbers.format_currency(exact, currency, locale=locale)


@lru_cache(1000)
def discount(value: Discount, locale: str = "en") -> str:
    """25% or €5.00"""
    if value.type == "percent" and value.percent is not None:
        return numbers.format_percent(value.percent / 100, format="#,##0.##%", locale=locale)
    return money(value.amount or 0, value.currency or "EUR", locale)


def when(value: datetime | None, zone: str | None = None, locale: str = "en") -> str:
    """A time in a zone (the staff member's own if none is given), with the zone shown."""
    if value is None:
        return "–"
    place = ZoneInfo(zone or getattr(current_user, "time_zone", None) or "UTC")
    text = dates.format_datetime(value, "d MMM y, HH:mm", tzinfo=place, locale=locale)
    return f"{text} {value.astimezone(place).tzname()}"


def day(value: datetime, zone: str = "UTC", locale: str = "en") -> str:
    """31 May 2026, in a zone."""
    return _date(value.astimezone(ZoneInfo(zone)).date(), locale)


def last_day(ends_at: datetime, zone: str, locale: str = "en") -> str:
    """The last day (or moment) of a half-open window: what ends at midnight ends "on 31 May" for people."""
    local = ends_at.astimezone(ZoneInfo(zone))
    if local.hour == local.minute == local.second == 0:
        return _date(local.date() - _DAY, locale)
    return f"{_date(local.date(), locale)}, {dates.format_time(local, 'HH:mm', locale=locale)}"


@lru_cache(1000)
def _date(value: date, locale: str) -> str:
    # Babel takes plain "en" for American; most who read English write the day first, and so do our other dates.
    return dates.format_date(value, "long", locale="en_001" if locale == "en" else locale)


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
        day=day,
        last_day=last_day,
        masked=masked,
    )
    app.jinja_env.globals.update(now=lambda: datetime.now(UTC), is_htmx=is_htmx)
    app.jinja_env.globals["shop_name"] = app.config["SETTINGS"].shop_name
