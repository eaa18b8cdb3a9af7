"""Staff screens of customers, audiences and imports."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, stream_with_context, url_for
from flask_login import current_user
from flask_wtf import FlaskForm
from flask_wtf.csrf import CSRFError, validate_csrf
from werkzeug.wrappers import Response as BaseResponse
from wtforms.validators import ValidationError

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.core import pagination
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.core.extensions import csrf
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers import tasks as customer_tasks
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV, NDJSON
from webapp.customers.models import Audience, CustomerImport
from webapp.customers.suppressions import queries as suppression_queries
from webapp.offers import queries as offer_queries
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import verdict
from webapp.views import rendering
from webapp.views.staff.blueprint import needs
from webapp.views.staff.forms.customers import AudienceForm, CustomerForm, ImportForm, SearchForm
from webapp.views.staff.forms.redemptions import CHANNEL_WORDS

room = Blueprint("customers", __name__)

PAGE = 50
USABLE = 20
SAMPLE = (
    "email,name,source_id,locale,audience\r\n"
    "ada@example.com,Ada Lovelace,C-1001,en-GB,Newsletter\r\n"
    'grace@example.com,"Hopper, Grace",C-1002,en-US,\r\n'
)


# --- customers -----------------------------------------------------------------------------------


@room.get("/customers")
def index() -> Response:
    """Customers, newest first, found as one types."""
    form = SearchForm(request.args)
    form.offer(customer_queries.audiences())
    audience_id, q = form.audience_id(), form.q.data or ""
    before, after = request.args.get("before", type=_row_id), request.args.get("after", type=_row_id)
    found = customer_queries.page(q, audience_id, before=before, after=after, limit=PAGE)
    shown = found[-PAGE:] if after is not None else found[:PAGE]
    newer = bool(shown) and (len(found) > PAGE if after is not None else before is not None)
    older = bool(shown) and (after is not None or len(found) > PAGE)
    kept: dict[str, Any] = {name: value for name, value in form.data.items() if value}
    return rendering.render(
        "customers/index.html",
        form=form,
        shown=shown,
        suppressed=customer_queries.suppressed_among([customer.id for customer in shown]),
        total=customer_queries.total(),
        narrowed=bool(kept),
        export_url=url_for("staff.customers.download", audience=audience_id or None),
        prev_url=url_for("staff.customers.index", **kept, after=shown[0].id) if newer else None,
        next_url=url_for("staff.customers.index", **kept, before=shown[-1].id) if older else None,
    )


@room.get("/customers.csv")
@needs("manager")
def download() -> Response:
    """All customers, or those of an audience, as they come from the database."""
    audience_id = request.args.get("audience", type=_row_id)
    audience = _audience(audience_id) if audience_id is not None else None
    customer_actions.note_export(audience, by=current_user.email)
    return csv_answer(customer_queries.export(audience_id), "customers.csv")


@room.get("/customers/<int:customer_id>")
def show(customer_id: int) -> Response:
    """One customer: who, in which audiences, what was redeemed, what was mailed."""
    customer = customer_queries.by_id(_known(customer_id))
    if customer is None:
        raise NotFound("There is no such customer.")
    listed = suppression_queries.of_email(customer.email)
    mailed = delivery_queries.of_customer(customer.id)
    usable = [facts.offer for facts in redemption_facts.usable(customer.id) if verdict(facts).reason is None]
    offers = offer_queries.by_ids([mail.campaign.offer_id for mail in mailed])
    return rendering.render(
        "customers/show.html",
        customer=customer,
        listed=listed,
        mailings=campaign_queries.offer_names([listed.campaign_id]) if listed is not None else {},
        audiences=customer_queries.audiences_of(customer.id),
        usable=usable[:USABLE],
        usable_too=len(usable) - USABLE,
        redeemed=redemption_queries.of_customer(customer.id),
        mailed=mailed,
        offer_names={offer.id: offer.name for offer in offers.values()},
        channels=CHANNEL_WORDS,
    )


@room.route("/customers/new", methods=["GET", "POST"])
@needs("manager")
def new() -> BaseResponse:
    """Enter one customer."""
    form = CustomerForm()
    form.offer(customer_queries.audiences())
    if form.validate_on_submit():
        try:
            customer = customer_actions.create(form.values(), form.audience_ids(), by=current_user.email)
            flash(f"{customer.email_as_given} is entered.", "success")
            return redirect(url_for("staff.customers.show", customer_id=customer.id))
        except DomainError as error:
            rendering.attach(form, error)
    return rendering.render(
        "customers/edit.html", status=422 if form.is_submitted() else 200, form=form, customer_id=None
    )


@room.route("/customers/<int:customer_id>/edit", methods=["GET", "POST"])
@needs("manager")
def edit(customer_id: int) -> BaseResponse:
    """Change one customer."""
    customer = customer_queries.by_id(_known(customer_id))
    if customer is None or customer.erased_at is not None:
        raise NotFound("There is no such customer.")
    form = CustomerForm()
    form.offer(customer_queries.audiences())
    title = customer.email_as_given
    if form.validate_on_submit():
        try:
            customer_actions.change(customer_id, form.values(), form.audience_ids(), by=current_user.email)
            flash("The changes are saved.", "success")
            return redirect(url_for("staff.customers.show", customer_id=customer_id))
        except DomainError as error:
            rendering.attach(form, error)
    elif request.method == "GET":
        form.show(customer, customer_queries.audiences_of(customer_id))
    status = 422 if form.is_submitted() else 200
    return rendering.render("customers/edit.html", status=status, form=form, customer_id=customer_id, title=title)


@room.route("/customers/<int:customer_id>/erase", methods=["GET", "POST"])
@needs("admin")
def erase(customer_id: int) -> BaseResponse:
    """Forget who a customer is, after saying what stays."""
    customer = customer_queries.by_id(_known(customer_id))
    if customer is None or customer.erased_at is not None:
        raise NotFound("There is no such customer.")
    form = FlaskForm()
    if form.validate_on_submit():
        customer_actions.erase(customer_id, by=current_user.email)
        flash("The customer is erased. What they redeemed is still counted.", "success")
        return redirect(url_for("staff.customers.show", customer_id=customer_id))
    return rendering.render(
        "customers/erase.html",
        form=form,
        customer=customer,
        uses=len(redemption_queries.of_customer(customer_id)),
        mails=len(delivery_queries.of_customer(customer_id)),
    )


# --- audiences -----------------------------------------------------------------------------------


@room.route("/customers/audiences", methods=["GET", "POST"])
def audiences() -> BaseResponse:
    """Every audience with its size, and a new one."""
    form = AudienceForm()
    if form.validate_on_submit():
        try:
            audience = customer_actions.create_audience(form.name.data or "", by=current_user.email)
            flash(f"The audience {audience.name} is made. Import customers into it.", "success")
            return redirect(url_for("staff.customers.audiences"))
        except DomainError as error:
            rendering.attach(form, error)
    status = 422 if form.is_submitted() else 200
    return rendering.render(
        "customers/audiences.html", status=status, form=form, audiences=customer_queries.audience_sizes()
    )


@room.route("/customers/audiences/<int:audience_id>", methods=["GET", "POST"])
@needs("manager")
def audience(audience_id: int) -> BaseResponse:
    """Rename an audience."""
    found = _audience(audience_id)
    form = AudienceForm(name=found.name)
    title = found.name
    if form.validate_on_submit():
        try:
            customer_actions.rename_audience(audience_id, form.name.data or "", by=current_user.email)
            flash("The audience has its new name.", "success")
            return redirect(url_for("staff.customers.audiences"))
        except DomainError as error:
            rendering.attach(form, error)
    status = 422 if form.is_submitted() else 200
    return rendering.render("customers/audience.html", status=status, form=form, title=title)


# --- imports -------------------------------------------------------------------------------------


@room.get("/customers/import")
@needs("manager")
def import_form() -> Response:
    """Choose a file of customers."""
    return _import_page(ImportForm(audience=request.args.get("audience", "")))


@room.post("/customers/import")
@csrf.exempt
def receive() -> BaseResponse:
    """Take an uploaded file while it arrives. Its fields stand before it, so the token is checked before the file."""
    limit: int = current_app.config["SETTINGS"].max_upload
    # The form's fields and boundaries come on top; what is too large is read and thrown away, so that we can say so.
    request.max_content_length = 2 * limit
    form = ImportForm()
    try:
        if (request.content_length or 0) > limit + upload.FIELDS_MAX:
            raise upload.too_large(limit)
        sent = upload.form(request.stream, request.headers.get("Content-Type", ""), limit)
        check_csrf(sent)
        form = ImportForm(audience=sent.fields.get("audience", ""))
        import_id = _receive(sent)
    except DomainError as error:
        upload.drain(request.stream, 2 * limit)
        rendering.attach(form, error)
        return _import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _receive(sent: upload.Upload) -> int:
    if not sent.filename:
        raise Invalid(FieldError("file", "file_missing", "Choose a file first."))
    media_type = NDJSON if sent.filename.lower().endswith((".ndjson", ".jsonl")) else CSV
    audience = sent.fields.get("audience", "")
    return customer_tasks.receive_import(sent.pieces, sent.filename, media_type, audience, by=current_user.email)


def check_csrf(sent: upload.Upload) -> None:
    """What CSRFProtect does for other forms, without reading the file for it."""
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(sent.fields.get("csrf_token") or request.headers.get("X-CSRFToken"))
    except ValidationError as error:
        upload.drain(request.stream, 2 * current_app.config["SETTINGS"].max_upload)
        raise CSRFError(str(error)) from error


def _import_page(form: ImportForm, status: int = 200) -> Response:
    limit = current_app.config["SETTINGS"].max_upload // 1024 // 1024
    return rendering.render(
        "customers/import.html", status=status, form=form, audiences=customer_queries.audiences(), limit_mb=limit
    )


@room.get("/customers/import/sample.csv")
def sample() -> Response:
    """A file to start from."""
    return csv_answer(iter([SAMPLE.encode()]), "customers-sample.csv")


@room.get("/customers/imports")
def imports() -> Response:
    """All imports, newest first."""
    before = request.args.get("before", type=_row_id)
    found = customer_queries.imports(before, PAGE)
    shown = found[:PAGE]
    return rendering.render(
        "customers/imports.html",
        shown=shown,
        prev_url=url_for("staff.customers.imports") if before is not None else None,
        next_url=url_for("staff.customers.imports", before=shown[-1].id) if len(found) > PAGE else None,
    )


@room.get("/customers/imports/<int:import_id>")
def show_import(import_id: int) -> Response:
    """How far an import is; the card renews itself until it is over."""
    row = _import(import_id)
    place = pagination.read(request.args.get("cursor"), 2)
    found = customer_queries.rejections(row.id, place, PAGE) if not row.is_open else []
    shown = found[:PAGE]
    following = pagination.write(shown[-1].line, shown[-1].id) if len(found) > PAGE else None
    here = "staff.customers.show_import"
    return rendering.render(
        "customers/show_import.html",
        block="card",
        row=row,
        audience=customer_queries.audience_by_id(row.audience_id) if row.audience_id else None,
        pace=row.pace(datetime.now(UTC)),
        rejections=shown,
        first_url=url_for(here, import_id=row.id) if place else None,
        next_url=url_for(here, import_id=row.id, cursor=following) if following else None,
    )


@room.get("/customers/imports/<int:import_id>/rejected.csv")
@needs("manager")
def rejected(import_id: int) -> Response:
    """The rows that could not be taken, with their reasons, as they come from the database."""
    row = _import(import_id)
    customer_actions.note_refused_rows_export(row.id, by=current_user.email)
    return csv_answer(customer_queries.rejections_file(row.id), f"import-{row.id}-rejected.csv")


def _import(import_id: int) -> CustomerImport:
    row = customer_queries.import_by_id(_known(import_id))
    if row is None:
        raise NotFound("There is no such import.")
    return row


def _audience(audience_id: int) -> Audience:
    found = customer_queries.audience_by_id(_known(audience_id))
    if found is None:
        raise NotFound("There is no such audience.")
    return found


def _known(row_id: int) -> int:
    """A number that can be the id of a row."""
    if row_id >= 1 << 63:
        raise NotFound("There is nothing here.")
    return row_id


def _row_id(given: str) -> int:
    return _known(int(given)) if given.isascii() and given.isdigit() else 0


def csv_answer(pieces: Iterator[bytes], name: str) -> Response:
    response = Response(stream_with_context(pieces), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
