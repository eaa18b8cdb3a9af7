"""Staff screens of the list of addresses that must not be mailed."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, abort, current_app, flash, redirect, request, url_for
from flask_login import current_user
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import csrf
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV
from webapp.customers.models import Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.suppressions import queries as suppression_queries
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.customers import check_upload_csrf, csv_response
from webapp.views.staff.forms.customers import ImportForm, SuppressionForm, SuppressionSearchForm

blueprint = Blueprint("suppressions", __name__)

PAGE_SIZE = 50


@blueprint.get("/customers/do-not-mail")
def index() -> Response:
    """The list by address, found as one types."""
    search = SuppressionSearchForm(request.args)
    q, reason, after = search.q.data or "", search.reason.data or "", request.args.get("after", "")
    found = suppression_queries.list_suppressions(q, reason, after, PAGE_SIZE)
    shown = found[:PAGE_SIZE]
    kept: dict[str, Any] = {name: value for name, value in (("q", q), ("reason", reason)) if value}
    here = "staff.suppressions.index"
    return rendering.render(
        "customers/suppressions.html",
        form=search,
        shown=shown,
        mailings=campaign_queries.get_offer_names_by_campaign(listed.campaign_id for listed in shown),
        counts=suppression_queries.count_suppressions_by_reason(),
        narrowed=bool(kept),
        first_url=url_for(here, **kept) if after else None,
        next_url=url_for(here, **kept, after=shown[-1].email) if len(found) > PAGE_SIZE else None,
    )


@blueprint.route("/customers/do-not-mail/new", methods=["GET", "POST"])
@require_role("manager")
def new() -> BaseResponse:
    """Put one address on the list."""
    form = SuppressionForm(email=request.args.get("email", ""))
    if form.validate_on_submit():
        try:
            given = form.email.data or ""
            listed, was = suppression_actions.add_suppression_by_staff(
                given, form.reason.data or "", current_user.email, form.words.data or ""
            )
            flash(_added_message(" ".join(given.split()), listed, was), "info" if was else "success")
            return redirect(_return_url(listed.email))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    status = 422 if form.is_submitted() else 200
    return rendering.render("customers/new_suppression.html", status=status, form=form)


@blueprint.route("/customers/do-not-mail/lift", methods=["GET", "POST"])
@require_role("manager")
def remove() -> BaseResponse:
    """Let an address be mailed again, after saying what that means; one that is no customer's only by an admin."""
    # PostgreSQL has no NUL, so nothing is called like that.
    key = request.values.get("email", "").replace("\0", "")
    found = suppression_queries.find_suppression_by_email(key) or suppression_queries.find_suppression_by_key(key)
    if found is None:
        raise NotFound("This address is not on the list.")
    if customer_queries.find_customer_by_email(found.email) is None and not current_user.has_at_least_role("admin"):
        abort(403, "Your role does not allow this. Ask an administrator.")
    form = FlaskForm()
    if form.validate_on_submit():
        back = _return_url(found.email)
        suppression_actions.remove_suppression(key, by=current_user.email)
        flash(f"{key} may be mailed again.", "success")
        return redirect(back)
    return rendering.render(
        "customers/lift_suppression.html",
        form=form,
        listed=found,
        key=key,
        back=_return_url(found.email),
        mailings=campaign_queries.get_offer_names_by_campaign([found.campaign_id]),
    )


@blueprint.get("/customers/do-not-mail.csv")
@require_role("manager")
def download() -> Response:
    """The whole list, as it comes from the database."""
    suppression_actions.record_suppression_export(by=current_user.email)
    return csv_response(suppression_queries.export_suppressions(), "do-not-mail.csv")


@blueprint.get("/customers/do-not-mail/import")
@require_role("manager")
def import_form() -> Response:
    """Choose a file of addresses."""
    return _render_import_page(ImportForm())


@blueprint.post("/customers/do-not-mail/import")
@csrf.exempt
def receive_upload() -> BaseResponse:
    """Take an uploaded list while it arrives. Its token stands before it, so it is checked before the file."""
    limit: int = current_app.config["SETTINGS"].max_upload
    request.max_content_length = 2 * limit
    form = ImportForm()
    try:
        if (request.content_length or 0) > limit + upload.MAX_FIELDS_SIZE:
            raise upload.file_too_large_error(limit)
        sent = upload.parse_multipart_form(request.stream, request.headers.get("Content-Type", ""), limit)
        check_upload_csrf(sent)
        if not sent.filename:
            raise InvalidInput(FieldError("file", "file_missing", "Choose a file first."))
        import_id = import_actions.store_import_file(
            sent.chunks, sent.filename, CSV, "", by=current_user.email, kind="suppressions"
        )
    except DomainError as error:
        upload.drain_body(request.stream, 2 * limit)
        rendering.add_form_errors(form, error)
        return _render_import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _render_import_page(form: ImportForm, status: int = 200) -> Response:
    limit = current_app.config["SETTINGS"].max_upload // 1024 // 1024
    return rendering.render("customers/import_suppressions.html", status=status, form=form, limit_mb=limit)


def _added_message(given: str, listed: Suppression, was: str | None) -> str:
    if was is None:
        return f"{given} is not mailed any more."
    if was == listed.reason:
        return f"{given} was on the list already ({was}) and stays there as it was."
    return f"{given} was on the list already ({was}); now it stands there as {listed.reason}."


def _return_url(email: str) -> str:
    """The page of the customer who has the address, else the list."""
    customer = customer_queries.find_customer_by_email(email)
    if customer is not None:
        return url_for("staff.customers.show", customer_id=customer.id)
    return url_for("staff.suppressions.index", q=email)
