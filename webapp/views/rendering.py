"""Small helpers for the HTML doors: a page or a piece of it, formatted values, errors put where they belong."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import jinja2_fragments.flask
from flask import Flask, Response, g, make_response, render_template, request
from flask_login import current_user
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter, IntegerConverter, Map

from webapp.accounts import queries as account_queries
from webapp.core.errors import DomainError
from webapp.core.formatting import (
    bidi_isolate,
    format_customer_datetime,
    format_datetime,
    format_day,
    format_discount,
    format_last_day,
    format_money,
    format_number,
    format_share,
    mask_email,
)
from webapp.shop import models
from webapp.shop import queries as shop_queries

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class RowIdConverter(IntegerConverter):
    """A number in an address that can be the id of a row: a larger one is no page rather than an error."""

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=2**63 - 1)


class EmailConverter(BaseConverter):
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


def allow_frames(response: Response) -> Response:
    """A page that shows another page of ours in a frame."""
    response.headers["Content-Security-Policy"] = f"{CONTENT_SECURITY_POLICY}; frame-src 'self'"
    return response


def sandboxed_response(html: str) -> Response:
    """Somebody's HTML, to be shown in a frame: no script runs, nothing is fetched from elsewhere."""
    response = make_response(html)
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'self'; "
        "base-uri 'none'; form-action 'none'; sandbox"
    )
    return response


def add_form_errors(form: object, error: DomainError) -> None:
    """Put a rule's errors at the form's fields; what belongs to no field goes on top (`form.form_errors`)."""
    for item in error.errors:
        field = getattr(form, item.field.replace(".", "_"), None)
        if field is None:
            form.form_errors.append(item.message)  # type: ignore[attr-defined]
        else:
            field.errors = [*field.errors, item.message]
    if not error.errors:
        form.form_errors.append(error.message)  # type: ignore[attr-defined]


def format_staff_datetime(value: datetime | None, zone: str | None = None) -> str:
    """3 May 2026, 12:00 CEST, in a time zone; by default that of the signed-in user."""
    return format_datetime(value, zone or _staff_time_zone())


def format_time_of_day(value: datetime, zone: str | None = None) -> str:
    """23:25, in a zone (the staff member's own if none is given)."""
    return f"{value.astimezone(ZoneInfo(zone or _staff_time_zone())):%H:%M}"


def _staff_time_zone() -> str:
    return getattr(current_user, "time_zone", None) or "UTC"


def with_staff_names(text: str | None) -> str | None:
    """With a colleague's name for the e-mail that a text ends with (`paused by ada@example.com`), where it is known."""
    head, space, email = (text or "").rpartition(" ")
    if "@" not in email:
        return text
    if "staff_names" not in g:
        g.staff_names = account_queries.load_staff_names()
    return f"{head}{space}{g.staff_names.get(email, email)}"


def init_app(app: Flask) -> None:
    """Give the templates the same formatting."""
    app.jinja_env.filters.update(
        number=format_number,
        share=format_share,
        money=format_money,
        discount=format_discount,
        when=format_staff_datetime,
        clock=format_time_of_day,
        day=format_day,
        last_day=format_last_day,
        moment=format_customer_datetime,
        named=with_staff_names,
        masked=mask_email,
        isolated=bidi_isolate,
    )
    app.jinja_env.globals.update(now=lambda: datetime.now(UTC), is_htmx=is_htmx)

    @app.context_processor
    def what_the_shop_is_called() -> dict[str, object]:
        # Looked up once for a page, and only if the page says it.
        found = lru_cache(1)(_shop_or_blank)
        return {"shop_name": LocalProxy(lambda: found().name), "shop_colour": LocalProxy(lambda: found().colour)}


def _shop_or_blank() -> models.ShopValues:
    try:
        return shop_queries.get_shop()
    except SQLAlchemyError:
        # The page that says so when the database is away needs no database.
        return models.ShopValues("")
