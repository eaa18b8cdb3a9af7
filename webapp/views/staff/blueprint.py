"""The staff door: a signed-in user with a sufficient role, a CSRF token on every write, an audit trail behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Response, abort, current_app, redirect, request, session, url_for
from flask_login import current_user
from flask_wtf.csrf import CSRFError

from webapp.accounts.models import Role

View = TypeVar("View", bound=Callable[..., Any])


def login_exempt(view: View) -> View:
    """Mark a view that one reaches without having signed in."""
    view.open_to_all = True  # type: ignore[attr-defined]
    return view


def require_role(role: Role) -> Callable[[View], View]:
    """Mark the role that a view needs, where it is not the usual one: viewer to look, manager to change."""

    def mark(view: View) -> View:
        view.needs_role = role  # type: ignore[attr-defined]
        return view

    return mark


def allow_form_size(size: int) -> Callable[[View], View]:
    """Mark a view whose form may be larger than others, in bytes: what is too large is then said at its field, with
    everything typed still there."""

    def mark(view: View) -> View:
        view.takes_up_to = size  # type: ignore[attr-defined]
        return view

    return mark


def preserve_form_data(**fields: str) -> Callable[[View], View]:
    """Mark a view to which people write at length: these fields, and what they are called, are shown to be copied
    should the session have ended meanwhile."""

    def mark(view: View) -> View:
        view.keeps_words = fields  # type: ignore[attr-defined]
        return view

    return mark


class SessionExpired(CSRFError):
    """A form was sent by somebody who is not signed in any more."""


def raise_body_limit() -> None:
    """Before a form is read: let it be as large as its view takes, for whoever seems to have signed in."""
    size = getattr(current_app.view_functions.get(request.endpoint or ""), "takes_up_to", None)
    if size is not None and "_user_id" in session:
        request.max_content_length = request.max_form_memory_size = size


def create_staff_blueprint(*rooms: Blueprint) -> Blueprint:
    """A fresh staff door with the given rooms behind it."""
    door = Blueprint("staff", __name__)
    for room in rooms:
        door.register_blueprint(room)
    door.before_request(_authorize_request)
    return door


def _authorize_request() -> Response | None:
    view = current_app.view_functions[request.endpoint or ""]
    if getattr(view, "open_to_all", False):
        return None
    if not current_user.is_authenticated:
        # After a write the page it came from is the place to return to: the write itself can't be repeated by a GET.
        here = request.full_path.rstrip("?") if request.method == "GET" else None
        if request.headers.get("HX-Request"):
            return Response(status=401, headers={"HX-Redirect": url_for("staff.accounts.sign_in")})
        if hasattr(view, "keeps_words"):
            raise SessionExpired("The session has ended.")
        return redirect(url_for("staff.accounts.sign_in", next=here))  # type: ignore[return-value]
    usual: Role = "viewer" if request.method in ("GET", "HEAD", "OPTIONS") else "manager"
    if not current_user.has_at_least_role(getattr(view, "needs_role", usual)):
        abort(403, "Your role does not allow this. Ask an administrator.")
    return None
