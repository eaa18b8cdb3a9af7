"""Ask for the password again before actions that a stolen session must not be able to do."""

from __future__ import annotations

from flask import Response, current_app, g, request, session
from flask_login import current_user
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import session_actions
from webapp.core.errors import DomainError
from webapp.core.rate_limit import RateLimit, TooManyRequests
from webapp.views.access_notes import note_access, set_refusal_kind
from webapp.views.rendering import add_form_errors, render
from webapp.views.staff.forms.accounts import RecentPasswordForm

# Wrong passwords in one session, for all forms that ask a signed-in user for the password.
password_limit = RateLimit("password of a session", "10 per 5 minutes")
# The fields of the page itself; all others are those of the form that it sends again.
OWN_FIELDS = ("csrf_token", "username", "recent_password")


def ask_for_recent_password() -> BaseResponse | None:
    """Return the page that asks for the password; None if it was entered in this session in the last 15 minutes.

    The page has all fields of the submitted form and sends them again together with the password, so nothing is lost.
    In that request the password is checked, and the view continues.
    """
    if g.has_recent_password:
        return None
    form = RecentPasswordForm()
    if "recent_password" not in request.form:
        # The page has the status of a refusal, but is none.
        set_refusal_kind(None)
        return _render_form(form, 403)
    if not form.validate():
        return _render_form(form, 422)
    try:
        password_limit.count(str(g.staff_session_id))
        session["_user_id"] = session_actions.confirm_password(
            current_user.id, g.staff_session_id, form.recent_password.data
        )
    except TooManyRequests as error:
        add_form_errors(form, error)
        response = _render_form(form, error.status)
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response
    except DomainError as error:
        note_access("sign_in.failed", entered_email=current_user.email)
        add_form_errors(form, error)
        return _render_form(form, 422)
    password_limit.reset(str(g.staff_session_id))
    g.has_recent_password = True
    return None


def _render_form(form: RecentPasswordForm, status: int) -> Response:
    submitted = [item for item in request.form.items(multi=True) if item[0] not in OWN_FIELDS]
    return render(
        "accounts/confirm_password.html", status=status, form=form, submitted=submitted, cancel_url=_find_parent_page()
    )


def _find_parent_page() -> str:
    """Return the path of the page with the form: the nearest one at or above the path of the request."""
    path, urls = request.path, current_app.url_map.bind("")
    while path:
        try:
            urls.match(path, "GET")
            break
        except HTTPException:
            path = path.rpartition("/")[0]
    return f"{request.script_root}{path or '/'}"
