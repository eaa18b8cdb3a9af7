"""Staff pages that ask for a second factor or a passkey at sign-in."""

from __future__ import annotations

from flask import Response, flash, g, jsonify, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_babel import ngettext
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts.factors import passkey_actions, passkeys
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.models import Passkey
from webapp.accounts.factors.passkeys import Challenge
from webapp.accounts.factors.pending_sign_in import find_pending_user
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError
from webapp.core.rate_limit import TooManyRequests, limit_requests
from webapp.views.access_notes import note_access
from webapp.views.rendering import add_form_errors, form_status, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import login_exempt
from webapp.views.staff.forms.factors import AppCodeForm, PasskeyResponseForm, RecoveryCodeForm
from webapp.views.staff.recent_password import get_factor_name, use_second_factor
from webapp.views.staff.sign_in import complete_sign_in, safe_redirect_path, sign_in_client_key


@blueprint.route("/sign-in/second-factor", methods=["GET", "POST"])
@login_exempt
@limit_requests("30 per minute", key_func=sign_in_client_key)
def second_factor() -> BaseResponse:
    """Ask for a code of the authenticator app, a recovery code or a passkey, and sign in."""
    user = _find_user()
    next_path = safe_redirect_path(request.args.get("next"))
    if user is None:
        return _restart_sign_in(next_path)
    form = RecoveryCodeForm() if "recovery" in request.args else AppCodeForm()
    if not form.validate_on_submit():
        return _render_second_factor(user, form, next_path, form_status(form))
    try:
        return _check_code(user, form, next_path)
    except TooManyRequests as error:
        add_form_errors(form, error)
        response = _render_second_factor(user, form, next_path, error.status)
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response
    except DomainError as error:
        add_form_errors(form, error)
        return _render_second_factor(user, form, next_path, error.status)


def _render_second_factor(
    user: StaffUser, form: AppCodeForm | RecoveryCodeForm, next_path: str, status: int
) -> Response:
    return render(
        "accounts/second_factor.html",
        status=status,
        form=form,
        user=user,
        overview=factor_queries.load_factor_overview(user.id),
        uses_recovery_code=isinstance(form, RecoveryCodeForm),
        has_passkeys=bool(_list_usable_passkeys(user.id)),
        next_path=next_path,
    )


def _check_code(user: StaffUser, form: AppCodeForm | RecoveryCodeForm, next_path: str) -> BaseResponse:
    is_recovery_code = isinstance(form, RecoveryCodeForm)
    codes_left = use_second_factor(user, form.code.data, is_recovery_code)
    response = _complete(user, get_factor_name(is_recovery_code), True, next_path)
    if codes_left is not None:
        _flash_codes_left(codes_left)
    return response


@blueprint.post("/sign-in/passkey/options")
@login_exempt
@limit_requests("30 per minute", key_func=sign_in_client_key)
def passkey_options() -> BaseResponse:
    """Return options for signing in with a passkey: those of the pending sign-in or the session, or of any user."""
    user = _find_user_of_passkey()
    allowed = _list_usable_passkeys(user.id) if user else []
    options, challenge = passkeys.build_authentication_options(allowed)
    session["passkey_challenge"] = challenge.dump()
    return jsonify(options)


@blueprint.post("/sign-in/passkey")
@login_exempt
@limit_requests("30 per minute", key_func=sign_in_client_key)
def sign_in_with_passkey() -> BaseResponse:
    """Sign in with a passkey, alone or as the second factor (`second` in the query).

    No limit of an account applies, so that strangers cannot keep out its user. Signed-in users confirm an action by
    signing in with it again, since a passkey is both factors.
    """
    user = _find_user_of_passkey()
    next_path = safe_redirect_path(request.args.get("next"))
    challenge = Challenge.load(session.pop("passkey_challenge", None))
    form = PasskeyResponseForm()
    try:
        if not form.validate_on_submit():
            raise DomainError("passkey_invalid", _("This passkey could not be verified. Try again."), 422)
        verified = passkey_actions.verify_passkey(form.credential.data or "", challenge, user.id if user else None)
    except DomainError as error:
        note_access("sign_in.failed", "passkey", entered_email=user.email if user else None)
        flash(error.message, "error")
        return redirect(_find_retry_url(user, next_path))
    return _complete(verified, "passkey", user is not None, next_path)


def _find_user_of_passkey() -> StaffUser | None:
    """Return the only user whose passkey is accepted; None on the sign-in page, where that of any user is."""
    if "second" not in request.args:
        return None
    user: StaffUser | None = _find_user() or (current_user if current_user.is_authenticated else None)
    return user


def _find_retry_url(user: StaffUser | None, next_path: str) -> str:
    """Return where a user tries again whose passkey was refused.

    :param user: what `_find_user_of_passkey` has returned.
    """
    if user is None:
        return url_for("staff.accounts.sign_in", next=next_path)
    return url_for("staff.accounts.second_factor", next=next_path) if _find_user() else next_path


def _find_user() -> StaffUser | None:
    """Return the user whose second factor is missing: of a pending sign-in, or of a session that began without it."""
    pending = session.get("pending_sign_in")
    if pending:
        return find_pending_user(pending[:3] if isinstance(pending, list) else None)
    is_missing = (
        current_user.is_authenticated and not g.has_second_factor and factor_queries.has_second_factor(current_user.id)
    )
    user: StaffUser | None = current_user if is_missing else None
    return user


def _complete(user: StaffUser, factor: str, is_second: bool, next_path: str) -> BaseResponse:
    """Sign in a user whose factor was right.

    :param is_second: whether it is the second one, after that of a pending sign-in or an earlier one of the session.
    """
    pending = session.get("pending_sign_in") if is_second else None
    if pending is not None and find_pending_user(pending[:3], is_locked=True) is None:
        # The password was changed while the factor was verified.
        return _restart_sign_in(next_path)
    method = f"{pending[-1]} and {factor}" if pending is not None else factor  # no translation
    # A code alone does not make the password of a session recent.
    is_recent = factor == "passkey" or (g.has_recent_password if pending is None else pending[3] is True)
    complete_sign_in(user, method, has_second_factor=True, is_recent=is_recent)
    return redirect(next_path)


def _restart_sign_in(next_path: str) -> BaseResponse:
    if session.pop("pending_sign_in", None) is not None:
        flash(_("This took too long, or your password has changed. Please sign in again."), "info")
    return redirect(url_for("staff.accounts.sign_in", next=next_path))


def _list_usable_passkeys(user_id: int) -> list[Passkey]:
    """Return the passkeys of a user that were created for the address of this server."""
    party = passkeys.find_relying_party()
    return [passkey for passkey in factor_queries.list_passkeys(user_id) if party and passkey.rp_id == party.id]


def _flash_codes_left(codes_left: int) -> None:
    if codes_left:
        message = ngettext(
            "You have used a recovery code. %(num)s code is left.",
            "You have used a recovery code. %(num)s codes are left.",
            codes_left,
        )
    else:
        message = _("You have used your last recovery code. Create new ones under Settings → Your profile.")
    flash(message, "warning")
