"""Every error, rendered once per door: a problem document for /api, a plain page for people."""

from __future__ import annotations

import logging

from flask import Flask, Response, current_app, g, make_response, render_template, request, session, url_for
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from werkzeug.exceptions import HTTPException

from webapp.core import database_health
from webapp.core.errors import DomainError
from webapp.core.extensions import db, login
from webapp.views.problem_details import problem_response

log = logging.getLogger(__name__)

TITLES = {
    400: "That could not be read",
    403: "Not allowed",
    404: "Nothing here",
    405: "Nothing here",
    401: "Please sign in again",
    409: "That is not possible now",
    413: "Too large",
    422: "Please check what you entered",
    429: "Too many tries",
    500: "Something went wrong on our side",
    503: "Not available for a moment",
}
MESSAGES = {
    404: "There is nothing at this address. Check it, or start from the first page.",
    405: "This page can't be used in that way. Start from the first page.",
    413: "What you sent is larger than we take.",
    429: "Please wait a minute and try again.",
    500: "It has been noted. Please try again; if it happens again, tell us the number below.",
    503: "The database can't be reached just now. Please try again in a moment.",
}
# What a person typed is offered again when the database was away. Never on pages that ask for a password, under
# whatever name a field of theirs goes, and never a token of the session.
NO_RESUBMIT_PATHS = ("/sign-in", "/invitations/", "/settings/")
NO_RESUBMIT_FIELDS = ("csrf_token",)


def init_app(app: Flask) -> None:
    @app.errorhandler(DomainError)
    def rule(error: DomainError) -> Response:
        if _is_api_request():
            return problem_response(error.status, error.key, error.message, error.errors)
        return _render_error_page(error.status, error.message)

    @app.errorhandler(CSRFError)
    def csrf(error: CSRFError) -> Response:
        return _session_ended_response()

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        if error.response is not None or status < 400:
            return make_response(error.get_response())
        said = error.description if status in (400, 403) and error.description else None
        if status == 413 and request.max_content_length:
            said = f"What you sent is larger than the {request.max_content_length // 2**20} MB we take here."
        if _is_api_request():
            key = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 429: "rate_limited"}.get(
                status, "error" if status >= 500 else "invalid_payload"
            )
            answer = problem_response(status, key, said or MESSAGES.get(status, error.name))
        else:
            answer = _render_error_page(status, said or MESSAGES.get(status, error.name))
        for name, value in error.get_headers():
            if name in ("Allow", "Retry-After"):
                answer.headers[name] = value
        return answer

    @app.errorhandler(OperationalError)
    @app.errorhandler(InterfaceError)
    @app.errorhandler(TimeoutError)
    def database(error: OperationalError | InterfaceError | TimeoutError) -> Response:
        if not database_health.detect_outage(error):
            log.error("database: %s", getattr(error, "orig", error))
        db.session.rollback()
        if _is_api_request():
            return problem_response(503, "unavailable", MESSAGES[503])
        return _render_error_page(503, MESSAGES[503])

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        log.exception("unexpected error")
        db.session.rollback()
        if _is_api_request():
            return problem_response(500, "error", MESSAGES[500])
        return _render_error_page(500, MESSAGES[500])


def _is_api_request() -> bool:
    # Addresses under /api that no room knows never reach the blueprint, so the prefix decides.
    # /metrics is read by programs too.
    return request.path.startswith("/api/") or request.path == "/metrics"


def _session_ended_response() -> Response:
    """A form without a token of this session: where to sign in, and what was written, to be copied. It is not offered
    to be sent again: a page of somebody else's may have sent it."""
    if _is_public_request():
        return _render_error_page(400, "This page is too old. Load it again and repeat the step.")
    fields = getattr(current_app.view_functions.get(request.endpoint or ""), "keeps_words", {})
    written = [(label, request.form[name]) for name, label in fields.items() if request.form.get(name, "").strip()]
    goal, title = _form_page_path(), "Please sign in again"
    if "_user_id" in session:
        title = "Please open the page again"
        detail = "Your session has changed since you opened this page. Open it again and repeat the step."
    else:
        detail = "Your session has ended. Sign in again and repeat the step."
        goal = url_for("staff.accounts.sign_in", next=goal)
    if request.headers.get("HX-Request"):
        # A piece has no room for it. The page that asked keeps what was typed.
        return _render_error_page(
            401, "Your session has ended. Copy what you typed, then reload the page to sign in again."
        )
    return _render_error_page(400, detail, title=title, goal=goal, written=written)


def _form_page_path() -> str | None:
    """The page that a form belongs to, if it has the address that the form was sent to."""
    try:
        current_app.url_map.bind("").match(request.path, "GET")
    except HTTPException:
        return None
    return request.path


def _is_public_request() -> bool:
    return (request.blueprint or "").startswith("public") or request.path.startswith(("/redeem", "/r/", "/u/"))


def _render_error_page(status: int, detail: str, **more: object) -> Response:
    """An error page that needs neither database nor session. What was typed is offered to be sent again."""
    repeat = []
    typed = request.method == "POST" and request.mimetype == "application/x-www-form-urlencoded"
    if status == 503 and typed and not request.path.startswith(NO_RESUBMIT_PATHS):
        repeat = [(name, value) for name, value in request.form.items(multi=True) if name not in NO_RESUBMIT_FIELDS]
    if "_login_user" not in g:
        # flask-login would look up who is signed in for any template, and that may be the very thing that failed.
        g._login_user = login.anonymous_user()
    body = render_template(
        "errors/public.html" if _is_public_request() else "errors/staff.html",
        status=status,
        detail=detail,
        request_id=g.get("request_id"),
        repeat=repeat,
        **{"title": TITLES.get(status, "That did not work"), **more},
    )
    answer = make_response(body, status)
    if status == 503:
        answer.headers["Retry-After"] = "5"
    return answer
