"""Staff pages for signing in and out, invitations and password reset links."""

from __future__ import annotations

import hashlib

from flask import Response, current_app, flash, g, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import invitation_actions, links, session_actions, session_queries, sign_in_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.factors import passkeys, totp_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.pending_sign_in import create_pending_sign_in
from webapp.accounts.models import Invitation, StaffUser
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import login
from webapp.core.local_time import list_time_zones
from webapp.core.rate_limit import RateLimit, TooManyRequests, client_address, email_attempt_key, limit_requests
from webapp.core.request_origin import get_request_origin
from webapp.core.sessions import load_device_tokens, save_device_token
from webapp.core.setting_parsers import OidcSettings
from webapp.core.user_agents import clean_user_agent
from webapp.views.access_notes import note_access
from webapp.views.rendering import add_form_errors, add_privacy_headers, form_status, render
from webapp.views.staff.accounts import blueprint, get_staff_user_or_404
from webapp.views.staff.blueprint import login_exempt
from webapp.views.staff.forms.accounts import AcceptInvitationForm, FirstPasswordForm, NewPasswordForm, SignInForm

# Guesses at one account from unknown browsers; a stranger can use them up.
_account_limit = RateLimit("sign in", "10 per 5 minutes")
# Attempts with an authentication code, while the limits of passwords are used up: from one address, and in total. The
# code is checked first, so that they are no guesses at the password.
_code_limit = RateLimit("sign in with a code", "5 per 5 minutes")
_code_total_limit = RateLimit("sign in with a code from anywhere", "1000 per hour")
# Guesses from a browser in which the user has signed in before. A stranger cannot use them up.
_device_limit = RateLimit("sign in with a device", "10 per 5 minutes")


def sign_in_client_key() -> str:
    """Return the rate limit key of a known browser, whatever the account, or of the client address.

    Strangers behind the same address cannot lock such a browser out.
    """
    tokens = load_device_tokens()
    return f"browser:{hashlib.sha256(' '.join(tokens).encode()).hexdigest()}" if tokens else client_address()


def _is_automatic_refresh(last_address: str) -> bool:
    """Return whether the request may come from a page that refreshes itself, which does not count as use.

    A request from another address counts: the list of sessions has to show a copy of the cookie that is used elsewhere.
    """
    view = current_app.view_functions.get(request.endpoint or "")
    is_refresh = request.method == "GET" and "HX-Request" in request.headers and getattr(view, "is_refreshed", False)
    return is_refresh and _read_client().address == last_address


@login.user_loader
def load_user(token: str) -> StaffUser | None:
    """Return the user of a session, unless it has ended or expired or the user is disabled."""
    loaded = session_queries.find_staff_session(token)
    if loaded is None:
        return None
    if loaded.is_last_use_stale and not _is_automatic_refresh(loaded.client_address):
        session_actions.update_last_use(loaded.id, _read_client())
    g.staff_session_id, g.has_recent_password = loaded.id, loaded.has_recent_password
    g.has_second_factor, g.has_recent_second_factor = loaded.has_second_factor, loaded.has_recent_second_factor
    return loaded.user


@blueprint.route("/sign-in", methods=["GET", "POST"])
@login_exempt
@limit_requests("30 per minute", key_func=sign_in_client_key)
def sign_in() -> BaseResponse:
    """Show the sign-in form, or sign in."""
    form = SignInForm()
    next_path = safe_redirect_path(request.args.get("next"))
    if request.method == "GET" and current_user.is_authenticated:
        return redirect(next_path)
    if not form.validate_on_submit():
        return _render_sign_in(form, form_status(form))
    try:
        user = _check_code_and_password(form) if form.code.data else _check_password(form)
    except TooManyRequests as error:
        return _render_limited_sign_in(form, error)
    except DomainError as error:
        note_access("sign_in.failed", "code" if form.code.data else "password", entered_email=form.email.data)
        add_form_errors(form, error)
        return _render_sign_in(form, error.status)
    if form.code.data:
        complete_sign_in(user, "password and authenticator app", has_second_factor=True)
        return redirect(next_path)
    return continue_sign_in(user, "password", next_path)


def _check_password(form: SignInForm) -> StaffUser:
    limit, key = _choose_sign_in_limit(form.email.data)
    limit.count(key)
    user = sign_in_actions.sign_in_user(form.email.data, form.password.data)
    limit.reset(key)
    return user


def _check_code_and_password(form: SignInForm) -> StaffUser:
    """Return the user with this authentication code and password.

    Only a right code leads to the check of the password, so that strangers can use up no limit of the password, and
    cannot guess it. For accounts without an app, and unknown ones, no code is right.
    """
    key = email_attempt_key(form.email.data)
    _code_limit.count(key, client_address())
    _code_total_limit.count(key)
    if not totp_actions.check_code_before_password(form.email.data, form.code.data):
        message = _("The email address, password or code is wrong. Check them and enter a new code.")
        raise DomainError("sign_in_failed", message, 422)
    return sign_in_actions.sign_in_user(form.email.data, form.password.data)


def _render_sign_in(form: SignInForm, status: int) -> Response:
    return render(
        "accounts/sign_in.html",
        status=status,
        form=form,
        has_passkeys=passkeys.find_relying_party() is not None,
        provider_name=get_provider_name(),
    )


def _render_limited_sign_in(form: SignInForm, error: TooManyRequests) -> Response:
    """Render the sign-in page with the field for an authentication code, the same for all accounts."""
    form.form_errors.append(_("There were too many attempts to sign in to this account. %(wait)s", wait=error.message))
    form.is_code_offered = True
    response = _render_sign_in(form, error.status)
    response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response


def continue_sign_in(
    user: StaffUser, method: str, next_path: str, message: str | None = None, is_recent: bool = True
) -> BaseResponse:
    """Sign in a user whose first factor was right, or ask for the second one if they have one.

    :param method: the first factor, for the audit log.
    :param message: a message to show after signing in with a new password.
    :param is_recent: as for `start_session`.
    """
    if not factor_queries.has_second_factor(user.id):
        complete_sign_in(user, method, is_new_device_expected=message is not None, is_recent=is_recent)
        if message:
            flash(message, "success")
        return redirect(next_path)
    pending = create_pending_sign_in(user)
    sign_in_actions.end_password_check()
    _end_session()
    session["pending_sign_in"] = [*pending.dump(), is_recent, method]
    return redirect(url_for("staff.accounts.second_factor", next=next_path))


def complete_sign_in(
    user: StaffUser,
    method: str,
    has_second_factor: bool = False,
    is_new_device_expected: bool = False,
    is_recent: bool = True,
    is_second_factor_recent: bool = True,
) -> None:
    """Start the session of a user who has been authenticated, and record how.

    The parameters after `method` are those of `start_session`.
    """
    start_session(user, has_second_factor, is_new_device_expected, is_recent, is_second_factor_recent, method)


def get_provider_name() -> str | None:
    """Return the name of the OpenID Connect provider; None without one."""
    oidc: OidcSettings | None = current_app.config["SETTINGS"].oidc
    return oidc.name if oidc else None


def _choose_sign_in_limit(email: str) -> tuple[RateLimit, str]:
    """Return the limit of an attempt to sign in, and its key.

    Attempts from a browser that is known for the account are counted for that browser, all others for the account. So
    strangers cannot lock a user out, and guesses stay limited in both cases (OWASP, "Slow Down Online Guessing Attacks
    with Device Cookies").

    :param email: as parsed by the form.
    """
    device_id = session_queries.find_device_id(email, load_device_tokens())
    if device_id is not None:
        return _device_limit, str(device_id)
    return _account_limit, email_attempt_key(email)


@blueprint.post("/sign-out")
@login_exempt
def sign_out() -> BaseResponse:
    """End the session, also on the server: a copy of its cookie is of no use."""
    _end_session()
    flash(_("You are signed out."), "success")
    # The script tells other tabs to leave their pages (static/app.js).
    response = redirect(url_for("staff.accounts.sign_in", _anchor="signed-out"))
    # Pages are not cached, but browsers may keep them in memory for the back button.
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


def _end_session() -> None:
    """End the session of this browser, if it has one, also on the server."""
    # Loads the session, which the entry in the audit log names.
    if current_user.is_authenticated:
        session_actions.sign_out(session["_user_id"])
    session.clear()


@blueprint.route("/invitations/<token>", methods=["GET", "POST"])
@login_exempt
def invitation(token: str) -> BaseResponse:
    """Accept an invitation or reset a password.

    Opening the link does not use it up.
    """
    unused_invitation = account_queries.find_unused_invitation(links.hash_token(token))
    if unused_invitation is None:
        note_access("link.refused")
        return add_privacy_headers(render("accounts/link_expired.html", status=404))
    try:
        if unused_invitation.staff_user_id:
            response = _choose_password(token, unused_invitation)
        else:
            response = _accept_invitation(token, unused_invitation)
    except NotFound:
        response = render("accounts/link_expired.html", status=404)
    return add_privacy_headers(response)


def _accept_invitation(token: str, unused_invitation: Invitation) -> BaseResponse:
    form = AcceptInvitationForm(email=unused_invitation.email)
    form.time_zone.choices = list(list_time_zones())
    if form.validate_on_submit():
        try:
            user = invitation_actions.accept_invitation(
                token, form.name.data, form.email.data, form.password.data, form.time_zone.data
            )
            return _sign_in_and_redirect(user, _("Welcome, %(name)s.", name=user.name))
        except NotFound:
            # The caller renders the page for an expired link.
            raise
        except DomainError as error:
            add_form_errors(form, error)
    if unused_invitation.email:
        # The field is read-only: another address could not be corrected.
        form.email.data = unused_invitation.email
    return render(
        "accounts/accept_invitation.html",
        status=form_status(form),
        form=form,
        role=unused_invitation.role,
        invited_email=unused_invitation.email,
        provider_name=get_provider_name(),
        provider_url=url_for("staff.accounts.start_oidc_invitation", token=token) if get_provider_name() else None,
    )


def _choose_password(token: str, unused_invitation: Invitation) -> BaseResponse:
    user = get_staff_user_or_404(unused_invitation.staff_user_id or 0)
    # A user who has never signed in has no password yet.
    is_first_password = user.last_sign_in_at is None
    form = FirstPasswordForm() if is_first_password else NewPasswordForm()
    if form.validate_on_submit():
        try:
            user = invitation_actions.reset_password(token, form.password.data)
        except InvalidInput as error:
            add_form_errors(form, error)
        else:
            welcome = _("Welcome, %(name)s.", name=user.name)
            # A new password does not replace the second factor.
            message = welcome if is_first_password else _("Your new password was set.")
            return continue_sign_in(user, "password reset link", url_for("staff.home.index"), message)
    status = form_status(form)
    return render(
        "accounts/new_password.html", status=status, form=form, user=user, is_first_password=is_first_password
    )


def _sign_in_and_redirect(user: StaffUser, message: str) -> BaseResponse:
    start_session(user, is_new_device_expected=True)
    flash(message, "success")
    return redirect(url_for("staff.home.index"))


def start_session(
    user: StaffUser,
    has_second_factor: bool = False,
    is_new_device_expected: bool = False,
    is_recent: bool = True,
    is_second_factor_recent: bool = True,
    method: str | None = None,
) -> None:
    """Start a session of an authenticated user in this browser, which becomes known for the account.

    The previous session is cleared, because an attacker may have set it (session fixation), and ends.

    :param has_second_factor: whether a second factor was verified.
    :param is_new_device_expected: whether to send no notice of a new device.
    :param is_recent: False if the first factor may have been verified long ago, by an OpenID Connect provider.
    :param is_second_factor_recent: the same for the second factor, by the provider or in an earlier session.
    :param method: how the user has signed in, for the audit log; None when it was not by signing in.
    """
    started = session_actions.start_staff_session(
        user.id,
        _read_client(),
        load_device_tokens(),
        replaced_token=session.get("_user_id"),
        method=method,
        has_second_factor=has_second_factor,
        is_new_device_expected=is_new_device_expected,
        is_recent=is_recent,
        is_second_factor_recent=is_second_factor_recent,
    )
    session.clear()
    session["_user_id"] = started.token
    save_device_token(started.device_token)
    g.staff_session_id, g.has_recent_password = started.id, is_recent
    g.has_second_factor, g.has_recent_second_factor = has_second_factor, has_second_factor and is_second_factor_recent
    g._login_user = user


def _read_client() -> session_actions.SessionClient:
    user_agent = clean_user_agent(request.headers.get("User-Agent", ""))
    return session_actions.SessionClient(get_request_origin().address or "", user_agent)


def safe_redirect_path(path: str | None) -> str:
    """Return the path to redirect to after signing in.

    :param path: the requested path; one on another site is replaced by the home page.
    """
    home = url_for("staff.home.index")
    if not path or not path.startswith("/") or path.startswith("//"):
        return home
    # Browsers treat a backslash as a slash and drop control characters.
    return home if "\\" in path or not path.isprintable() or path.startswith("/sign-") else path
