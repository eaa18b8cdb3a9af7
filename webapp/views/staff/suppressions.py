"""Staff pages for the suppression list."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import csrf
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports.parser import CSV
from webapp.customers.imports.upload import Upload
from webapp.customers.models import Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.suppressions import queries as suppression_queries
from webapp.views import rendering
from webapp.views.access_notes import note_access
from webapp.views.form_base import PostForm
from webapp.views.staff import uploads
from webapp.views.staff.blueprint import abort_insufficient_role, require_role
from webapp.views.staff.customers import csv_response
from webapp.views.staff.forms.customers import ImportForm, SuppressionForm, SuppressionSearchForm

blueprint = Blueprint("suppressions", __name__)

PAGE_SIZE = 50


@blueprint.get("/customers/do-not-mail")
def index() -> Response:
    """List suppressed addresses, sorted by address, with a search."""
    form = SuppressionSearchForm(request.args)
    q, reason = form.q.data or "", form.reason.data or ""
    after = request.args.get("after", "")
    rows = suppression_queries.list_suppressions(q, reason, after, PAGE_SIZE)
    page = rows[:PAGE_SIZE]
    filters: dict[str, Any] = {name: value for name, value in (("q", q), ("reason", reason)) if value}
    endpoint = "staff.suppressions.index"
    note_access("suppressions.listed")
    return rendering.render(
        "customers/suppressions.html",
        form=form,
        suppressions=page,
        offer_names_by_campaign=campaign_queries.get_offer_names_by_campaign(row.campaign_id for row in page),
        counts=suppression_queries.count_suppressions_by_reason(),
        is_filtered=bool(filters),
        first_url=url_for(endpoint, **filters) if after else None,
        next_url=url_for(endpoint, **filters, after=page[-1].email) if len(rows) > PAGE_SIZE else None,
    )


@blueprint.route("/customers/do-not-mail/new", methods=["GET", "POST"])
@require_role("manager")
def new() -> BaseResponse:
    """Add one address to the suppression list."""
    form = SuppressionForm(email=request.args.get("email", ""))
    if form.validate_on_submit():
        try:
            entered_email = form.email.data or ""
            suppression, previous_reason = suppression_actions.add_suppression_by_staff(
                entered_email, form.reason.data or "", current_user.email, form.note.data or ""
            )
            message = _build_added_message(" ".join(entered_email.split()), suppression, previous_reason)
            flash(message, "info" if previous_reason else "success")
            return redirect(_return_url(suppression.email))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    status = rendering.form_status(form)
    return rendering.render("customers/new_suppression.html", status=status, form=form)


@blueprint.route("/customers/do-not-mail/lift", methods=["GET", "POST"])
@require_role("manager")
def remove() -> BaseResponse:
    """Remove an address from the suppression list after a confirmation page.

    Only administrators may remove an address that belongs to no customer.
    """
    # An address, or the hash of an erased customer's address. PostgreSQL cannot store NUL characters.
    values = request.form if request.method == "POST" else request.args
    key = values.get("email", "").replace("\0", "")
    suppression = suppression_queries.find_suppression_by_email(key) or suppression_queries.find_suppression_by_key(key)
    if suppression is None:
        raise NotFound(_("This address is not on the suppression list."))
    customer = customer_queries.find_customer_by_email(suppression.email)
    if customer is None and not current_user.has_at_least_role("admin"):
        abort_insufficient_role()
    form = PostForm()
    return_url, removed_message = _return_url(suppression.email), _build_removed_message(key, suppression)
    if form.validate_on_submit():
        suppression_actions.remove_suppression(key, by=current_user.email)
        flash(removed_message, "success")
        return redirect(return_url)
    note_access("suppressions.listed", f"customer {customer.id}" if customer is not None else "")
    return rendering.render(
        "customers/remove_suppression.html",
        form=form,
        suppression=suppression,
        key=key,
        return_url=return_url,
        offer_names_by_campaign=campaign_queries.get_offer_names_by_campaign([suppression.campaign_id]),
    )


@blueprint.get("/customers/do-not-mail.csv")
@require_role("manager")
def download() -> Response:
    """Export the suppression list as CSV."""
    suppression_actions.record_suppression_export(by=current_user.email)
    return csv_response(suppression_queries.export_suppressions(), "do-not-mail.csv")


@blueprint.get("/customers/do-not-mail/import")
@require_role("manager")
def import_form() -> Response:
    """Show the upload form for a suppression list."""
    return _render_import_page(ImportForm())


@blueprint.post("/customers/do-not-mail/import")
@csrf.exempt
def receive_upload() -> BaseResponse:
    """Receive an uploaded list as a stream."""

    def store(received: Upload) -> int:
        uploads.require_file(received, *uploads.CSV_SUFFIXES)
        return import_actions.store_import_file(
            received.chunks, received.filename, CSV, "", by=current_user.email, kind="suppressions"
        )

    try:
        import_id = uploads.receive_file(store)
    except DomainError as error:
        form = ImportForm()
        rendering.add_form_errors(form, error)
        return _render_import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _render_import_page(form: ImportForm, status: int = 200) -> Response:
    limit_mb = current_app.config["SETTINGS"].max_upload_bytes // 1024 // 1024
    return rendering.render("customers/import_suppressions.html", status=status, form=form, limit_mb=limit_mb)


def _build_added_message(email: str, suppression: Suppression, previous_reason: str | None) -> str:
    if previous_reason is None:
        message = _("%(email)s was added to the suppression list.", email=email)
    elif previous_reason == suppression.reason:
        message = _(
            "%(email)s is already on the suppression list (%(reason)s). The entry was not changed.",
            email=email,
            reason=rendering.state_label(previous_reason),
        )
    else:
        message = _(
            "%(email)s was already on the suppression list (%(previous)s). The reason is now %(reason)s.",
            email=email,
            previous=rendering.state_label(previous_reason),
            reason=rendering.state_label(suppression.reason),
        )
    return str(message)


def _build_removed_message(key: str, suppression: Suppression) -> str:
    if suppression.is_hashed:
        return str(_("The address of an erased customer was removed from the suppression list."))
    return str(_("%(email)s was removed from the suppression list.", email=key))


def _return_url(email: str) -> str:
    """Return the URL of the customer with this address, or of the suppression list."""
    customer = customer_queries.find_customer_by_email(email)
    if customer is not None:
        return url_for("staff.customers.show", customer_id=customer.id)
    return url_for("staff.suppressions.index", q=email)
