"""Helpers for HTML views: pages, fragments, formatted values and field errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar
from zoneinfo import ZoneInfo

import jinja2_fragments.flask
from flask import Flask, Response, flash, g, make_response, render_template, request
from flask_babel import lazy_gettext as _l
from flask_login import current_user
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter, IntegerConverter, Map
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import queries as account_queries
from webapp.accounts.notices import can_email_users
from webapp.core.errors import MAX_LISTED_ERRORS, DomainError, NotFound, format_error_count
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
from webapp.shop import models as shop_models
from webapp.shop import queries as shop_queries
from webapp.views.form_base import PostForm

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
AnyResponse = TypeVar("AnyResponse", bound=BaseResponse)
# The largest value of a PostgreSQL bigint.
MAX_ROW_ID = 2**63 - 1
ROLE_LABELS = {"admin": _l("Administrator"), "manager": _l("Manager"), "viewer": _l("Viewer")}
# Labels of the states that `ui.badge` shows without a label of their own.
STATE_LABELS = {
    "draft": _l("Draft"),
    "scheduled": _l("Scheduled"),
    "live": _l("Live"),
    "paused": _l("Paused"),
    "ended": _l("Ended"),
    "used_up": _l("Limit reached"),
    "preparing": _l("Preparing"),
    "sending": _l("Sending"),
    "cancelled": _l("Cancelled"),
    "done": _l("Done"),
    "queued": _l("Queued"),
    "running": _l("Running"),
    "failed": _l("Failed"),
    "bounced": _l("Bounced"),
    "unsubscribed": _l("Unsubscribed"),
    "complained": _l("Complained"),
    "redeemed": _l("Redeemed"),
    "undone": _l("Undone"),
    "active": _l("Active"),
    "disabled": _l("Disabled"),
    "revoked": _l("Revoked"),
    "expired": _l("Expired"),
    "pass": _l("Passed"),
    "fail": _l("Failed"),
    "skip": _l("Not checked"),
}
# Titles of the errors of a form that its input did not cause, by status.
ERRORS_TITLES = {
    408: _l("This did not work."),
    500: _l("This did not work."),
    503: _l("This is temporarily unavailable."),
}


class RowIdConverter(IntegerConverter):
    """An integer in a URL that can be the id of a row.

    A larger number results in 404 instead of a database error.
    """

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=MAX_ROW_ID)


class EmailConverter(BaseConverter):
    """A URL segment with an @, which may be an email address.

    URLs with a source id that has no @ match the rule without this converter.
    """

    regex = "[^/]*@[^/]*"
    part_isolating = True


def parse_row_id(text: str) -> int:
    """Parse the id of a row in a query string or form.

    :raises ValueError: unless it is a positive number that fits a bigint.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not 0 < int(text) <= MAX_ROW_ID:
        raise ValueError(text)
    return int(text)


def add_privacy_headers(response: AnyResponse) -> AnyResponse:
    """Add headers that prevent caching and cross-site referrers.

    They are for pages that may contain a token or personal data, or have a secret in their URL. `no-referrer` would be
    stricter, but then browsers may send forms with `Origin: null`, which the origin check rejects, and the CSRF check
    over HTTPS requires a `Referer`.
    """
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def is_htmx() -> bool:
    """Return whether htmx requests a fragment.

    To restore a page from its history, htmx requests the whole page.
    """
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def render(template: str, block: str | None = None, status: int = 200, **values: object) -> Response:
    """Render a template, or only one block of it for an htmx request.

    :param block: name of the block; None to always render the whole page.
    """
    if block and is_htmx():
        body = jinja2_fragments.flask.render_block(template, block, **values)
    else:
        body = render_template(template, **values)
    response = make_response(body, status)
    response.headers["Vary"] = "HX-Request"
    return response


def allow_frames(response: Response) -> Response:
    """Allow a page to show other pages of this app in a frame."""
    response.headers["Content-Security-Policy"] = f"{CONTENT_SECURITY_POLICY}; frame-src 'self'"
    return response


def sandboxed_response(html: str) -> Response:
    """Return a response with untrusted HTML for a frame.

    The HTML can neither run scripts nor load external resources.
    """
    response = make_response(html)
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'self'; "
        "base-uri 'none'; form-action 'none'; sandbox"
    )
    return response


def form_status(form: PostForm) -> int:
    """Return the status of a page with a form: 422 after an invalid submission."""
    return 422 if form.is_submitted() else 200


@contextmanager
def flash_domain_error() -> Iterator[None]:
    """Flash the message of a `DomainError` that is raised in the block.

    `NotFound` is passed on to the error handler, which renders it as a page.
    """
    try:
        yield
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")


def add_form_errors(form: object, error: DomainError) -> None:
    """Add the messages of an error to the fields of a form.

    Messages that match no field are added to `form.form_errors`. At most `MAX_LISTED_ERRORS` are added; if there
    are more, another message contains their number. If the input did not cause the error, `form.errors_title` is set.
    """
    title = ERRORS_TITLES.get(error.status)
    if error.status == 409 and not error.errors:
        # The state of the data does not allow the action, such as after a concurrent change.
        title = getattr(form, "conflict_title", PostForm.conflict_title)
    form.errors_title = title  # type: ignore[attr-defined]
    for item in error.errors[:MAX_LISTED_ERRORS]:
        field = getattr(form, item.field.replace(".", "_"), None)
        if field is None:
            form.form_errors.append(item.message)  # type: ignore[attr-defined]
        else:
            field.errors = [*field.errors, item.message]
            field.error_keys = [*getattr(field, "error_keys", ()), item.key]
    if not error.errors:
        form.form_errors.append(error.message)  # type: ignore[attr-defined]
    if len(error.errors) > MAX_LISTED_ERRORS:
        form.form_errors.append(format_error_count(len(error.errors)))  # type: ignore[attr-defined]


def format_staff_datetime(value: datetime | None, zone: str | None = None) -> str:
    """Format a time for staff, such as 3 May 2026, 12:00 CEST; a dash for None.

    :param zone: the time zone; by default that of the signed-in user.
    """
    return format_datetime(value, zone or _staff_time_zone())


def format_time_of_day(value: datetime, zone: str | None = None) -> str:
    """Format a time of day, such as 23:25.

    :param zone: the time zone; by default that of the signed-in user.
    """
    return f"{value.astimezone(ZoneInfo(zone or _staff_time_zone())):%H:%M}"


def _staff_time_zone() -> str:
    return getattr(current_user, "time_zone", None) or "UTC"


def replace_email_by_staff_name(text: str | None) -> str | None:
    """Replace the email address at the end of a text by the name of its user.

    `paused by ada@example.com` becomes `paused by Ada Lovelace`. The address of an unknown user is kept.
    """
    prefix, separator, email = (text or "").rpartition(" ")
    if "@" not in email:
        return text
    if "staff_names" not in g:
        g.staff_names = account_queries.load_staff_names()
    return f"{prefix}{separator}{g.staff_names.get(email, email)}"


def role_label(role: str) -> str:
    """Return the label of a role."""
    return str(ROLE_LABELS[role])


def state_label(state: str) -> str:
    """Return the label of a state: from `STATE_LABELS`, or derived from its name."""
    return str(STATE_LABELS.get(state) or state.replace("_", " ").capitalize())


def init_app(app: Flask) -> None:
    """Register the template filters, globals and context processors."""
    app.jinja_env.filters.update(
        number=format_number,
        percentage=format_share,
        money=format_money,
        discount=format_discount,
        when=format_staff_datetime,
        time_of_day=format_time_of_day,
        day=format_day,
        last_day=format_last_day,
        customer_datetime=format_customer_datetime,
        role_label=role_label,
        staff_name=replace_email_by_staff_name,
        mask_email=mask_email,
        bidi_isolate=bidi_isolate,
    )
    app.jinja_env.globals.update(now=lambda: datetime.now(UTC), is_htmx=is_htmx, state_label=state_label)
    app.jinja_env.globals["can_email_users"] = can_email_users

    @app.context_processor
    def shop_context() -> dict[str, object]:
        # Loaded only if the page uses it.
        return {
            "shop_name": LocalProxy(lambda: _load_shop_or_default().name),
            "shop_colour": LocalProxy(lambda: _load_shop_or_default().colour),
        }


def load_shop() -> shop_models.ShopValues:
    """Return the details of the shop; the first call in a request loads them.

    A view that changes them uses `webapp.shop.queries` instead.
    """
    if "shop" not in g:
        g.shop = shop_queries.get_shop()
    shop: shop_models.ShopValues = g.shop
    return shop


def _load_shop_or_default() -> shop_models.ShopValues:
    try:
        return load_shop()
    except SQLAlchemyError:
        # The error page for an unavailable database cannot use the database.
        g.shop = shop_models.ShopValues("")
        return load_shop()
