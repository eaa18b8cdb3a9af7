"""Staff pages where users edit their profile and change their password."""

from __future__ import annotations

from flask import Response, flash, g, redirect, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import actions as account_actions
from webapp.accounts import sign_in_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.core.errors import DomainError
from webapp.core.local_time import list_time_zones
from webapp.views.access_notes import note_access
from webapp.views.rendering import add_form_errors, form_status, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.forms.accounts import ChangePasswordForm, ProfileForm
from webapp.views.staff.recent_password import password_limit
from webapp.views.staff.sign_in import start_session


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
def change_password() -> BaseResponse:
    """Change the password of the signed-in user and end all other sessions."""
    form = ChangePasswordForm()
    if form.validate_on_submit():
        password_limit.count(str(g.staff_session_id))
        try:
            user = sign_in_actions.change_own_password(current_user.id, form.current.data, form.password.data)
        except DomainError as error:
            if any(item.key == "password_wrong" for item in error.errors):
                note_access("sign_in.failed", "password", entered_email=current_user.email)
            add_form_errors(form, error)
        else:
            start_session(
                user,
                g.has_second_factor,
                is_new_device_expected=True,
                is_second_factor_recent=g.has_recent_second_factor,
            )
            flash(_("Your password was changed. You were signed out on all other devices."), "success")
            return redirect(url_for("staff.accounts.profile"))
    profile_form = ProfileForm(formdata=None, obj=current_user)
    profile_form.time_zone.choices = list(list_time_zones())
    return _render_profile(profile_form, form, 422)


def _render_profile(form: ProfileForm, password_form: ChangePasswordForm, status: int) -> Response:
    return render(
        "accounts/profile.html",
        status=status,
        form=form,
        password_form=password_form,
        has_second_factor=factor_queries.has_second_factor(current_user.id),
    )
