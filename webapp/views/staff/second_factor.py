"""Staff pages that ask for a second factor or a passkey at sign-in."""

from __future__ import annotations

from flask import flash, g, jsonify, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_babel import ngettext
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts.factors import passkey_actions, passkeys
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.actions import is_second_factor_required
from webapp.accounts.factors.models import Passkey
from webapp.accounts.factors.passkeys import Challenge
from webapp.accounts.factors.pending_sign_in import find_pending_user
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError
from webapp.core.rate_limit import limit_requests
from webapp.views.access_notes import note_access
from webapp.views.rendering import add_form_errors, form_status, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import login_exempt
from webapp.views.staff.forms.factors import AppCodeForm, PasskeyResponseForm, RecoveryCodeForm
from webapp.views.staff.recent_password import use_second_factor
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
    overview = factor_queries.load_factor_overview(user.id)
    uses_recovery_code = "recovery" in request.args
    form = RecoveryCodeForm() if uses_recovery_code else AppCodeForm()
    status = form_status(form)
    if form.validate_on_submit():
        try:
            return _check_code(user, form.code.data, uses_recovery_code, next_path)
        except DomainError as error:
            factor = "recovery code" if uses_recovery_code else "authenticator app"
            note_access("sign_in.failed", factor, entered_email=user.email)
            add_form_errors(form, error)
            status = error.status
    return render(
        "accounts/second_factor.html",
        status=status,
        form=form,
        user=user,
        overview=overview,
        uses_recovery_code=uses_recovery_code,
        has_passkeys=bool(_list_usable_passkeys(user.id)),
        next_path=next_path,
    )


def _check_code(user: StaffUser, code: str, is_recovery_code: bool, next_path: str) -> BaseResponse:
    codes_left = use_second_factor(user.id, code, is_recovery_code)
    _complete(user, "recovery code" if is_recovery_code else "authenticator app", is_second=True)
    if codes_left is not None:
        _flash_codes_left(codes_left)
    return redirect(next_path)


@blueprint.post("/sign-in/passkey/options")
@login_exempt
@limit_requests("30 per minute", key_func=sign_in_client_key)
def passkey_options() -> BaseResponse:
    """Return options for signing in with a passkey: those of the pending sign-in or the session, or of any user."""
    user = _find_passkey_user()
    allowed = _list_usable_passkeys(user.id) if user else []
    options, challenge = passkeys.build_authentication_options(allowed)
    session["passkey_challenge"] = challenge.dump()
    return jsonify(options)


@blueprint.post("/sign-in/passkey")
@login_exempt
@limit_requests("30 per minute", key_func=sign_in_client_key)
def sign_in_with_passkey() -> BaseResponse:
    """Sign in with a passkey, alone or as the second factor.

    No limit of an account applies, so that strangers cannot keep out its user. Signed-in users confirm an action by
    signing in with it again, since a passkey is both factors.
    """
    user = _find_passkey_user()
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
        return redirect(_find_retry_url(next_path))
    _complete(verified, "passkey", is_second=user is not None)
    return redirect(next_path)


def _find_user() -> StaffUser | None:
    """Return the user whose second factor is missing: of a pending sign-in, or of a session that began without it."""
    pending = session.get("pending_sign_in")
    if pending:
        return find_pending_user(pending[:3] if isinstance(pending, list) else None)
    is_missing = current_user.is_authenticated and is_second_factor_required(current_user.role)
    user: StaffUser | None = current_user if is_missing and not g.has_second_factor else None
    return user


def _find_passkey_user() -> StaffUser | None:
    """Return the user whose passkey is asked for; None if it may be that of any user."""
    user: StaffUser | None = _find_user() or (current_user if current_user.is_authenticated else None)
    return user


def _find_retry_url(next_path: str) -> str:
    """Return where a user tries again whose passkey was refused."""
    if _find_user():
        return url_for("staff.accounts.second_factor", next=next_path)
    return next_path if current_user.is_authenticated else url_for("staff.accounts.sign_in", next=next_path)


def _complete(user: StaffUser, factor: str, is_second: bool) -> None:
    pending = session.get("pending_sign_in")
    method = f"{pending[-1]} and {factor}" if pending and is_second else factor  # no translation
    # A code alone does not make the password of a session recent.
    is_recent = factor == "passkey" or (pending[3] is True if pending else g.has_recent_password)
    complete_sign_in(user, method, has_second_factor=True, is_recent=is_recent)


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
