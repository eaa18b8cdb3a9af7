"""Staff pages for API keys and signing keys."""

from __future__ import annotations

from flask import Response, flash, redirect, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import api_key_actions, signing_key_actions
from webapp.accounts import queries as account_queries
from webapp.core import signing_keys
from webapp.core.errors import DomainError
from webapp.views.rendering import add_form_errors, flash_domain_error, form_status, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import require_recent_password, require_role
from webapp.views.staff.forms.accounts import ApiKeyForm


@blueprint.route("/settings/api-keys", methods=["GET", "POST"])
@require_role("admin")
@require_recent_password
def api_keys() -> BaseResponse:
    """List the API keys and create new ones.

    The key is only in this response: it is shown once and not stored.
    """
    form = ApiKeyForm()
    if form.validate_on_submit():
        if not form.mark_submitted():
            flash(_("This key was already created and is not shown again. Revoke it if you do not have it."), "info")
            return redirect(url_for("staff.accounts.api_keys"))
        try:
            expires_at = form.compute_expires_at(current_user.time_zone)
            key = api_key_actions.create_api_key(form.name.data, form.scopes.data, current_user.email, expires_at)
            return _render_api_keys(ApiKeyForm(formdata=None), key=key)
        except DomainError as error:
            form.mark_rejected()
            add_form_errors(form, error)
    return _render_api_keys(form, status=form_status(form))


def _render_api_keys(form: ApiKeyForm, key: str | None = None, status: int = 200) -> Response:
    return render(
        "accounts/api_keys.html",
        status=status,
        keys=account_queries.list_api_keys(),
        creators=account_queries.list_api_key_creators(),
        form=form,
        key=key,
    )


@blueprint.post("/settings/api-keys/<int:key_id>/revoke")
@require_role("admin")
def revoke_api_key(key_id: int) -> BaseResponse:
    """Revoke an API key."""
    api_key_actions.revoke_api_key(key_id, by=current_user.email)
    flash(_("The key was revoked and no longer works."), "success")
    return redirect(url_for("staff.accounts.api_keys"))


@blueprint.get("/settings/keys")
@require_role("admin")
def show_signing_keys() -> BaseResponse:
    """List the versions of the signing keys, without their secrets."""
    return render(
        "accounts/signing_keys.html",
        purposes=[
            (purpose, signing_keys.list_key_versions(purpose.name))
            for purpose in signing_key_actions.SIGNING_KEY_PURPOSES.values()
        ],
    )


@blueprint.post("/settings/keys/<purpose>/renew")
@require_role("admin")
@require_recent_password
def rotate_signing_key(purpose: str) -> BaseResponse:
    """Create a new version of a signing key, which signs from now on."""
    version = signing_key_actions.rotate_signing_key(purpose, by=current_user.email)
    flash(
        _("Version %(version)s is now the current version. Older versions are still accepted.", version=version),
        "success",
    )
    return redirect(url_for("staff.accounts.show_signing_keys"))


@blueprint.post("/settings/keys/<purpose>/<int:version>/retire")
@require_role("admin")
@require_recent_password
def revoke_signing_key(purpose: str, version: int) -> BaseResponse:
    """Revoke a version of a signing key: its signatures are no longer accepted."""
    with flash_domain_error():
        signing_key_actions.revoke_signing_key(purpose, version, by=current_user.email)
        flash(_("Version %(version)s was revoked: its signatures are no longer accepted.", version=version), "success")
    return redirect(url_for("staff.accounts.show_signing_keys"))
