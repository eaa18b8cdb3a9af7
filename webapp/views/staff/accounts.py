"""Staff pages for signing in, invitations, the profile, users and the audit log."""

from __future__ import annotations

from flask import Blueprint, Response, flash, redirect, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user, login_user, logout_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import actions as account_actions
from webapp.accounts import links
from webapp.accounts import queries as account_queries
from webapp.accounts.models import Invitation, StaffUser
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import login
from webapp.core.local_time import list_time_zones
from webapp.core.rate_limit import client_address, form_field_key_func, limiter, reset_attempts
from webapp.views.rendering import add_form_errors, add_privacy_headers, form_status, parse_row_id, render, role_label
from webapp.views.staff.audit_labels import action_label, detail_label
from webapp.views.staff.blueprint import login_exempt, require_role
from webapp.views.staff.forms.accounts import (
    AcceptInvitationForm,
    ChangePasswordForm,
    FirstPasswordForm,
    InviteForm,
    NewPasswordForm,
    OneTimeForm,
    ProfileForm,
    RoleForm,
    SignInForm,
)

blueprint = Blueprint("accounts", __name__)

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


# --- sign-in and sign-out ------------------------------------------------------------------------


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
        user = account_actions.sign_in_user(form.email.data, form.password.data)
    except DomainError as error:
        add_form_errors(form, error)
        return render("accounts/sign_in.html", status=error.status, form=form)
    reset_attempts(_sign_in_rate_limit_key)
    _start_session(user)
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
            user = account_actions.accept_invitation(
                token, form.name.data, form.email.data, form.password.data, form.time_zone.data
            )
            return _sign_in_and_redirect(user, _("Welcome, %(name)s.", name=user.name))
        except NotFound:
            # The caller renders the page for an expired link.
            raise
        except DomainError as error:
            add_form_errors(form, error)
    return render(
        "accounts/accept_invitation.html",
        status=form_status(form),
        form=form,
        role=unused_invitation.role,
    )


def _choose_password(token: str, unused_invitation: Invitation) -> BaseResponse:
    user = _get_staff_user_or_404(unused_invitation.staff_user_id or 0)
    # A user who has never signed in has no password yet.
    is_first_password = user.last_sign_in_at is None
    form = FirstPasswordForm() if is_first_password else NewPasswordForm()
    if form.validate_on_submit():
        user = account_actions.reset_password(token, form.password.data)
        welcome = _("Welcome, %(name)s.", name=user.name)
        return _sign_in_and_redirect(user, welcome if is_first_password else _("Your new password was set."))
    status = form_status(form)
    return render(
        "accounts/new_password.html", status=status, form=form, user=user, is_first_password=is_first_password
    )


def _sign_in_and_redirect(user: StaffUser, message: str) -> BaseResponse:
    _start_session(user)
    flash(message, "success")
    return redirect(url_for("staff.home.index"))


def _start_session(user: StaffUser) -> None:
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


# --- settings ------------------------------------------------------------------------------------


@blueprint.get("/settings")
def settings() -> BaseResponse:
    """Redirect to the first settings page of the user's role."""
    is_admin = current_user.has_at_least_role("admin")
    return redirect(url_for("staff.accounts.staff_users" if is_admin else "staff.accounts.profile"))


@blueprint.route("/settings/profile", methods=["GET", "POST"])
@require_role("viewer")
def profile() -> BaseResponse:
    """Show the profile of the signed-in user, or save it."""
    form = ProfileForm(obj=current_user)
    form.time_zone.choices = list(list_time_zones())
    if form.validate_on_submit():
        account_actions.update_profile(current_user.id, form.name.data, form.time_zone.data)
        flash(_("Your profile was saved."), "success")
        return redirect(url_for("staff.accounts.profile"))
    return _render_profile(form, ChangePasswordForm(formdata=None), form_status(form))


@blueprint.post("/settings/profile/password")
@require_role("viewer")
@limiter.limit("10 per 5 minutes", key_func=lambda: f"user:{current_user.get_id()}")
def change_password() -> BaseResponse:
    """Change the password of the signed-in user and end all other sessions."""
    form = ChangePasswordForm()
    if form.validate_on_submit():
        try:
            user = account_actions.change_own_password(current_user.id, form.current.data, form.password.data)
        except DomainError as error:
            add_form_errors(form, error)
        else:
            _start_session(user)
            flash(_("Your password was changed. You were signed out on all other devices."), "success")
            return redirect(url_for("staff.accounts.profile"))
    profile_form = ProfileForm(formdata=None, obj=current_user)
    profile_form.time_zone.choices = list(list_time_zones())
    return _render_profile(profile_form, form, 422)


def _render_profile(form: ProfileForm, password_form: ChangePasswordForm, status: int) -> Response:
    return render("accounts/profile.html", status=status, form=form, password_form=password_form)


# --- users ---------------------------------------------------------------------------------------


@blueprint.route("/settings/people", methods=["GET", "POST"])
@require_role("admin")
def staff_users() -> BaseResponse:
    """List the users and invite new ones.

    The link is only in this response: it is shown once and not stored.
    """
    form = InviteForm()
    if form.validate_on_submit():
        if not form.mark_submitted():
            flash(_("This link was already created and is not shown again. Revoke it if you do not have it."), "info")
            return redirect(url_for("staff.accounts.staff_users"))
        try:
            link = account_actions.create_invitation(form.role.data, form.email.data or None, by=current_user.email)
            return _render_staff_users(InviteForm(formdata=None), link=link)
        except DomainError as error:
            form.mark_rejected()
            add_form_errors(form, error)
    return _render_staff_users(form, status=form_status(form))


def _render_staff_users(form: InviteForm, link: str | None = None, status: int = 200) -> Response:
    return render(
        "accounts/users.html",
        status=status,
        users=account_queries.list_staff_users(),
        invitations=account_queries.list_unused_invitations(),
        form=form,
        link=link,
    )


@blueprint.post("/settings/invitations/<int:invitation_id>/withdraw")
@require_role("admin")
def withdraw_invitation(invitation_id: int) -> BaseResponse:
    """Revoke an invitation or a password reset link."""
    account_actions.withdraw_invitation(invitation_id, by=current_user.email)
    flash(_("The link was revoked."), "success")
    return redirect(url_for("staff.accounts.staff_users"))


@blueprint.route("/settings/people/<int:user_id>", methods=["GET", "POST"])
@require_role("admin")
def staff_user(user_id: int) -> BaseResponse:
    """Show a user, or change their role."""
    user = _get_staff_user_or_404(user_id)
    form = RoleForm(obj=user)
    if form.validate_on_submit():
        try:
            user = account_actions.change_staff_role(user_id, form.role.data, by=current_user.email)
            flash(_("%(name)s now has the role %(role)s.", name=user.name, role=role_label(user.role)), "success")
            if user.has_at_least_role("admin") or user != current_user:
                return redirect(url_for("staff.accounts.staff_user", user_id=user_id))
            return redirect(url_for("staff.accounts.settings"))
        except DomainError as error:
            form.role.errors = [*form.role.errors, error.message]
    return _render_staff_user(user_id, form, status=form_status(form))


def _render_staff_user(user_id: int, form: RoleForm, link: str | None = None, status: int = 200) -> Response:
    link_form = OneTimeForm(formdata=None)
    user = _get_staff_user_or_404(user_id)
    return render("accounts/user.html", status=status, user=user, form=form, link=link, link_form=link_form)


@blueprint.post("/settings/people/<int:user_id>/new-password")
@require_role("admin")
def create_reset_link(user_id: int) -> BaseResponse:
    """Create a password reset link and show it once: it is not stored."""
    form = OneTimeForm()
    if not form.mark_submitted():
        return _redirect_to_staff_user(user_id, _("This link was already created and is not shown again."), "info")
    try:
        link = account_actions.create_password_reset_link(user_id, by=current_user.email)
    except DomainError as error:
        form.mark_rejected()
        return _redirect_to_staff_user(user_id, error.message, "error")
    return _render_staff_user(user_id, RoleForm(formdata=None, obj=_get_staff_user_or_404(user_id)), link)


@blueprint.post("/settings/people/<int:user_id>/end-sessions")
@require_role("admin")
def end_sessions(user_id: int) -> BaseResponse:
    """Sign a user out on all devices."""
    user = account_actions.end_staff_sessions(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, _("%(name)s was signed out on all devices.", name=user.name))


@blueprint.post("/settings/people/<int:user_id>/disable")
@require_role("admin")
def disable_staff_user(user_id: int) -> BaseResponse:
    """Disable a user and end their sessions."""
    try:
        user = account_actions.disable_staff_user(user_id, by=current_user.email)
    except DomainError as error:
        return _redirect_to_staff_user(user_id, error.message, "error")
    return _redirect_to_staff_user(user_id, _("%(name)s can no longer sign in.", name=user.name))


@blueprint.post("/settings/people/<int:user_id>/enable")
@require_role("admin")
def enable_staff_user(user_id: int) -> BaseResponse:
    """Enable a disabled user."""
    user = account_actions.enable_staff_user(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, _("%(name)s can sign in again.", name=user.name))


def _get_staff_user_or_404(user_id: int) -> StaffUser:
    user = account_queries.find_staff_user(user_id)
    if user is None:
        raise NotFound(_("This user does not exist. See the list of users."))
    return user


def _redirect_to_staff_user(user_id: int, message: str, category: str = "success") -> BaseResponse:
    flash(message, category)
    return redirect(url_for("staff.accounts.staff_user", user_id=user_id))


# --- audit log -----------------------------------------------------------------------------------


@blueprint.get("/settings/audit")
@require_role("admin")
def audit() -> BaseResponse:
    """Show a page of the audit log, newest entries first."""
    page = account_queries.load_audit_page(
        before=request.args.get("before", type=parse_row_id), after=request.args.get("after", type=parse_row_id)
    )
    return render("accounts/audit.html", page=page, action_label=action_label, detail_label=detail_label)
