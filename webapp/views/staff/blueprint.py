"""The staff blueprint.

Every view requires a signed-in user with a sufficient role, except those marked `login_exempt`. Every write requires a
CSRF token; uploads check it themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from flask import Blueprint, Response, abort, current_app, flash, g, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user
from flask_wtf.csrf import CSRFError
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.actions import is_second_factor_required
from webapp.accounts.models import Role
from webapp.views.staff.recent_password import ask_for_recent_password

StaffView = TypeVar("StaffView", bound=Callable[..., Any])


def login_exempt(view: StaffView) -> StaffView:
    """Mark a view as accessible without signing in."""
    view.is_login_exempt = True  # type: ignore[attr-defined]
    return view


def require_role(role: Role) -> Callable[[StaffView], StaffView]:
    """Set the lowest role that may use a view.

    By default, that is viewer for reading and manager for writing.
    """

    def decorate(view: StaffView) -> StaffView:
        view.required_role = role  # type: ignore[attr-defined]
        return view

    return decorate


def require_recent_password(view: StaffView) -> StaffView:
    """Mark a view whose writes need a password that was entered recently in this session.

    Otherwise the response asks for it, and sends the form again with it.
    """
    view.requires_recent_password = True  # type: ignore[attr-defined]
    return view


def require_recent_second_factor(view: StaffView) -> StaffView:
    """Mark a view that needs the second factor of users who have one.

    Writes need the password and the factor, both entered recently in this session; otherwise the response asks for
    them, as for `require_recent_password`. For reading, the factor must have been verified once in this session: one
    from before the user had set it up does not show the set-up.
    """
    view.requires_recent_second_factor = True  # type: ignore[attr-defined]
    return require_recent_password(view)


def refreshes_itself(view: StaffView) -> StaffView:
    """Mark a view that an open page requests again and again, which does not count as use of the session."""
    view.is_refreshed = True  # type: ignore[attr-defined]
    return view


def second_factor_exempt(view: StaffView) -> StaffView:
    """Mark a view that users may use before they have set up the second factor that their role requires."""
    view.is_second_factor_exempt = True  # type: ignore[attr-defined]
    return view


def allow_form_size(max_bytes: int) -> Callable[[StaffView], StaffView]:
    """Set the maximum form size of a view, in bytes.

    A larger form is rejected with 413, without the input. Below this limit, a text that is too long is reported as an
    error at its field, and the form keeps the input.
    """

    def decorate(view: StaffView) -> StaffView:
        view.max_form_bytes = max_bytes  # type: ignore[attr-defined]
        return view

    return decorate


def preserve_form_data(**labels: str) -> Callable[[StaffView], StaffView]:
    """Preserve the input of a form that is submitted after the session has ended.

    The error page then shows these fields, so that users can copy their values.

    :param labels: the label of each field to preserve, by field name.
    """

    def decorate(view: StaffView) -> StaffView:
        view.preserved_fields = labels  # type: ignore[attr-defined]
        return view

    return decorate


def abort_insufficient_role() -> NoReturn:
    """Abort with 403: the role of the user is not sufficient."""
    abort(403, _("Your role does not allow this. Ask an administrator."))


class SessionExpired(CSRFError):
    """A form was sent after the session had ended."""


def apply_form_size_limit() -> None:
    """Apply the form size limit of the view before the form is parsed.

    It applies only to requests with the session of a user.
    """
    max_bytes = getattr(current_app.view_functions.get(request.endpoint or ""), "max_form_bytes", None)
    if max_bytes is not None and "_user_id" in session:
        request.max_content_length = request.max_form_memory_size = max_bytes


def create_staff_blueprint(*blueprints: Blueprint) -> Blueprint:
    """Create the staff blueprint with other blueprints nested in it."""
    staff = Blueprint("staff", __name__)
    for blueprint in blueprints:
        staff.register_blueprint(blueprint)
    staff.before_request(_authorize_request)
    return staff


def _ask_for_second_factor(view: Callable[..., Any], is_read: bool) -> BaseResponse | None:
    """Redirect to the page that asks for the second factor, or to the one that sets it up; None if none is needed."""
    if g.has_second_factor:
        return None
    is_required = is_second_factor_required(current_user.role)
    if not is_required and not (is_read and getattr(view, "requires_recent_second_factor", False)):
        return None
    if factor_queries.has_second_factor(current_user.id):
        next_path = request.path if request.method == "GET" else None
        url = url_for("staff.accounts.second_factor", next=next_path)
    elif is_required and not getattr(view, "is_second_factor_exempt", False):
        url = url_for("staff.accounts.two_step")
    else:
        return None
    if request.headers.get("HX-Request"):
        return Response(status=401, headers={"HX-Redirect": url})
    return redirect(url)


def _authorize_request() -> BaseResponse | None:
    view = current_app.view_functions[request.endpoint or ""]
    if getattr(view, "is_login_exempt", False):
        return None
    if not current_user.is_authenticated:
        # Only a GET can be repeated after signing in.
        next_path = request.full_path.rstrip("?") if request.method == "GET" else None
        if request.headers.get("HX-Request"):
            # The cookie stays as it is: another request of this browser may just have replaced the token.
            return Response(status=401, headers={"HX-Redirect": url_for("staff.accounts.sign_in")})
        if session.pop("_user_id", None) is not None:
            # The session was ended elsewhere or has expired.
            flash(_("Your session has ended. Please sign in again."), "info")
        if request.method == "POST" and hasattr(view, "preserved_fields"):
            raise SessionExpired("The session has ended.")  # no translation
        return redirect(url_for("staff.accounts.sign_in", next=next_path))
    is_read = request.method in ("GET", "HEAD", "OPTIONS")
    default_role: Role = "viewer" if is_read else "manager"
    if not current_user.has_at_least_role(getattr(view, "required_role", default_role)):
        abort_insufficient_role()
    response = _ask_for_second_factor(view, is_read)
    if response is not None:
        return response
    if getattr(view, "requires_recent_password", False) and not is_read:
        return ask_for_recent_password(getattr(view, "requires_recent_second_factor", False))
    return None
