"""Error handlers: problem details for the API, HTML pages for users."""

from __future__ import annotations

import logging

from flask import Flask, Response, current_app, g, make_response, render_template, request, session, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, InternalError, NotSupportedError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import ClientDisconnected, HTTPException

from webapp.core import database_health, request_commits
from webapp.core.errors import DomainError
from webapp.core.extensions import db, login
from webapp.core.request_limits import get_form_or_empty
from webapp.views.access_notes import note_access, set_refusal_kind
from webapp.views.problem_details import problem_response

log = logging.getLogger(__name__)

TITLES = {
    400: _l("Request not accepted"),
    401: _l("Please sign in again"),
    403: _l("Not allowed"),
    404: _l("Page not found"),
    405: _l("Page not found"),
    409: _l("This isn't possible right now"),
    411: _l("Request not accepted"),
    413: _l("Too large"),
    415: _l("Request not accepted"),
    422: _l("Please check what you entered"),
    429: _l("Too many attempts"),
    500: _l("Something went wrong on our side"),
    503: _l("Temporarily unavailable"),
}
MESSAGES = {
    404: _l("There is no page at this address. Check the address, or start from the home page."),
    405: _l("This page can't be opened directly. Start from the home page."),
    413: _l("This is too large. Choose a smaller file or shorten the text."),
    429: _l("Please wait a minute and try again."),
    500: _l(
        "The error was logged. Please try again. If it happens again, send the error reference below to the server "
        "administrator."
    ),
    503: _l("The database is currently unavailable. Please try again in a moment."),
}
# These replace the titles and messages above on pages for customers, and the messages in API responses.
PUBLIC_TITLES = {400: _l("This did not work")}
PUBLIC_MESSAGES = {
    404: _l("There is no page at this address. Check the address, or open the link in our email again."),
    405: _l("This page can't be opened directly. Open the link in our email again."),
    500: _l("Please try again. If it happens again, tell us the error reference below."),
    503: _l("This page is temporarily unavailable. Please try again in a moment."),
}
API_MESSAGES = {
    404: _l("No endpoint has this path. Check the path."),
    405: _l("This endpoint does not accept this method; see the header `Allow`."),
    413: _l("The request is too large. Send less data."),
    500: _l("The error was logged. Retry later; if it happens again, report the `request_id`."),
}
# After an outage the submitted form can be sent again. This excludes pages that ask for a password and the token of the
# session.
NO_RESUBMIT_PATHS = ("/sign-in", "/invitations/", "/settings/")
NO_RESUBMIT_FIELDS = ("csrf_token", "recent_password", "recent_code")


def init_app(app: Flask) -> None:
    """Register the error handlers."""
    app.register_error_handler(DomainError, _handle_domain_error)
    app.register_error_handler(CSRFError, _handle_csrf_error)
    app.register_error_handler(HTTPException, _handle_http_error)
    app.register_error_handler(OperationalError, _handle_database_error)
    app.register_error_handler(InterfaceError, _handle_database_error)
    # A standby rejects writes with the first, and reads of unlogged tables with the second.
    app.register_error_handler(InternalError, _handle_rejected_statement)
    app.register_error_handler(NotSupportedError, _handle_rejected_statement)
    app.register_error_handler(PoolTimeoutError, _handle_database_error)
    app.register_error_handler(DataError, _handle_data_error)
    app.register_error_handler(Exception, _handle_unexpected_error)


def _handle_domain_error(error: DomainError) -> Response:
    if _is_api_request():
        return problem_response(error.status, error.key, error.message, error.errors)
    customer_message = error.customer_message if _is_public_request() else None
    return _render_error_page(error.status, customer_message or error.message)


def _handle_csrf_error(error: CSRFError) -> Response:
    # Its subclass means that the session has ended.
    if type(error) is CSRFError:
        note_access("csrf.refused")
    else:
        set_refusal_kind(None)
    return _session_ended_response()


def _handle_http_error(error: HTTPException) -> Response:
    status = error.code or 500
    if error.response is not None or status < 400:
        return make_response(error.get_response())
    message = _get_message(status) or error.name
    if status in (400, 403) and error.description:
        message = error.description
    if isinstance(error, ClientDisconnected):
        message = _("The request ended before all of it had arrived. Send it again.")
    if status == 413 and request.max_content_length:
        limit = request.max_content_length // 2**20
        if _is_api_request():
            message = _("The request is larger than the limit of %(limit)s MB. Send less data.", limit=limit)
        else:
            message = _(
                "This is larger than the limit of %(limit)s MB. Choose a smaller file or shorten the text.", limit=limit
            )
    if _is_api_request():
        key = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 429: "rate_limited"}.get(
            status, "error" if status >= 500 else "invalid_payload"
        )
        response = problem_response(status, key, message)
    else:
        response = _render_error_page(status, message)
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _handle_rejected_statement(error: InternalError | NotSupportedError) -> Response:
    return _handle_database_error(error) if database_health.is_read_only(error) else _handle_unexpected_error(error)


def _handle_database_error(error: DBAPIError | PoolTimeoutError) -> Response:
    if not database_health.report_if_outage(error):
        log.error("database error in %s %s: %s", request.method, request.url_rule, getattr(error, "orig", error))
    db.session.rollback()
    is_change = request_commits.has_view_started() and request.method != "GET"
    is_unconfirmed = is_change and database_health.is_commit_unconfirmed(error)
    if is_change and request_commits.has_view_committed():
        message = _(
            "Part or all of this was saved, but the result can't be shown right now. Check it before you retry."
        )
    elif is_unconfirmed:
        message = _unconfirmed_message()
    elif database_health.is_disk_full(error):
        message = _disk_full_message()
    elif database_health.is_read_only(error) and not _is_customer_page():
        message = _("The database accepts no changes at the moment. Please try again in a moment.")
    else:
        message = _get_message(503)
    if _is_api_request():
        return problem_response(503, "unavailable", message)
    return _render_error_page(503, message, can_resubmit=not is_unconfirmed or _is_customer_page())


def _unconfirmed_message() -> str:
    """Return the message for the client of a request whose commit the database did not confirm."""
    if _is_customer_page():
        # Customers cannot check it. What they change, such as a subscription, can be repeated.
        return _("We could not confirm whether this was saved. Please try again in a moment.")
    return _("We could not confirm whether this was saved. Check it before you retry.")


def _disk_full_message() -> str:
    """Return the message for the client of a request that the database rejected because its disk is full."""
    if _is_customer_page():
        return _("Nothing can be saved for some time. Please try again later.")
    return _(
        "The disk of the database is full, so this can't be saved. Try again after the server administrator has freed "
        "space."
    )


def _handle_data_error(error: DataError) -> Response:
    # psycopg refuses to send a NUL, which no text in PostgreSQL can contain. Where no validation has found it, it is in
    # an address that no page links to.
    if "NUL" not in str(error.orig):
        return _handle_unexpected_error(error)
    db.session.rollback()
    message = _("The request contains a character that is not allowed (NUL). Check the address.")
    if _is_api_request():
        return problem_response(400, "invalid_payload", message)
    return _render_error_page(400, message)


def _handle_unexpected_error(error: Exception) -> Response:
    log.exception("unhandled exception in %s %s", request.method, request.url_rule)
    db.session.rollback()
    if _is_api_request():
        return problem_response(500, "error", _get_message(500))
    return _render_error_page(500, _get_message(500))


def _get_message(status: int) -> str:
    """Return the message for the client of the request; empty if the status has none."""
    if _is_api_request():
        return str(API_MESSAGES.get(status) or MESSAGES.get(status, ""))
    if _is_public_request():
        return str(PUBLIC_MESSAGES.get(status) or MESSAGES.get(status, ""))
    return str(MESSAGES.get(status, ""))


def _is_api_request() -> bool:
    # Unknown URLs below /api never reach the blueprint, so the prefix decides. /metrics is not an HTML page either.
    return request.path.startswith("/api/") or request.path == "/metrics"


def _session_ended_response() -> Response:
    """Return the response to a form without a valid token of this session.

    The page links to the sign-in page and shows the entered texts, so that users can copy them. It does not offer to
    send the form again, because another site may have sent it.
    """
    if _is_public_request():
        return _render_error_page(400, _("This page has expired. Go back, reload the page and try again."))
    fields = getattr(current_app.view_functions.get(request.endpoint or ""), "preserved_fields", {})
    form = get_form_or_empty()
    texts = [(label, form[name]) for name, label in fields.items() if form.get(name, "").strip()]
    next_url, title = _form_page_path(), _("Please sign in again")
    if "_user_id" in session:
        title = _("Please open the page again")
        detail = _(
            "Nothing was saved: your session has changed since you opened this page. Open it again and repeat the step."
        )
    else:
        detail = _("Nothing was saved: your session has ended. Sign in again and repeat the step.")
        next_url = url_for("staff.accounts.sign_in", next=next_url)
    if request.headers.get("HX-Request"):
        # A fragment shows only the message; the page that sent the request still has the input.
        return _render_error_page(
            401, _("Your session has ended. Copy what you typed, then reload the page to sign in again.")
        )
    return _render_error_page(400, detail, title=title, next_url=next_url, preserved_texts=texts)


def _form_page_path() -> str | None:
    """Return the path of the page with the form, if it was sent to the same path."""
    try:
        current_app.url_map.bind("").match(request.path, "GET")
    except HTTPException:
        return None
    return request.path


def _is_public_request() -> bool:
    return (request.blueprint or "").startswith("public") or request.path.startswith(("/redeem", "/r/", "/u/"))


def _is_customer_page() -> bool:
    return _is_public_request() and not _is_api_request()


def _render_error_page(status: int, detail: str, *, can_resubmit: bool = True, **values: object) -> Response:
    """Render an error page that needs neither database nor session.

    :param can_resubmit: whether the form can be sent again after an outage, unless some of it was saved.
    """
    resubmit_fields = []
    is_form = request.method == "POST" and request.mimetype == "application/x-www-form-urlencoded"
    is_saved = request_commits.has_view_committed()
    if status == 503 and can_resubmit and is_form and not is_saved and not request.path.startswith(NO_RESUBMIT_PATHS):
        fields = get_form_or_empty().items(multi=True)
        resubmit_fields = [(name, value) for name, value in fields if name not in NO_RESUBMIT_FIELDS]
    if "_login_user" not in g:
        # flask-login would load the user for any template, and loading the user may be the operation that failed.
        g._login_user = login.anonymous_user()
    is_public = _is_public_request()
    title = (PUBLIC_TITLES.get(status) if is_public else None) or TITLES.get(status, _("Something went wrong"))
    body = render_template(
        "errors/public.html" if is_public else "errors/staff.html",
        status=status,
        detail=detail,
        request_id=g.get("request_id"),
        resubmit_fields=resubmit_fields,
        **{"title": title, **values},
    )
    response = make_response(body, status)
    if status == 503:
        response.headers["Retry-After"] = "5"
    return response
