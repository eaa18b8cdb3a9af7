"""Staff pages for requesting a password reset link by email."""

from __future__ import annotations

from flask import abort, current_app, redirect, url_for
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import notices, password_reset_actions
from webapp.core.errors import InvalidInput
from webapp.core.rate_limit import limit_requests
from webapp.views.rendering import add_form_errors, form_status, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import login_exempt
from webapp.views.staff.forms.accounts import RequestResetForm


@blueprint.route("/forgot-password", methods=["GET", "POST"])
@login_exempt
@limit_requests("20 per hour")
def request_password_reset() -> BaseResponse:
    """Show the form for the email address, or request the email with the link."""
    if not notices.can_email_users():
        abort(404)
    form = RequestResetForm()
    if form.validate_on_submit():
        try:
            password_reset_actions.request_password_reset(form.email.data)
            return redirect(url_for("staff.accounts.password_reset_requested"))
        except InvalidInput as error:
            add_form_errors(form, error)
    return render("accounts/forgot_password.html", status=form_status(form), form=form)


@blueprint.get("/forgot-password/sent")
@login_exempt
def password_reset_requested() -> BaseResponse:
    """Show what happens next: the same page whether there is an account or not."""
    settings = current_app.config["SETTINGS"]
    sink_url = settings.sink_url if settings.uses_mail_sink else None
    return render("accounts/password_reset_requested.html", sink_url=sink_url)
