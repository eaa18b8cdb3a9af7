"""Staff screens of the list of addresses that must not be mailed."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, abort, current_app, flash, redirect, request, url_for
from flask_login import current_user
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.core.extensions import csrf
from webapp.customers import queries as customer_queries
from webapp.customers import tasks as customer_tasks
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV
from webapp.customers.models import Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.suppressions import queries as suppression_queries
from webapp.views import rendering
from webapp.views.staff.blueprint import needs
from webapp.views.staff.customers import check_csrf, csv_answer
from webapp.views.staff.forms.customers import ImportForm, SuppressionForm, SuppressionSearch

room = Blueprint("suppressions", __name__)

PAGE = 50


@room.get("/customers/do-not-mail")
def index() -> Response:
    """The list by address, found as one types."""
    search = SuppressionSearch(request.args)
    q, reason, after = search.q.data or "", search.reason.data or "", request.args.get("after", "")
    found = suppression_queries.page(q, reason, after, PAGE)
    shown = found[:PAGE]
    kept: dict[str, Any] = {name: value for name, value in (("q", q), ("reason", reason)) if value}
    here = "staff.suppressions.index"
    return rendering.render(
        "customers/suppressions.html",
        form=search,
        shown=shown,
        mailings=campaign_queries.offer_names(listed.campaign_id for listed in shown),
        counts=suppression_queries.count(),
        narrowed=bool(kept),
        first_url=url_for(here, **kept) if after else None,
        next_url=url_for(here, **kept, after=shown[-1].email) if len(found) > PAGE else None,
    )


@room.route("/customers/do-not-mail/new", methods=["GET", "POST"])
@needs("manager")
def new() -> BaseResponse:
    """Put one address on the list."""
    form = SuppressionForm(email=request.args.get("email", ""))
    if form.validate_on_submit():
        try:
            given = form.email.data or ""
            listed, was = suppression_actions.add(
                given, form.reason.data or "", current_user.email, form.words.data or ""
            )
            flash(_said(" ".join(given.split()), listed, was), "info" if was else "success")
            return redirect(_back(listed.email))
        except DomainError as error:
            rendering.attach(form, error)
    status = 422 if form.is_submitted() else 200
    return rendering.render("customers/new_suppression.html", status=status, form=form)


@room.route("/customers/do-not-mail/lift", methods=["GET", "POST"])
@needs("manager")
def lift() -> BaseResponse:
    """Let an address be mailed again, after saying what that means; one that is no customer's only by an admin."""
    # PostgreSQL has no NUL, so nothing is called like that.
    key = request.values.get("email", "").replace("\0", "")
    found = suppression_queries.of_email(key) or suppression_queries.by_key(key)
    if found is None:
        raise NotFound("This address is not on the list.")
    if customer_queries.by_email(found.email) is None and not current_user.may("admin"):
        abort(403, "Your role does not allow this. Ask an administrator.")
    form = FlaskForm()
    if form.validate_on_submit():
        back = _back(found.email)
        suppression_actions.lift(key, by=current_user.email)
        flash(f"{key} may be mailed again.", "success")
        return redirect(back)
    return rendering.render(
        "customers/lift_suppression.html",
        form=form,
        listed=found,
        key=key,
        back=_back(found.email),
        mailings=campaign_queries.offer_names([found.campaign_id]),
    )


@room.get("/customers/do-not-mail.csv")
@needs("manager")
def download() -> Response:
    """The whole list, as it comes from the database."""
    suppression_actions.note_export(by=current_user.email)
    return csv_answer(suppression_queries.export(), "do-not-mail.csv")


@room.get("/customers/do-not-mail/import")
@needs("manager")
def import_form() -> Response:
    """Choose a file of addresses."""
    return _import_page(ImportForm())


@room.post("/customers/do-not-mail/import")
@csrf.exempt
def receive() -> BaseResponse:
    """Take an uploaded list while it arrives. Its token stands before it, so it is checked before the file."""
    limit: int = current_app.config["SETTINGS"].max_upload
    request.max_content_length = 2 * limit
    form = ImportForm()
    try:
        if (request.content_length or 0) > limit + upload.FIELDS_MAX:
            raise upload.too_large(limit)
        sent = upload.form(request.stream, request.headers.get("Content-Type", ""), limit)
        check_csrf(sent)
        if not sent.filename:
            raise Invalid(FieldError("file", "file_missing", "Choose a file first."))
        import_id = customer_tasks.receive_import(
            sent.pieces, sent.filename, CSV, "", by=current_user.email, kind="suppressions"
        )
    except DomainError as error:
        upload.drain(request.stream, 2 * limit)
        rendering.attach(form, error)
        return _import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _import_page(form: ImportForm, status: int = 200) -> Response:
    limit = current_app.config["SETTINGS"].max_upload // 1024 // 1024
    return rendering.render("customers/import_suppressions.html", status=status, form=form, limit_mb=limit)


def _said(given: str, listed: Suppression, was: str | None) -> str:
    if was is None:
        return f"{given} is not mailed any more."
    if was == listed.reason:
        return f"{given} was on the list already ({was}) and stays there as it was."
    return f"{given} was on the list already ({was}); now it stands there as {listed.reason}."


def _back(email: str) -> str:
    """The page of the customer who has the address, else the list."""
    customer = customer_queries.by_email(email)
    if customer is not None:
        return url_for("staff.customers.show", customer_id=customer.id)
    return url_for("staff.suppressions.index", q=email)
