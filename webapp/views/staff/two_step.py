"""Staff pages for two-step verification of the own account: authenticator app, passkeys and recovery codes."""

from __future__ import annotations

from urllib.parse import quote

import segno
from flask import Response, current_app, flash, g, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user
from markupsafe import Markup
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import session_actions, session_queries
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import passkey_actions, passkeys, recovery_code_actions, totp, totp_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.passkeys import Challenge
from webapp.accounts.oidc import queries as oidc_queries
from webapp.core.errors import DomainError
from webapp.core.rate_limit import RateLimit
from webapp.views.rendering import add_form_errors, add_privacy_headers, form_status, load_shop, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import require_recent_second_factor, require_role, second_factor_exempt
from webapp.views.staff.forms.accounts import OneTimeForm
from webapp.views.staff.forms.factors import AppCodeForm, PasskeyForm, PasskeyNameForm
from webapp.views.staff.recent_password import is_recent_factor_missing
from webapp.views.staff.sign_in import get_provider_name

# Creating recovery codes takes half a second of a processor.
_setup_limit = RateLimit("set up a second factor", "20 per 5 minutes")


@blueprint.get("/settings/profile/two-step")
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def two_step() -> BaseResponse:
    """Show the second factors of the signed-in user."""
    return _render_two_step(PasskeyNameForm(formdata=None))


def _render_two_step(form: PasskeyNameForm, status: int = 200) -> Response:
    settings = current_app.config["SETTINGS"]
    party = passkeys.find_relying_party()
    return render(
        "accounts/two_step.html",
        status=status,
        overview=factor_queries.load_factor_overview(current_user.id),
        is_required=factor_actions.is_second_factor_required(current_user.role),
        is_missing=factor_actions.is_second_factor_required(current_user.role) and not g.has_second_factor,
        form=form,
        codes_form=OneTimeForm(formdata=None),
        party=party,
        is_other_origin=party is not None and party.origin != request.host_url.rstrip("/"),
        public_url=settings.public_url,
        local_url=_suggest_local_url(settings.public_url),
        provider_name=get_provider_name(),
        has_other_sessions=len(session_queries.list_staff_sessions(current_user.id)) > 1,
        identity=oidc_queries.find_identity_of_user(current_user.id, settings.oidc.issuer) if settings.oidc else None,
    )


def _suggest_local_url(public_url: str) -> str | None:
    """Return the address with localhost instead of the loopback address; None if it is not on loopback."""
    prefix = "http://127.0.0.1"
    return f"http://localhost{public_url.removeprefix(prefix)}" if public_url.startswith(prefix) else None


@blueprint.post("/settings/profile/two-step/app/start")
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def start_app_setup() -> BaseResponse:
    """Start setting up an authenticator app with a new secret, after the present factors were confirmed."""
    totp_actions.discard_totp_setup(current_user.id)
    return redirect(url_for("staff.accounts.app_setup"))


@blueprint.route("/settings/profile/two-step/app", methods=["GET", "POST"])
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def app_setup() -> BaseResponse:
    """Show the QR code of an authenticator app, or confirm the app with a code."""
    if not g.has_recent_password or is_recent_factor_missing():
        # Only the buttons of the overview ask for the password and the factor.
        return redirect(url_for("staff.accounts.two_step"))
    form = AppCodeForm()
    if form.validate_on_submit():
        _setup_limit.count(str(current_user.id))
        try:
            codes = totp_actions.confirm_totp(current_user.id, form.code.data)
        except DomainError as error:
            if error.key == "setup_done":
                # The form was sent twice, for example by reloading the page with the recovery codes.
                message = _(
                    "The authenticator app is already set up. Recovery codes are shown only once: "
                    "if you have not saved yours, create new ones."
                )
                flash(message, "info")
                return redirect(url_for("staff.accounts.two_step"))
            add_form_errors(form, error)
        else:
            return _finish_setup(codes, _("The authenticator app is set up."))
    secret = totp_actions.start_totp_setup(current_user.id)
    uri = totp.build_provisioning_uri(secret, current_user.email, load_shop().name)
    # segno sets presentation attributes only; the Content-Security-Policy allows no style attributes.
    qr_code = segno.make(uri, error="m").svg_inline(scale=4, border=2, omitsize=True)
    response = render(
        "accounts/app_setup.html",
        status=form_status(form),
        form=form,
        secret=secret,
        uri=uri,
        qr_code=Markup(qr_code),  # noqa: S704 (made here, from an escaped text)
    )
    return add_privacy_headers(response)


@blueprint.post("/settings/profile/two-step/app/remove")
@require_role("viewer")
@require_recent_second_factor
def remove_app() -> BaseResponse:
    """Remove the authenticator app."""
    try:
        factor_actions.remove_totp(current_user.id)
    except DomainError as error:
        flash(error.message, "error")
    else:
        flash(_("The authenticator app was removed."), "success")
    return redirect(url_for("staff.accounts.two_step"))


@blueprint.post("/settings/profile/two-step/recovery-codes")
@require_role("viewer")
@require_recent_second_factor
def create_recovery_codes() -> BaseResponse:
    """Replace the recovery codes; the response shows the new ones once."""
    form = OneTimeForm()
    _setup_limit.count(str(current_user.id))
    if not factor_queries.has_second_factor(current_user.id) or not form.mark_submitted():
        flash(_("These recovery codes were already created and are not shown again. Create new ones."), "info")
        return redirect(url_for("staff.accounts.two_step"))
    return _render_codes(recovery_code_actions.replace_recovery_codes(current_user.id))


@blueprint.post("/settings/profile/two-step/passkeys/new")
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def new_passkey() -> BaseResponse:
    """Show the page on which the browser creates a passkey."""
    form = PasskeyNameForm()
    if not form.validate_on_submit():
        return _render_two_step(form, 422)
    known = factor_queries.list_passkeys(current_user.id)
    options, challenge = passkeys.build_registration_options(current_user.email, current_user.name, known)
    session["passkey_challenge"] = challenge.dump()
    form = PasskeyForm(formdata=None, name=form.name.data)
    return render("accounts/new_passkey.html", form=form, options=options)


@blueprint.post("/settings/profile/two-step/passkeys")
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def add_passkey() -> BaseResponse:
    """Store the passkey that the browser has created."""
    form = PasskeyForm()
    challenge = Challenge.load(session.pop("passkey_challenge", None))
    if not form.validate_on_submit():
        return _render_two_step(PasskeyNameForm(), 422)
    _setup_limit.count(str(current_user.id))
    try:
        codes = passkey_actions.add_passkey(current_user.id, form.name.data, form.credential.data or "", challenge)
    except DomainError as error:
        flash(error.message, "error")
        return redirect(url_for("staff.accounts.two_step"))
    return _finish_setup(codes, _("The passkey “%(name)s” was added.", name=form.name.data))


@blueprint.post("/settings/profile/two-step/passkeys/<int:passkey_id>/remove")
@require_role("viewer")
@require_recent_second_factor
def remove_passkey(passkey_id: int) -> BaseResponse:
    """Remove a passkey."""
    try:
        name = factor_actions.remove_passkey(current_user.id, passkey_id)
    except DomainError as error:
        flash(error.message, "error")
    else:
        flash(_("The passkey “%(name)s” was removed.", name=name), "success")
    return redirect(url_for("staff.accounts.two_step"))


def _finish_setup(codes: list[str], message: str) -> BaseResponse:
    """Record that this session has a second factor, and show new recovery codes if there are any.

    The session gets a new token.
    """
    session["_user_id"] = session_actions.record_second_factor(current_user, g.staff_session_id)
    g.has_second_factor = g.has_recent_second_factor = True
    if codes:
        return _render_codes(codes, message)
    flash(message, "success")
    return redirect(url_for("staff.accounts.two_step"))


def _render_codes(codes: list[str], message: str | None = None) -> Response:
    """Render the page that shows recovery codes once, with a link that downloads them without another request."""
    heading = _("Onecode recovery codes of %(email)s", email=current_user.email)
    text = "\n".join([heading, _("Each code works once."), "", *codes, ""])
    response = render(
        "accounts/recovery_codes.html",
        codes=codes,
        message=message,
        download_url=f"data:text/plain;charset=utf-8,{quote(text)}",
    )
    return add_privacy_headers(response)
