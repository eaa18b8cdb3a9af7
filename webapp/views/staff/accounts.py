"""Staff pages for the users."""

from __future__ import annotations

from flask import Blueprint, Response, flash, g, redirect, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import actions as account_actions
from webapp.accounts import invitation_actions, notices, staff_erasure_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.models import StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc import queries as oidc_queries
from webapp.campaigns import queries as campaign_queries
from webapp.core.errors import DomainError, NotFound
from webapp.offers import queries as offer_queries
from webapp.views.form_base import PostForm
from webapp.views.rendering import add_form_errors, flash_domain_error, form_status, render, role_label
from webapp.views.staff.blueprint import require_recent_password, require_recent_second_factor, require_role
from webapp.views.staff.forms.accounts import InviteForm, OneTimeForm, RoleForm

blueprint = Blueprint("accounts", __name__)


@blueprint.route("/settings/people", methods=["GET", "POST"])
@require_role("admin")
@require_recent_password
def staff_users() -> BaseResponse:
    """List the users and invite new ones.

    The link is only in this response: it is shown once and not stored.
    """
    form = _create_invite_form()
    if form.validate_on_submit():
        if not form.mark_submitted():
            flash(_("This link was already created and is not shown again. Revoke it if you do not have it."), "info")
            return redirect(url_for("staff.accounts.staff_users"))
        try:
            is_emailed = bool(form.is_emailed and form.is_emailed.data)
            link = invitation_actions.create_invitation(
                form.role.data, form.email.data or None, by=current_user.email, is_emailed=is_emailed
            )
            emailed_to = form.email.data if is_emailed else None
            return _render_staff_users(_create_invite_form(formdata=None), link=link, emailed_to=emailed_to)
        except DomainError as error:
            form.mark_rejected()
            add_form_errors(form, error)
    return _render_staff_users(form, status=form_status(form))


def _create_invite_form(**values: object) -> InviteForm:
    form = InviteForm(**values)
    if not notices.can_email_users():
        del form.is_emailed
    return form


def _render_staff_users(
    form: InviteForm, link: str | None = None, emailed_to: str | None = None, status: int = 200
) -> Response:
    invitations = account_queries.list_unused_invitations()
    return render(
        "accounts/users.html",
        status=status,
        users=account_queries.list_staff_users(),
        with_second_factor=factor_queries.list_users_with_second_factor(),
        invitations=invitations,
        creators=account_queries.find_staff_users(invitation.created_by for invitation in invitations),
        form=form,
        link=link,
        emailed_to=emailed_to,
    )


@blueprint.post("/settings/invitations/<int:invitation_id>/withdraw")
@require_role("admin")
def withdraw_invitation(invitation_id: int) -> BaseResponse:
    """Revoke an invitation or a password reset link."""
    invitation_actions.withdraw_invitation(invitation_id, by=current_user.email)
    flash(_("The link was revoked."), "success")
    return redirect(url_for("staff.accounts.staff_users"))


@blueprint.route("/settings/people/<int:user_id>", methods=["GET", "POST"])
@require_role("admin")
@require_recent_password
def staff_user(user_id: int) -> BaseResponse:
    """Show a user, or change their role."""
    user = get_staff_user_or_404(user_id)
    form = RoleForm(obj=user)
    if form.validate_on_submit():
        try:
            user = account_actions.change_staff_role(
                user_id, form.role.data, by=current_user.email, kept_session_id=g.staff_session_id
            )
            flash(_("%(name)s now has the role %(role)s.", name=user.name, role=role_label(user.role)), "success")
            if user.has_at_least_role("admin") or user != current_user:
                return redirect(url_for("staff.accounts.staff_user", user_id=user_id))
            return redirect(url_for("staff.accounts.settings"))
        except DomainError as error:
            form.role.errors = [*form.role.errors, error.message]
    return _render_staff_user(user_id, form, status=form_status(form))


def _render_staff_user(user_id: int, form: RoleForm, link: str | None = None, status: int = 200) -> Response:
    link_form = OneTimeForm(formdata=None)
    user = get_staff_user_or_404(user_id)
    scheduled_campaigns = campaign_queries.list_campaigns_scheduled_by(user.email)
    return render(
        "accounts/user.html",
        status=status,
        user=user,
        has_second_factor=factor_queries.has_second_factor(user_id),
        identities=oidc_queries.list_identities(user_id),
        api_keys=account_queries.list_working_api_keys_of(user.email),
        scheduled_campaigns=scheduled_campaigns,
        offers=offer_queries.find_offers([campaign.offer_id for campaign in scheduled_campaigns]),
        form=form,
        link=link,
        link_form=link_form,
    )


@blueprint.post("/settings/people/<int:user_id>/new-password")
@require_role("admin")
@require_recent_password
def create_reset_link(user_id: int) -> BaseResponse:
    """Create a password reset link and show it once: it is not stored."""
    form = OneTimeForm()
    if not form.mark_submitted():
        return _redirect_to_staff_user(user_id, _("This link was already created and is not shown again."), "info")
    try:
        link = invitation_actions.create_password_reset_link(user_id, by=current_user.email)
    except DomainError as error:
        form.mark_rejected()
        return _redirect_to_staff_user(user_id, error.message, "error")
    return _render_staff_user(user_id, RoleForm(formdata=None, obj=get_staff_user_or_404(user_id)), link)


@blueprint.post("/settings/people/<int:user_id>/end-sessions")
@require_role("admin")
def end_sessions(user_id: int) -> BaseResponse:
    """Sign a user out on all devices."""
    user = account_actions.end_staff_sessions(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, _("%(name)s was signed out on all devices.", name=user.name))


@blueprint.post("/settings/people/<int:user_id>/reset-second-factor")
@require_role("admin")
@require_recent_second_factor
def reset_second_factor(user_id: int) -> BaseResponse:
    """Remove all second factors of a user who has lost them."""
    user = factor_actions.reset_second_factor(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, _("The two-step verification of %(name)s was reset.", name=user.name))


@blueprint.post("/settings/people/<int:user_id>/unlink-identities")
@require_role("admin")
@require_recent_second_factor
def unlink_identities(user_id: int) -> BaseResponse:
    """Unlink the accounts with which a user signs in at the OpenID Connect provider."""
    user = oidc_actions.unlink_all_identities(user_id, by=current_user.email)
    return _redirect_to_staff_user(
        user_id, _("%(name)s can no longer sign in with the account that was linked.", name=user.name)
    )


@blueprint.post("/settings/people/<int:user_id>/disable")
@require_role("admin")
@require_recent_password
def disable_staff_user(user_id: int) -> BaseResponse:
    """Disable a user and end their sessions."""
    try:
        user = account_actions.disable_staff_user(user_id, by=current_user.email)
    except DomainError as error:
        return _redirect_to_staff_user(user_id, error.message, "error")
    return _redirect_to_staff_user(user_id, _("%(name)s can no longer sign in.", name=user.name))


@blueprint.post("/settings/people/<int:user_id>/enable")
@require_role("admin")
@require_recent_password
def enable_staff_user(user_id: int) -> BaseResponse:
    """Enable a disabled user."""
    user = account_actions.enable_staff_user(user_id, by=current_user.email)
    return _redirect_to_staff_user(user_id, _("%(name)s can sign in again.", name=user.name))


@blueprint.route("/settings/people/<int:user_id>/erase", methods=["GET", "POST"])
@require_role("admin")
@require_recent_password
def erase_staff_user(user_id: int) -> BaseResponse:
    """Erase a disabled user after a confirmation page."""
    user = get_staff_user_or_404(user_id)
    if user.is_active:
        message = _("Disable %(name)s first. Then the account can be erased.", name=user.name)
        return _redirect_to_staff_user(user_id, message, "error")
    form = PostForm()
    if form.validate_on_submit():
        with flash_domain_error():
            label = staff_erasure_actions.erase_staff_user(user_id, by=current_user.email)
            flash(_("The account was erased. Entries of the audit log now name “%(label)s”.", label=label), "success")
        return redirect(url_for("staff.accounts.staff_users"))
    return render("accounts/erase_user.html", form=form, user=user)


def get_staff_user_or_404(user_id: int) -> StaffUser:
    """Return the user with this id.

    :raises NotFound: when there is none, or the user was erased.
    """
    user = account_queries.find_staff_user(user_id)
    if user is None or user.erased_at is not None:
        raise NotFound(_("This user does not exist. See the list of users."))
    return user


def _redirect_to_staff_user(user_id: int, message: str, category: str = "success") -> BaseResponse:
    flash(message, category)
    return redirect(url_for("staff.accounts.staff_user", user_id=user_id))
