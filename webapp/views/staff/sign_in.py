"""Staff pages for signing in and out, invitations and password reset links."""

from __future__ import annotations

from flask import flash, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user, login_user, logout_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import invitation_actions, links, sign_in_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.models import Invitation, StaffUser
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import login
from webapp.core.local_time import list_time_zones
from webapp.core.rate_limit import client_address, form_field_key_func, limiter, reset_attempts
from webapp.views.rendering import add_form_errors, add_privacy_headers, form_status, render
from webapp.views.staff.accounts import blueprint, get_staff_user_or_404
from webapp.views.staff.blueprint import login_exempt
from webapp.views.staff.forms.accounts import AcceptInvitationForm, FirstPasswordForm, NewPasswordForm, SignInForm

_sign_in_rate_limit_key = form_field_key_func("email", normalise_email)


@login.user_loader
def load_user(session_id: str) -> StaffUser | None:
    """Return the user of a session, unless the session was ended or the user disabled."""
    user_id, _dot, version = session_id.partition(".")
    return (
        account_queries.find_session_user(int(user_id), int(version))
        if user_id.isdigit() and version.isdigit()
        else None
    )


@blueprint.route("/sign-in", methods=["GET", "POST"])
@login_exempt
@limiter.limit("30 per minute", key_func=client_address, methods=["POST"])
@limiter.limit("10 per 5 minutes", key_func=_sign_in_rate_limit_key, methods=["POST"])
def sign_in() -> BaseResponse:
    """Show the sign-in form, or sign in."""
    form = SignInForm()
    next_path = safe_redirect_path(request.args.get("next"))
    if request.method == "GET" and current_user.is_authenticated:
        return redirect(next_path)
    if not form.validate_on_submit():
        return render("accounts/sign_in.html", status=form_status(form), form=form)
    try:
        user = sign_in_actions.sign_in_user(form.email.data, form.password.data)
    except DomainError as error:
        add_form_errors(form, error)
        return render("accounts/sign_in.html", status=error.status, form=form)
    reset_attempts(_sign_in_rate_limit_key)
    start_session(user)
    return redirect(next_path)


@blueprint.post("/sign-out")
@login_exempt
def sign_out() -> BaseResponse:
    """End the session."""
    logout_user()
    session.clear()
    flash(_("You are signed out."), "success")
    return redirect(url_for("staff.accounts.sign_in"))


@blueprint.route("/invitations/<token>", methods=["GET", "POST"])
@login_exempt
def invitation(token: str) -> BaseResponse:
    """Accept an invitation or reset a password.

    Opening the link does not use it up.
    """
    unused_invitation = account_queries.find_unused_invitation(links.hash_token(token))
    if unused_invitation is None:
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
    )


def _choose_password(token: str, unused_invitation: Invitation) -> BaseResponse:
    user = get_staff_user_or_404(unused_invitation.staff_user_id or 0)
    # A user who has never signed in has no password yet.
    is_first_password = user.last_sign_in_at is None
    form = FirstPasswordForm() if is_first_password else NewPasswordForm()
    if form.validate_on_submit():
        try:
            user = invitation_actions.reset_password(token, form.password.data)
            welcome = _("Welcome, %(name)s.", name=user.name)
            return _sign_in_and_redirect(user, welcome if is_first_password else _("Your new password was set."))
        except InvalidInput as error:
            add_form_errors(form, error)
    status = form_status(form)
    return render(
        "accounts/new_password.html", status=status, form=form, user=user, is_first_password=is_first_password
    )


def _sign_in_and_redirect(user: StaffUser, message: str) -> BaseResponse:
    start_session(user)
    flash(message, "success")
    return redirect(url_for("staff.home.index"))


def start_session(user: StaffUser) -> None:
    """Start a new session.

    The previous one is cleared, because an attacker may have set it (session fixation).
    """
    session.clear()
    login_user(user)


def safe_redirect_path(path: str | None) -> str:
    """Return the path to redirect to after signing in.

    :param path: the requested path; one on another site is replaced by the home page.
    """
    home = url_for("staff.home.index")
    if not path or not path.startswith("/") or path.startswith("//"):
        return home
    # Browsers treat a backslash as a slash and drop control characters.
    return home if "\\" in path or not path.isprintable() or path.startswith("/sign-") else path
