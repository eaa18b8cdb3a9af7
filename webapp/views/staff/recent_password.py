"""Ask for the password or the second factor again before actions that a stolen session must not be able to do."""

from __future__ import annotations

from dataclasses import replace

from flask import current_app, g, request, session
from flask_login import current_user
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import session_actions
from webapp.accounts.factors import passkeys, recovery_code_actions, recovery_codes, totp_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.oidc import queries as oidc_queries
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.rate_limit import RateLimit, TooManyRequests
from webapp.core.setting_parsers import OidcSettings
from webapp.views.access_notes import note_access
from webapp.views.rendering import add_form_errors, render
from webapp.views.staff.forms.accounts import RecentPasswordForm

# Wrong passwords in one session, for all forms that ask a signed-in user for the password.
password_limit = RateLimit("password of a session", "10 per 5 minutes")
# Guesses at the second factor of one account. They need the right password, so strangers cannot use up the limits.
_code_limits = (
    RateLimit("second factor", "5 per 5 minutes"),
    RateLimit("second factor in a day", "50 per day"),
)


def ask_for_recent_password(needs_second_factor: bool) -> BaseResponse | None:
    """Return the page that asks for the password; None if it was entered in this session in the last 15 minutes.

    The page has all fields of the submitted form and sends them again together with the password, so nothing is lost.
    In that request the password is checked, and the view continues.

    :param needs_second_factor: whether users with a second factor have to confirm it too (OWASP ASVS 5.0, 7.5.1).
    """
    form = _build_form(needs_second_factor)
    if form is None:
        return None
    status = 403
    g.is_no_refusal = True
    if {"recent_password", "recent_code"} & request.form.keys():
        status = 422
        if form.validate():
            try:
                _confirm(form)
            except TooManyRequests:
                raise
            except DomainError as error:
                method = "second factor" if g.has_recent_password else "password"
                note_access("sign_in.failed", method, entered_email=current_user.email)
                add_form_errors(form, error)
            else:
                g.is_no_refusal = False
                return None
    if g.has_recent_password:
        del form.recent_password
    submitted = [
        item
        for item in request.form.items(multi=True)
        if item[0] not in ("csrf_token", "recent_password", "recent_code")
    ]
    oidc: OidcSettings | None = current_app.config["SETTINGS"].oidc
    return render(
        "accounts/confirm_password.html",
        status=status,
        form=form,
        submitted=submitted,
        cancel_url=_find_parent_page(),
        has_app=factor_queries.find_totp_authenticator(current_user.id) is not None,
        has_passkeys=passkeys.find_relying_party() is not None and bool(factor_queries.list_passkeys(current_user.id)),
        provider_name=oidc.name if oidc and oidc_queries.find_identity_of_user(current_user.id, oidc.issuer) else None,
    )


def _build_form(needs_second_factor: bool) -> RecentPasswordForm | None:
    """Return a form with the fields that are needed; None if none is."""
    needs_code = (
        needs_second_factor and not g.has_recent_second_factor and factor_queries.has_second_factor(current_user.id)
    )
    if g.has_recent_password and not needs_code:
        return None
    form = RecentPasswordForm()
    if g.has_recent_password:
        del form.recent_password
    if not needs_code:
        del form.recent_code
    return form


def _confirm(form: RecentPasswordForm) -> None:
    """Check the password and the code of a form, as far as it has them. Each gives the session a new token.

    :raises DomainError: when one of them is wrong, or there were too many attempts.
    """
    user, session_id = current_user._get_current_object(), g.staff_session_id
    if "recent_password" in form:
        password_limit.count(str(session_id))
        session["_user_id"] = session_actions.confirm_password(user.id, session_id, form.recent_password.data)
        password_limit.reset(str(session_id))
        g.has_recent_password = True
    if "recent_code" in form:
        is_recovery_code = recovery_codes.parse_code(form.recent_code.data) is not None
        try:
            use_second_factor(user.id, form.recent_code.data, is_recovery_code)
        except InvalidInput as error:
            raise InvalidInput(*(replace(item, field="recent_code") for item in error.errors)) from error
        method = "recovery code" if is_recovery_code else "authenticator app"
        session["_user_id"] = session_actions.record_second_factor(user, session_id, method)
        g.has_recent_second_factor = g.has_second_factor = True


def use_second_factor(user_id: int, code: str, is_recovery_code: bool) -> int | None:
    """Use up a code of the authenticator app or a recovery code; return how many recovery codes are left.

    :raises InvalidInput: at the field `code`, when it is wrong.
    :raises TooManyRequests: after too many attempts.
    """
    for limit in _code_limits:
        limit.count(str(user_id))
    codes_left = None
    if is_recovery_code:
        codes_left = recovery_code_actions.use_recovery_code(user_id, code)
    else:
        totp_actions.use_totp_code(user_id, code)
    for limit in _code_limits:
        limit.reset(str(user_id))
    return codes_left


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
