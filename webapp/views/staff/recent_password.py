"""Ask for the password or the second factor again before actions that a stolen session must not be able to do."""

from __future__ import annotations

from dataclasses import replace

from flask import Response, current_app, g, request, session
from flask_login import current_user
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import session_actions, session_queries
from webapp.accounts.factors import passkeys, recovery_code_actions, recovery_codes, totp_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.models import StaffUser
from webapp.accounts.oidc import queries as oidc_queries
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.rate_limit import RateLimit, TooManyRequests
from webapp.core.sessions import load_device_tokens
from webapp.core.setting_parsers import OidcSettings
from webapp.views.access_notes import note_access, set_refusal_kind
from webapp.views.rendering import add_form_errors, render
from webapp.views.staff.forms.accounts import RecentPasswordForm

# Wrong passwords in one session, for all forms that ask a signed-in user for the password.
password_limit = RateLimit("password of a session", "10 per 5 minutes")
# Guesses at the second factor of one account. They need the right password, so strangers cannot use up the limits.
# Those from a browser in which the user has signed in before are counted for it: someone who has stolen the password
# cannot lock out such a browser either.
_code_limits = (
    RateLimit("second factor", "5 per 5 minutes"),
    RateLimit("second factor in a day", "50 per day"),
)
_device_code_limits = (
    RateLimit("second factor with a device", "5 per 5 minutes"),
    RateLimit("second factor with a device in a day", "50 per day"),
)
# The fields that the page asks for, and all its own ones; the others are those of the form that it sends again.
_ASKED_FIELDS = {"recent_password", "recent_code"}
_OWN_FIELDS = {"csrf_token", "username", *_ASKED_FIELDS}


def ask_for_recent_password(needs_second_factor: bool) -> BaseResponse | None:
    """Return the page that asks for the password; None if it was entered in this session in the last 15 minutes.

    The page has all fields of the submitted form and sends them again together with the password, so nothing is lost.
    In that request the password is checked, and the view continues.

    :param needs_second_factor: whether users with a second factor have to confirm it too (OWASP ASVS 5.0, 7.5.1).
    """
    needs_code = needs_second_factor and is_recent_factor_missing()
    if g.has_recent_password and not needs_code:
        return None
    form = RecentPasswordForm()
    if g.has_recent_password:
        del form.recent_password
    if not needs_code:
        del form.recent_code
    if not _ASKED_FIELDS & request.form.keys():
        # The page has the status of a refusal, but is none.
        set_refusal_kind(None)
        return _render_form(form, 403)
    if not form.validate():
        return _render_form(form, 422)
    try:
        _confirm(form)
    except TooManyRequests as error:
        add_form_errors(form, error)
        response = _render_form(form, error.status)
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response
    except DomainError as error:
        add_form_errors(form, error)
        return _render_form(form, 422)
    return None


def is_recent_factor_missing() -> bool:
    """Return whether the user has a second factor that was not verified recently in this session."""
    return not g.has_recent_second_factor and factor_queries.has_second_factor(current_user.id)


def _confirm(form: RecentPasswordForm) -> None:
    """Check the password and the code of a form, as far as it has them. Each gives the session a new token.

    :raises DomainError: when one of them is wrong, or there were too many attempts.
    """
    user, session_id = current_user._get_current_object(), g.staff_session_id
    if "recent_password" in form:
        password_limit.count(str(session_id))
        try:
            session["_user_id"] = session_actions.confirm_password(user.id, session_id, form.recent_password.data)
        except InvalidInput:
            note_access("sign_in.failed", "password", entered_email=user.email)
            raise
        password_limit.reset(str(session_id))
        g.has_recent_password = True
        # Not asked for again if the code is wrong.
        del form.recent_password
    if "recent_code" in form:
        is_recovery_code = recovery_codes.parse_code(form.recent_code.data) is not None
        try:
            use_second_factor(user, form.recent_code.data, is_recovery_code)
        except InvalidInput as error:
            raise InvalidInput(*(replace(item, field="recent_code") for item in error.errors)) from error
        method = get_factor_name(is_recovery_code)
        session["_user_id"] = session_actions.record_second_factor(user, session_id, method)
        g.has_recent_second_factor = g.has_second_factor = True


def use_second_factor(user: StaffUser, code: str, is_recovery_code: bool) -> int | None:
    """Use up a code of the authenticator app or a recovery code; return how many recovery codes are left.

    None after a code of the app. Attempts are limited, and failed ones counted for the audit log.

    :raises InvalidInput: at the field `code`, when it is wrong.
    :raises TooManyRequests: after too many attempts.
    """
    device_id = session_queries.find_device_id(user.email, load_device_tokens())
    limits, key = (_code_limits, str(user.id)) if device_id is None else (_device_code_limits, str(device_id))
    codes_left = None
    try:
        for limit in limits:
            limit.count(key)
        if is_recovery_code:
            codes_left = recovery_code_actions.use_recovery_code(user.id, code)
        else:
            totp_actions.use_totp_code(user.id, code)
    except TooManyRequests:
        note_access("sign_in.locked", entered_email=user.email)
        raise
    except DomainError:
        note_access("sign_in.failed", get_factor_name(is_recovery_code), entered_email=user.email)
        raise
    for limit in limits:
        limit.reset(key)
    return codes_left


def get_factor_name(is_recovery_code: bool) -> str:
    """Return the name of the factor of a code in the audit log."""
    return "recovery code" if is_recovery_code else "authenticator app"  # no translation


def _render_form(form: RecentPasswordForm, status: int) -> Response:
    oidc: OidcSettings | None = current_app.config["SETTINGS"].oidc
    return render(
        "accounts/confirm_password.html",
        status=status,
        form=form,
        submitted=[item for item in request.form.items(multi=True) if item[0] not in _OWN_FIELDS],
        cancel_url=_find_parent_page(),
        has_app=factor_queries.find_totp_authenticator(current_user.id) is not None,
        has_passkeys=passkeys.find_relying_party() is not None and bool(factor_queries.list_passkeys(current_user.id)),
        provider_name=oidc.name if oidc and oidc_queries.find_identity_of_user(current_user.id, oidc.issuer) else None,
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
