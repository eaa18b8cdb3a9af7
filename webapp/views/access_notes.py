"""Count views of personal data and refused requests for the audit log.

Views call `note_access` when they show personal data. Refusals are recognised by the status of the response, so that no
view can forget them. Both are counted after the response has been sent: counting does not delay it, and its duration
reveals nothing about accounts. While the database is unavailable nothing is counted: each attempt to connect would hold
a thread of the web server until its timeout.
"""

from __future__ import annotations

from flask import Flask, Response, current_app, g, request
from flask_login import current_user
from sqlalchemy.exc import SQLAlchemyError

from webapp.accounts import access_counts, api_key_actions
from webapp.accounts.access_counts import Access
from webapp.core import database_connections, database_health, database_timeouts
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.core.rate_limit import client_address

SIGN_IN_ENDPOINT = "staff.accounts.sign_in"


def note_access(kind: str, subject: str = "", entered_email: str | None = None) -> None:
    """Note an access of the current request, to be counted after the response.

    :param kind: a key of `access_counts.ACCESS_LABELS`.
    :param subject: what was refused, such as the factor of a sign-in, or viewed, such as `customer 17`; the latter is
        not counted for API keys, which view many.
    :param entered_email: the email address of a form for signing in; counted only if it is that of a user.
    """
    api_key = g.get("api_key")
    access = Access(
        kind=kind,
        address=client_address(),
        account=f"API key {api_key.name}" if api_key else _signed_in_email(),  # no translation
        entered_email=_normalise_or_none(entered_email),
        public_id=_read_refused_public_id(kind),
        staff_session_id=g.get("staff_session_id") or 0,
        subject="" if api_key and kind in access_counts.VIEW_LABELS else subject,
    )
    g.setdefault("accesses", []).append(access)


def set_refusal_kind(kind: str | None) -> None:
    """Set what the response to the current request refuses, for pages whose status means something else.

    :param kind: a key of `access_counts.REFUSAL_LABELS`; None for no refusal.
    """
    g.refusal_kind = kind


def _read_refused_public_id(kind: str) -> str | None:
    """Return the public id of a key that was refused.

    In all other requests anyone could send the id of a key that is not theirs, and be counted under its name.
    """
    if kind != "api_key.refused":
        return None
    return api_key_actions.parse_public_id(request.headers.get("Authorization", "")) or None


def init_app(app: Flask) -> None:
    """Count the accesses of each request after its response."""

    @app.after_request
    def count_after_response(response: Response) -> Response:
        kind = g.get("refusal_kind", _refusal_kind(response.status_code))
        # A view that has noted the refusal itself knows more about it.
        is_noted = any(access.kind in access_counts.REFUSAL_LABELS for access in g.get("accesses", ()))
        if kind is not None and not is_noted:
            # The form is read only if it has been parsed: a refusal because of the address precedes that.
            form = vars(request._get_current_object()).get("form")  # type: ignore[attr-defined]
            # The rule has no values of the URL, and strangers cannot choose it.
            rule = request.url_rule.rule if request.url_rule and kind in ("role.refused", "scope.refused") else ""
            email = form.get("email") if form and kind == "sign_in.locked" else None
            note_access(kind, rule, entered_email=email)
        accesses: list[Access] = g.get("accesses", [])
        if accesses and _can_be_counted():
            app_of_request = current_app._get_current_object()  # type: ignore[attr-defined]

            def count() -> None:
                with app_of_request.app_context():
                    access_counts.count_accesses(accesses)

            response.call_on_close(count)
        return response


def _can_be_counted() -> bool:
    """Return whether the database is available, as far as the current request knows."""
    if database_timeouts.has_connecting_timed_out(current_app.config["SETTINGS"].libpq_url):
        return False
    # While commits are refused, counting still works: it does not wait for a standby.
    return not database_health.is_database_unavailable() or database_connections.are_commits_refused()


def _refusal_kind(status: int) -> str | None:
    """Return the kind of refusal that the status of the response means, or None."""
    if status == 429:
        return "sign_in.locked" if request.endpoint == SIGN_IN_ENDPOINT else "rate_limit.exceeded"
    if status in (400, 413, 415):
        return "request.refused"
    if status == 401 and request.headers.get("Authorization"):
        return "api_key.refused"
    if status == 403:
        if "api_key" in g:
            return "scope.refused"
        # Public pages have no roles: they refuse forms of other sites.
        return "csrf.refused" if (request.blueprint or "").startswith("public") else "role.refused"
    return None


def _signed_in_email() -> str:
    """Return the email address of the signed-in user; empty without one, and while the database is unavailable."""
    if (request.blueprint or "").startswith("public"):
        return ""
    try:
        return str(current_user.email) if current_user.is_authenticated else ""
    except SQLAlchemyError:
        return ""


def _normalise_or_none(email: str | None) -> str | None:
    try:
        return normalise_email(email) if email else None
    except InvalidInput:
        return None
