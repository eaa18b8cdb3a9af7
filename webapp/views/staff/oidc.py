"""Staff pages for signing in, linking an account and accepting an invitation with the OpenID Connect provider."""

from __future__ import annotations

import dataclasses
import time
from typing import Any
from urllib.parse import urlencode

from flask import current_app, flash, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import links
from webapp.accounts import queries as account_queries
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc import provider as oidc_provider
from webapp.accounts.oidc.provider import OidcClaims, OidcFlow
from webapp.accounts.staff_sessions import RECENT_PASSWORD_TIME
from webapp.core.errors import DomainError, NotFound
from webapp.core.local_time import list_time_zones
from webapp.core.rate_limit import RateLimit, client_address, limit_requests
from webapp.views.access_notes import note_access, set_refusal_kind
from webapp.views.rendering import add_form_errors, add_privacy_headers, form_status, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import login_exempt, require_recent_second_factor, require_role, second_factor_exempt
from webapp.views.staff.forms.accounts import AcceptIdentityForm
from webapp.views.staff.sign_in import complete_sign_in, continue_sign_in, safe_redirect_path

# Each response from a browser causes requests to the provider.
_callback_limit = RateLimit("openid connect response", "20 per minute")


@blueprint.route("/sign-in/oidc", methods=["GET", "POST"])
@login_exempt
@limit_requests("30 per minute")
def start_oidc_sign_in() -> BaseResponse:
    """Send the browser to the provider to sign in, or to confirm an action by signing in there again.

    Another site must not start a session without a click (OWASP ASVS 5.0, 7.6.2): the request has to come from a page
    of this site or from the user (Fetch Metadata), or from the form of the page that is shown otherwise.
    """
    is_confirmation = "confirm" in request.args
    if request.method == "GET" and request.headers.get("Sec-Fetch-Site") not in ("same-origin", "none"):
        return render("accounts/sign_in_with_provider.html", provider_name=_provider_name())
    next_path = safe_redirect_path(request.args.get("next"))
    try:
        purpose = "confirm" if is_confirmation else "sign-in"
        url = _start_flow(f"{purpose} {next_path}", is_confirmation)  # no translation
    except DomainError as error:
        return _fail(error, "staff.accounts.sign_in")
    if request.method == "GET":
        return redirect(url)
    # Browsers do not follow a redirect of a form to another site (CSP, form-action).
    return render("accounts/go_on.html", url=url, title=_("Continue with %(provider)s", provider=_provider_name()))


@blueprint.get("/sign-in/oidc/callback")
@login_exempt
def oidc_callback() -> BaseResponse:
    """Receive the response of the provider, and continue with it in a second request.

    The redirect of the provider is a cross-site request, with which browsers send no cookie that is SameSite=Strict.
    The device cookie comes only with a request that a page of this site makes.
    """
    parameters = {name: request.args[name] for name in ("code", "state", "error", "iss") if name in request.args}
    response = render(
        "accounts/go_on.html",
        url=f"{url_for('staff.accounts.finish_oidc')}?{urlencode(parameters)}",
        title=_("Signing in with %(provider)s", provider=_provider_name()),
    )
    return add_privacy_headers(response)


@blueprint.get("/sign-in/oidc/finish")
@login_exempt
def finish_oidc() -> BaseResponse:
    """Verify the response of the provider; then sign in, ask to link the account, or accept the invitation."""
    flow = OidcFlow.load(session.pop("oidc_flow", None))
    purpose, _space, detail = (flow.purpose if flow else "sign-in /").partition(" ")
    try:
        _callback_limit.count(client_address())
        claims = oidc_provider.finish_flow(_redirect_uri(), flow, request.args.to_dict())
        if purpose == "link":
            return _ask_to_link(claims, detail)
        if purpose == "invitation":
            oidc_actions.get_invitation_for_claims(detail, claims)
            session["oidc_invitation"] = [detail, *_dump_claims(claims)]
            return redirect(url_for("staff.accounts.accept_with_identity", token=detail))
        return _sign_in(claims, detail, is_confirmed=purpose == "confirm")
    except DomainError as error:
        # Not too many requests, and not a provider that does not respond.
        if purpose in ("sign-in", "confirm") and error.status == 422:
            note_access("sign_in.failed", "provider")
        if error.key == "identity_unknown":
            set_refusal_kind(None)
            return render("accounts/identity_unknown.html", status=403, provider_name=_provider_name())
        if purpose == "invitation":
            return _fail(error, "staff.accounts.invitation", token=detail)
        return _fail(error, "staff.accounts.two_step" if purpose == "link" else "staff.accounts.sign_in")


def _sign_in(claims: OidcClaims, next_path: str, is_confirmed: bool) -> BaseResponse:
    """Sign in the user of an identity.

    :param is_confirmed: whether the provider was asked to authenticate the user now. A provider that does not say when
        it has done so is believed.
    """
    user = oidc_actions.find_user_for_claims(claims)
    is_recent = is_confirmed
    if claims.authenticated_at is not None:
        is_recent = time.time() - claims.authenticated_at < RECENT_PASSWORD_TIME.total_seconds()
    if claims.is_multi_factor:
        complete_sign_in(
            user, _provider_name(), has_second_factor=True, is_recent=is_recent, is_second_factor_recent=is_recent
        )
        return redirect(next_path)
    return continue_sign_in(user, _provider_name(), next_path, is_recent=is_recent)


@blueprint.post("/settings/profile/two-step/provider")
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def start_link() -> BaseResponse:
    """Send the browser to the provider to link an account with the signed-in user.

    The response is a page: browsers do not follow a redirect of a form to another site (CSP, form-action).
    """
    try:
        url = _start_flow(f"link {current_user.id}")
    except DomainError as error:
        return _fail(error, "staff.accounts.two_step")
    title = _("Continue with %(provider)s", provider=_provider_name())
    return render("accounts/go_on.html", url=url, title=title, cancel_url=url_for("staff.accounts.two_step"))


def _ask_to_link(claims: OidcClaims, user_id: str) -> BaseResponse:
    """Ask whether to link the account: another site may have sent the browser to the provider."""
    if not current_user.is_authenticated or str(current_user.id) != user_id:
        return redirect(url_for("staff.accounts.sign_in"))
    session["oidc_link"] = [current_user.id, *_dump_claims(claims)]
    return render("accounts/link_identity.html", account=claims.label, provider_name=_provider_name())


@blueprint.post("/settings/profile/two-step/provider/link")
@require_role("viewer")
@second_factor_exempt
@require_recent_second_factor
def link_identity() -> BaseResponse:
    """Link the account with which the user has just signed in at the provider."""
    user_id, *dumped = session.pop("oidc_link", None) or [None]
    claims = _load_claims(dumped)
    if claims is None or user_id != current_user.id:
        flash(_("This took too long. Start again."), "info")
        return redirect(url_for("staff.accounts.two_step"))
    try:
        oidc_actions.link_identity(current_user.id, claims)
    except DomainError as error:
        return _fail(error, "staff.accounts.two_step")
    flash(_("Your account is linked. You can sign in with %(provider)s.", provider=_provider_name()), "success")
    return redirect(url_for("staff.accounts.two_step"))


@blueprint.post("/settings/profile/two-step/provider/unlink")
@require_role("viewer")
@require_recent_second_factor
def unlink_identity() -> BaseResponse:
    """Unlink the account at the provider."""
    oidc_actions.unlink_identity(current_user.id, oidc_provider.get_oidc_settings().issuer)
    flash(_("The account was unlinked."), "success")
    return redirect(url_for("staff.accounts.two_step"))


@blueprint.get("/invitations/<token>/provider")
@login_exempt
def start_oidc_invitation(token: str) -> BaseResponse:
    """Send the browser to the provider to accept an invitation."""
    invitation = account_queries.find_unused_invitation(links.hash_token(token))
    if invitation is None or invitation.staff_user_id is not None:
        return add_privacy_headers(render("accounts/link_expired.html", status=404))
    try:
        url = _start_flow(f"invitation {token}")
    except DomainError as error:
        return _fail(error, "staff.accounts.invitation", token=token)
    return add_privacy_headers(redirect(url))


@blueprint.route("/invitations/<token>/accept", methods=["GET", "POST"])
@login_exempt
@limit_requests("30 per minute")
def accept_with_identity(token: str) -> BaseResponse:
    """Create the account of an invitation for a user who has signed in at the provider."""
    stored_token, *dumped = session.get("oidc_invitation") or [None]
    claims = _load_claims(dumped)
    if claims is None or stored_token != token:
        return redirect(url_for("staff.accounts.invitation", token=token))
    try:
        invitation = oidc_actions.get_invitation_for_claims(token, claims)
    except NotFound:
        return add_privacy_headers(render("accounts/link_expired.html", status=404))
    except DomainError as error:
        return _fail(error, "staff.accounts.invitation", token=token)
    role, invited_email = invitation.role, invitation.email
    form = AcceptIdentityForm(name=claims.name, email=invited_email or claims.email)
    form.time_zone.choices = list(list_time_zones())
    if form.validate_on_submit():
        try:
            user = oidc_actions.accept_invitation_with_identity(
                token, claims, form.name.data, form.email.data, form.time_zone.data
            )
        except DomainError as error:
            add_form_errors(form, error)
        else:
            complete_sign_in(
                user, _provider_name(), has_second_factor=claims.is_multi_factor, is_new_device_expected=True
            )
            flash(_("Welcome, %(name)s.", name=user.name), "success")
            return redirect(url_for("staff.home.index"))
    response = render(
        "accounts/accept_with_identity.html",
        status=form_status(form),
        form=form,
        role=role,
        invited_email=invited_email,
        account=claims.label,
        provider_name=_provider_name(),
    )
    return add_privacy_headers(response)


def _start_flow(purpose: str, must_authenticate: bool = False) -> str:
    url, flow = oidc_provider.start_flow(_redirect_uri(), purpose, must_authenticate)
    session["oidc_flow"] = flow.dump()
    return url


def _redirect_uri() -> str:
    return f"{current_app.config['SETTINGS'].public_url}/sign-in/oidc/callback"


def _provider_name() -> str:
    return oidc_provider.get_oidc_settings().name


def _fail(error: DomainError, endpoint: str, **values: Any) -> BaseResponse:
    flash(error.message, "error")
    return redirect(url_for(endpoint, **values))


def _dump_claims(claims: OidcClaims) -> list[object]:
    return [int(time.time()), dataclasses.asdict(claims)]


def _load_claims(dumped: list[object]) -> OidcClaims | None:
    """Return the claims that `_dump_claims` has returned; None if they are older than the flow may be."""
    match dumped:
        case [int(dumped_at), dict(values)] if 0 <= time.time() - dumped_at <= oidc_provider.FLOW_SECONDS:
            return OidcClaims(**values)
    return None
