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
from webapp.core.local_time import zone_names
from webapp.core.rate_limit import address, forgive, limiter, typed
from webapp.views.rendering import attach, render
from webapp.views.staff.blueprint import needs, open_to_all
from webapp.views.staff.forms.accounts import (
    ApiKeyForm,
    ChangePasswordForm,
    FirstPasswordForm,
    InviteForm,
    JoinForm,
    NewPasswordForm,
    ProfileForm,
    RoleForm,
    SignInForm,
)

room = Blueprint("accounts", __name__)

who_signs_in = typed("email", normalise_email)


@login.user_loader
def load_user(session_id: str) -> StaffUser | None:
    """The user of a session, unless it has been ended or its user disabled."""
    user_id, _, version = session_id.partition(".")
    return account_queries.signed_in(int(user_id), int(version)) if user_id.isdigit() and version.isdigit() else None


# --- signing in and out --------------------------------------------------------------------------


@room.route("/sign-in", methods=["GET", "POST"])
@open_to_all
@limiter.limit("30 per minute", key_func=address, methods=["POST"])
@limiter.limit("10 per 5 minutes", key_func=who_signs_in, methods=["POST"])
def sign_in() -> BaseResponse:
    form = SignInForm()
    goal = own_path(request.args.get("next"))
    if request.method == "GET" and current_user.is_authenticated:
        return redirect(goal)
    if not form.validate_on_submit():
        return render("accounts/sign_in.html", status=422 if form.is_submitted() else 200, form=form)
    try:
        user = account_actions.sign_in(form.email.data, form.password.data)
    except DomainError as error:
        attach(form, error)
        return render("accounts/sign_in.html", status=error.status, form=form)
    forgive(who_signs_in)
    _start_session(user)
    return redirect(goal)


@room.post("/sign-out")
@open_to_all
def sign_out() -> BaseResponse:
    logout_user()
    session.clear()
    flash("You are signed out.", "success")
    return redirect(url_for("staff.accounts.sign_in"))


@room.route("/invitations/<token>", methods=["GET", "POST"])
@open_to_all
def invitation(token: str) -> BaseResponse:
    """Choose name and password, or only a password. Looking consumes nothing."""
    found = account_queries.invitation(account_actions.token_hash(token))
    if found is None:
        return _private(render("accounts/link_gone.html", status=404))
    try:
        answer = _new_password(token, found) if found.staff_user_id else _join(token, found)
    except NotFound:
        answer = render("accounts/link_gone.html", status=404)
    return _private(answer)


def _join(token: str, found: Invitation) -> BaseResponse:
    form = JoinForm(email=found.email)
    form.time_zone.choices = list(zone_names())
    if form.validate_on_submit():
        try:
            user = account_actions.join(token, form.name.data, form.email.data, form.password.data, form.time_zone.data)
            return _welcome(user, f"Welcome, {user.name}.")
        except NotFound:
            raise
        except DomainError as error:
            attach(form, error)
    return render("accounts/join.html", status=422 if form.is_submitted() else 200, form=form, role=found.role)


def _new_password(token: str, found: Invitation) -> BaseResponse:
    user = _known(found.staff_user_id or 0)
    # Whoever has never signed in has had no password: there is nothing new about theirs.
    first = user.last_sign_in_at is None
    form = FirstPasswordForm() if first else NewPasswordForm()
    if form.validate_on_submit():
        user = account_actions.reset_password(token, form.password.data)
        return _welcome(user, f"Welcome, {user.name}." if first else "Your new password is set.")
    status = 422 if form.is_submitted() else 200
    return render("accounts/new_password.html", status=status, form=form, user=user, first=first)


def _welcome(user: StaffUser, words: str) -> BaseResponse:
    _start_session(user)
    flash(words, "success")
    return redirect(url_for("staff.home.index"))


def _start_session(user: StaffUser) -> None:
    """A new session: nothing of one that was there before (perhaps planted by somebody else) stays in it."""
    session.clear()
    login_user(user)


def _private(answer: BaseResponse) -> BaseResponse:
    # The address is a secret until it is used: other sites never hear of it. Our own must, for a form that is sent
    # over https is taken only with a Referer of this site.
    answer.headers["Referrer-Policy"] = "same-origin"
    answer.headers["Cache-Control"] = "no-store"
    return answer


def own_path(given: str | None) -> str:
    """Where to go after signing in: a path of ours, else the home page. Never another site's address."""
    home = url_for("staff.home.index")
    if not given or not given.startswith("/") or given.startswith("//"):
        return home
    # Browsers read a backslash as a slash and drop control characters.
    return home if "\\" in given or not given.isprintable() or given.startswith("/sign-") else given


# --- settings ------------------------------------------------------------------------------------


@room.get("/settings")
def settings() -> BaseResponse:
    return redirect(url_for("staff.accounts.people" if current_user.may("admin") else "staff.accounts.profile"))


@room.route("/settings/profile", methods=["GET", "POST"])
@needs("viewer")
def profile() -> BaseResponse:
    form = ProfileForm(obj=current_user)
    form.time_zone.choices = list(zone_names())
    if form.validate_on_submit():
        account_actions.change_profile(current_user.id, form.name.data, form.time_zone.data)
        flash("Your profile is saved.", "success")
        return redirect(url_for("staff.accounts.profile"))
    return _profile_page(form, ChangePasswordForm(formdata=None), form.is_submitted())


@room.post("/settings/profile/password")
@needs("viewer")
@limiter.limit("10 per 5 minutes", key_func=lambda: f"user:{current_user.get_id()}")
def change_password() -> BaseResponse:
    form = ChangePasswordForm()
    if form.validate_on_submit():
        try:
            user = account_actions.change_password(current_user.id, form.current.data, form.password.data)
        except DomainError as error:
            attach(form, error)
        else:
            _start_session(user)
            flash("Your password is changed. Everywhere else you are signed out.", "success")
            return redirect(url_for("staff.accounts.profile"))
    own = ProfileForm(formdata=None, obj=current_user)
    own.time_zone.choices = list(zone_names())
    return _profile_page(own, form, True)


def _profile_page(own: ProfileForm, password: ChangePasswordForm, wrong: bool) -> Response:
    return render("accounts/profile.html", status=422 if wrong else 200, form=own, password_form=password)


# --- people --------------------------------------------------------------------------------------


@room.route("/settings/people", methods=["GET", "POST"])
@needs("admin")
def people() -> BaseResponse:
    """The list, and the form that invites. The link is in the answer itself: it is shown once and kept nowhere."""
    form = InviteForm()
    if form.validate_on_submit():
        try:
            link = account_actions.invite(form.role.data, form.email.data or None, by=current_user.email)
            return _people_page(InviteForm(formdata=None), link=link)
        except DomainError as error:
            attach(form, error)
    return _people_page(form, status=422 if form.is_submitted() else 200)


def _people_page(form: InviteForm, link: str | None = None, status: int = 200) -> Response:
    return render(
        "accounts/people.html",
        status=status,
        people=account_queries.people(),
        invitations=account_queries.open_invitations(),
        form=form,
        link=link,
    )


@room.post("/settings/invitations/<int:invitation_id>/withdraw")
@needs("admin")
def withdraw(invitation_id: int) -> BaseResponse:
    account_actions.withdraw(invitation_id, by=current_user.email)
    flash("The link no longer works.", "success")
    return redirect(url_for("staff.accounts.people"))


@room.route("/settings/people/<int:user_id>", methods=["GET", "POST"])
@needs("admin")
def person(user_id: int) -> BaseResponse:
    """One user, and the form that changes the role."""
    user = _known(user_id)
    form = RoleForm(obj=user)
    if form.validate_on_submit():
        try:
            user = account_actions.change_role(user_id, form.role.data, by=current_user.email)
            flash(f"{user.name} is {form.role.data} now.", "success")
            if user.may("admin") or user != current_user:
                return redirect(url_for("staff.accounts.person", user_id=user_id))
            return redirect(url_for("staff.accounts.settings"))
        except DomainError as error:
            form.role.errors = [*form.role.errors, error.message]
    return render("accounts/person.html", status=422 if form.is_submitted() else 200, user=_known(user_id), form=form)


@room.post("/settings/people/<int:user_id>/new-password")
@needs("admin")
def new_password(user_id: int) -> BaseResponse:
    """Show a link to a new password, in the answer itself: it is shown once and kept nowhere."""
    try:
        link = account_actions.reset_link(user_id, by=current_user.email)
    except DomainError as error:
        return _back_to(user_id, error.message, "error")
    user = _known(user_id)
    return render("accounts/person.html", user=user, form=RoleForm(formdata=None, obj=user), link=link)


@room.post("/settings/people/<int:user_id>/end-sessions")
@needs("admin")
def end_sessions(user_id: int) -> BaseResponse:
    user = account_actions.end_sessions(user_id, by=current_user.email)
    return _back_to(user_id, f"{user.name} is signed out everywhere.")


@room.post("/settings/people/<int:user_id>/disable")
@needs("admin")
def disable(user_id: int) -> BaseResponse:
    try:
        user = account_actions.disable(user_id, by=current_user.email)
    except DomainError as error:
        return _back_to(user_id, error.message, "error")
    return _back_to(user_id, f"{user.name} can no longer sign in.")


@room.post("/settings/people/<int:user_id>/enable")
@needs("admin")
def enable(user_id: int) -> BaseResponse:
    user = account_actions.enable(user_id, by=current_user.email)
    return _back_to(user_id, f"{user.name} can sign in again.")


def _known(user_id: int) -> StaffUser:
    user = account_queries.person(user_id)
    if user is None:
        raise NotFound("There is nobody with this number. Look at the list of people.")
    return user


def _back_to(user_id: int, words: str, kind: str = "success") -> BaseResponse:
    flash(words, kind)
    return redirect(url_for("staff.accounts.person", user_id=user_id))


# --- keys of machines, and the trail --------------------------------------------------------------


@room.route("/settings/api-keys", methods=["GET", "POST"])
@needs("admin")
def api_keys() -> BaseResponse:
    """The list, and the form that makes a key. The key is in the answer itself: it is shown once and kept nowhere."""
    form = ApiKeyForm()
    if form.validate_on_submit():
        try:
            expires_at = form.expires_at(current_user.time_zone)
            key = account_actions.create_api_key(form.name.data, form.scopes.data, current_user.email, expires_at)
            return _keys_page(ApiKeyForm(formdata=None), key=key)
        except DomainError as error:
            attach(form, error)
    return _keys_page(form, status=422 if form.is_submitted() else 200)


def _keys_page(form: ApiKeyForm, key: str | None = None, status: int = 200) -> Response:
    return render("accounts/api_keys.html", status=status, keys=account_queries.api_keys(), form=form, key=key)


@room.post("/settings/api-keys/<int:key_id>/revoke")
@needs("admin")
def revoke_api_key(key_id: int) -> BaseResponse:
    account_actions.revoke_api_key(key_id, by=current_user.email)
    flash("The key no longer works.", "success")
    return redirect(url_for("staff.accounts.api_keys"))


@room.get("/settings/keys")
@needs("admin")
def list_signing_keys() -> BaseResponse:
    """What signs personal codes, links and references, version by version; never a secret."""
    return render(
        "accounts/keys.html",
        purposes=[(purpose, signing_keys.versions(purpose.name)) for purpose in signing_key_actions.PURPOSES.values()],
    )


@room.post("/settings/keys/<purpose>/renew")
@needs("admin")
def renew_key(purpose: str) -> BaseResponse:
    version = signing_key_actions.renew_key(purpose, by=current_user.email)
    flash(f"Version {version} signs from now on. What older ones have signed goes on working.", "success")
    return redirect(url_for("staff.accounts.list_signing_keys"))


@room.post("/settings/keys/<purpose>/<int:version>/retire")
@needs("admin")
def retire_key(purpose: str, version: int) -> BaseResponse:
    try:
        signing_key_actions.retire_key(purpose, version, by=current_user.email)
        flash(f"Version {version} is retired: what it has signed no longer works.", "success")
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
    return redirect(url_for("staff.accounts.list_signing_keys"))


@room.get("/settings/audit")
@needs("admin")
def audit() -> BaseResponse:
    page = account_queries.audit_page(before=_id("before"), after=_id("after"))
    return render("accounts/audit.html", page=page)


def _id(name: str) -> int | None:
    given = request.args.get(name, "")
    return int(given) if given.isascii() and given.isdigit() and len(given) <= 18 else None
