"""Signing in and out, invitations, and the settings: people, keys, the trail, one's own profile."""

from __future__ import annotations

from flask import Blueprint, Response, flash, redirect, request, session, url_for
from flask_login import current_user, login_user, logout_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import actions as account_actions
from webapp.accounts import queries as account_queries
from webapp.accounts import signing_key_actions
from webapp.accounts.models import Invitation, StaffUser
from webapp.core import signing_keys
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import login
from webapp.core.local_time import list_time_zones
from webapp.core.rate_limit import client_address, form_field_key, limiter, reset_attempts
from webapp.views.rendering import add_form_errors, render
from webapp.views.staff.blueprint import login_exempt, require_role
from webapp.views.staff.forms.accounts import (
    AcceptInvitationForm,
    ApiKeyForm,
    ChangePasswordForm,
    FirstPasswordForm,
    InviteForm,
    NewPasswordForm,
    ProfileForm,
    RoleForm,
    SignInForm,
)

blueprint = Blueprint("accounts", __name__)

sign_in_email_key = form_field_key("email", normalise_email)


@login.user_loader
def load_user(session_id: str) -> StaffUser | None:
    """The user of a session, unless it has been ended or its user disabled."""
    user_id, _, version = session_id.partition(".")
    return (
        account_queries.find_session_user(int(user_id), int(version))
        if user_id.isdigit() and version.isdigit()
        else None
    )


# --- signing in and out --------------------------------------------------------------------------


@blueprint.route("/sign-in", methods=["GET", "POST"])
@login_exempt
@limiter.limit("30 per minute", key_func=client_address, methods=["POST"])
@limiter.limit("10 per 5 minutes", key_func=sign_in_email_key, methods=["POST"])
def sign_in() -> BaseResponse:
    form = SignInForm()
    goal = safe_redirect_path(request.args.get("next"))
    if request.method == "GET" and current_user.is_authenticated:
        return redirect(goal)
    if not form.validate_on_submit():
        return render("accounts/sign_in.html", status=422 if form.is_submitted() else 200, form=form)
    try:
        user = account_actions.sign_in_user(form.email.data, form.password.data)
    except DomainError as error:
        add_form_errors(form, error)
        return render("accounts/sign_in.html", status=error.status, form=form)
    reset_attempts(sign_in_email_key)
    _start_session(user)
    return redirect(goal)


@blueprint.post("/sign-out")
@login_exempt
def sign_out() -> BaseResponse:
    logout_user()
    session.clear()
    flash("You are signed out.", "success")
    return redirect(url_for("staff.accounts.sign_in"))


@blueprint.route("/invitations/<token>", methods=["GET", "POST"])
@login_exempt
def invitation(token: str) -> BaseResponse:
    """Choose name and password, or only a password. Looking consumes nothing."""
    found = account_queries.find_open_invitation(account_actions.hash_token(token))
    if found is None:
        return _set_private_headers(render("accounts/link_gone.html", status=404))
    try:
        answer = _choose_password(token, found) if found.staff_user_id else _accept_invitation(token, found)
    except NotFound:
        answer = render("accounts/link_gone.html", status=404)
    return _set_private_headers(answer)


def _accept_invitation(token: str, found: Invitation) -> BaseResponse:
    form = AcceptInvitationForm(email=found.email)
    form.time_zone.choices = list(list_time_zones())
    if form.validate_on_submit():
        try:
            user = account_actions.accept_invitation(
                token, form.name.data, form.email.data, form.password.data, form.time_zone.data
            )
            return _sign_in_and_redirect(user, f"Welcome, {user.name}.")
        except NotFound:
            raise
        except DomainError as error:
            add_form_errors(form, error)
    return render("accounts/join.html", status=422 if form.is_submitted() else 200, form=form, role=found.role)


def _choose_password(token: str, found: Invitation) -> BaseResponse:
    user = _get_staff_user_or_404(found.staff_user_id or 0)
    # Whoever has never signed in has had no password: there is nothing new about theirs.
    first = user.last_sign_in_at is None
    form = FirstPasswordForm() if first else NewPasswordForm()
    if form.validate_on_submit():
        user = account_actions.reset_password(token, form.password.data)
        return _sign_in_and_redirect(user, f"Welcome, {user.name}." if first else "Your new password is set.")
    status = 422 if form.is_submitted() else 200
    return render("accounts/new_password.html", status=status, form=form, user=user, first=first)


def _sign_in_and_redirect(user: StaffUser, words: str) -> BaseResponse:
    _start_session(user)
    flash(words, "success")
    return redirect(url_for("staff.home.index"))


def _start_session(user: StaffUser) -> None:
    """A new session: nothing of one that was there before (perhaps planted by somebody else) stays in it."""
    session.clear()
    login_user(user)


def _set_private_headers(answer: BaseResponse) -> BaseResponse:
    # The address is a secret until it is used: other sites never hear of it. Our own must, for a form that is sent
    # over https is taken only with a Referer of this site.
    answer.headers["Referrer-Policy"] = "same-origin"
    answer.headers["Cache-Control"] = "no-store"
    return answer


def safe_redirect_path(given: str | None) -> str:
    """Where to go after signing in: a path of ours, else the home page. Never another site's address."""
    home = url_for("staff.home.index")
    if not given or not given.startswith("/") or given.startswith("//"):
        return home
    # Browsers read a backslash as a slash and drop control characters.
    return home if "\\" in given or not given.isprintable() or given.startswith("/sign-") else given


# --- settings ------------------------------------------------------------------------------------


@blueprint.get("/settings")
def settings() -> BaseResponse:
    return redirect(
        url_for("staff.accounts.staff_users" if current_user.has_at_least_role("admin") else "staff.accounts.profile")
    )


@blueprint.route("/settings/profile", methods=["GET", "POST"])
@require_role("viewer")
def profile() -> BaseResponse:
    form = ProfileForm(obj=current_user)
    form.time_zone.choices = list(list_time_zones())
    if form.validate_on_submit():
        account_actions.update_profile(current_user.id, form.name.data, form.time_zone.data)
        flash("Your profile is saved.", "success")
        return redirect(url_for("staff.accounts.profile"))
    return _render_profile(form, ChangePasswordForm(formdata=None), form.is_submitted())


@blueprint.post("/settings/profile/password")
@require_role("viewer")
@limiter.limit("10 per 5 minutes", key_func=lambda: f"user:{current_user.get_id()}")
def change_password() -> BaseResponse:
    form = ChangePasswordForm()
    if form.validate_on_submit():
        try:
            user = account_actions.change_own_password(current_user.id, form.current.data, form.password.data)
        except DomainError as error:
            add_form_errors(form, error)
        else:
            _start_session(user)
            flash("Your password is changed. Everywhere else you are signed out.", "success")
            return redirect(url_for("staff.accounts.profile"))
    own = ProfileForm(formdata=None, obj=current_user)
    own.time_zone.choices = list(list_time_zones())
    return _render_profile(own, form, True)


def _render_profile(own: ProfileForm, password: ChangePasswordForm, wrong: bool) -> Response:
    return render("accounts/profile.html", status=422 if wrong else 200, form=own, password_form=password)


# --- people --------------------------------------------------------------------------------------


@blueprint.route("/settings/people", methods=["GET", "POST"])
@require_role("admin")
def staff_users() -> BaseResponse:
    """The list, and the form that invites. The link is in the answer itself: it is shown once and kept nowhere."""
    form = InviteForm()
    if form.validate_on_submit():
        try:
            link = account_actions.create_invitation(form.role.data, form.email.data or None, by=current_user.email)
            return _render_staff_users(InviteForm(formdata=None), link=link)
        except DomainError as error:
            add_form_errors(form, error)
    return _render_staff_users(form, status=422 if form.is_submitted() else 200)


def _render_staff_users(form: InviteForm, link: str | None = None, status: int = 200) -> Response:
    return render(
        "accounts/people.html",
        status=status,
        people=account_queries.list_staff_users(),
        invitations=account_queries.list_open_invitations(),
        form=form,
        link=link,
    )


@blueprint.post("/settings/invitations/<int:invitation_id>/withdraw")
@require_role("admin")
def withdraw(invitation_id: int) -> BaseResponse:
    account_actions.withdraw_invitation(invitation_id, by=current_user.email)
    flash("The link no longer works.", "success")
    return redirect(url_for("staff.accounts.staff_users"))


@blueprint.route("/settings/people/<int:user_id>", methods=["GET", "POST"])
@require_role("admin")
def staff_user(user_id: int) -> BaseResponse:
    """One user, and the form that changes the role."""
    user = _get_staff_user_or_404(user_id)
    form = RoleForm(obj=user)
    if form.validate_on_submit():
        try:
            user = account_actions.change_staff_role(user_id, form.role.data, by=current_user.email)
            flash(f"{user.name} is {form.role.data} now.", "success")
            if user.has_at_least_role("admin") or user != current_user:
                return redirect(url_for("staff.accounts.staff_user", user_id=user_id))
            return redirect(url_for("staff.accounts.settings"))
        except DomainError as error:
            form.role.errors = [*form.role.errors, error.message]
    return render(
        "accounts/person.html",
        status=422 if form.is_submitted() else 200,
        user=_get_staff_user_or_404(user_id),
        form=form,
    )


@blueprint.post("/settings/people/<int:user_id>/new-password")
@require_role("admin")
def create_reset_link(user_id: int) -> BaseResponse:
    """Show a link to a new password, in the answer itself: it is shown once and kept nowhere."""
    try:
        link = account_actions.create_password_reset_link(user_id, by=current_user.email)
    except DomainError as error:
        return _redirect_to_staff_user(user_id, error.message, "error")
    user = _get_staff_user_or_404(user_id)
    return render("accounts/person.html", user=user, form=RoleForm(formdata=None, obj=user), link=link)


@blueprint.post("/settings/people/<int:user_id>/end-sessions")
@require_role("admin")
def end_sessions(user_id: int) -> BaseResponse:
    user = account_actions.end_staff_sessions(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, f"{user.name} is signed out everywhere.")


@blueprint.post("/settings/people/<int:user_id>/disable")
@require_role("admin")
def disable(user_id: int) -> BaseResponse:
    try:
        user = account_actions.disable_staff_user(user_id, by=current_user.email)
    except DomainError as error:
        return _redirect_to_staff_user(user_id, error.message, "error")
    return _redirect_to_staff_user(user_id, f"{user.name} can no longer sign in.")


@blueprint.post("/settings/people/<int:user_id>/enable")
@require_role("admin")
def enable(user_id: int) -> BaseResponse:
    user = account_actions.enable_staff_user(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, f"{user.name} can sign in again.")


def _get_staff_user_or_404(user_id: int) -> StaffUser:
    user = account_queries.find_staff_user(user_id)
    if user is None:
        raise NotFound("There is nobody with this number. Look at the list of people.")
    return user


def _redirect_to_staff_user(user_id: int, words: str, kind: str = "success") -> BaseResponse:
    flash(words, kind)
    return redirect(url_for("staff.accounts.staff_user", user_id=user_id))


# --- keys of machines, and the trail --------------------------------------------------------------


@blueprint.route("/settings/api-keys", methods=["GET", "POST"])
@require_role("admin")
def api_keys() -> BaseResponse:
    """The list, and the form that makes a key. The key is in the answer itself: it is shown once and kept nowhere."""
    form = ApiKeyForm()
    if form.validate_on_submit():
        try:
            expires_at = form.compute_expires_at(current_user.time_zone)
            key = account_actions.create_api_key(form.name.data, form.scopes.data, current_user.email, expires_at)
            return _render_api_keys(ApiKeyForm(formdata=None), key=key)
        except DomainError as error:
            add_form_errors(form, error)
    return _render_api_keys(form, status=422 if form.is_submitted() else 200)


def _render_api_keys(form: ApiKeyForm, key: str | None = None, status: int = 200) -> Response:
    return render("accounts/api_keys.html", status=status, keys=account_queries.list_api_keys(), form=form, key=key)


@blueprint.post("/settings/api-keys/<int:key_id>/revoke")
@require_role("admin")
def revoke_api_key(key_id: int) -> BaseResponse:
    account_actions.revoke_api_key(key_id, by=current_user.email)
    flash("The key no longer works.", "success")
    return redirect(url_for("staff.accounts.api_keys"))


@blueprint.get("/settings/keys")
@require_role("admin")
def list_signing_keys() -> BaseResponse:
    """What signs personal codes, links and references, version by version; never a secret."""
    return render(
        "accounts/keys.html",
        purposes=[
            (purpose, signing_keys.list_key_versions(purpose.name))
            for purpose in signing_key_actions.SIGNING_KEY_PURPOSES.values()
        ],
    )


@blueprint.post("/settings/keys/<purpose>/renew")
@require_role("admin")
def rotate_key(purpose: str) -> BaseResponse:
    version = signing_key_actions.rotate_signing_key(purpose, by=current_user.email)
    flash(f"Version {version} signs from now on. What older ones have signed goes on working.", "success")
    return redirect(url_for("staff.accounts.list_signing_keys"))


@blueprint.post("/settings/keys/<purpose>/<int:version>/retire")
@require_role("admin")
def revoke_key(purpose: str, version: int) -> BaseResponse:
    try:
        signing_key_actions.revoke_signing_key(purpose, version, by=current_user.email)
        flash(f"Version {version} is retired: what it has signed no longer works.", "success")
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
    return redirect(url_for("staff.accounts.list_signing_keys"))


@blueprint.get("/settings/audit")
@require_role("admin")
def audit() -> BaseResponse:
    page = account_queries.load_audit_page(before=_parse_id_argument("before"), after=_parse_id_argument("after"))
    return render("accounts/audit.html", page=page)


def _parse_id_argument(name: str) -> int | None:
    given = request.args.get(name, "")
    return int(given) if given.isascii() and given.isdigit() and len(given) <= 18 else None
