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
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import csrf
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV, NDJSON
from webapp.customers.models import Audience, CustomerImport
from webapp.customers.suppressions import queries as suppression_queries
from webapp.offers import queries as offer_queries
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import evaluate
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.forms.customers import AudienceForm, CustomerForm, CustomerSearchForm, ImportForm
from webapp.views.staff.forms.redemptions import CHANNEL_LABELS

blueprint = Blueprint("customers", __name__)

PAGE_SIZE = 50
MAX_USABLE_OFFERS_SHOWN = 20
SAMPLE_CSV = (
    "email,name,source_id,locale,audience\r\n"
    "ada@example.com,Ada Lovelace,C-1001,en-GB,Newsletter\r\n"
    'grace@example.com,"Hopper, Grace",C-1002,en-US,\r\n'
)


# --- customers -----------------------------------------------------------------------------------


@blueprint.get("/customers")
def index() -> Response:
    """Customers, newest first, found as one types."""
    form = CustomerSearchForm(request.args)
    form.set_audience_choices(customer_queries.list_audiences())
    audience_id, q = form.selected_audience_id(), form.q.data or ""
    before, after = request.args.get("before", type=_parse_row_id), request.args.get("after", type=_parse_row_id)
    found = customer_queries.list_customers(q, audience_id, before=before, after=after, limit=PAGE_SIZE)
    shown = found[-PAGE_SIZE:] if after is not None else found[:PAGE_SIZE]
    newer = bool(shown) and (len(found) > PAGE_SIZE if after is not None else before is not None)
    older = bool(shown) and (after is not None or len(found) > PAGE_SIZE)
    kept: dict[str, Any] = {name: value for name, value in form.data.items() if value}
    return rendering.render(
        "customers/index.html",
        form=form,
        shown=shown,
        suppressed=customer_queries.find_suppression_reasons([customer.id for customer in shown]),
        total=customer_queries.count_customers(),
        narrowed=bool(kept),
        export_url=url_for("staff.customers.download", audience=audience_id or None),
        prev_url=url_for("staff.customers.index", **kept, after=shown[0].id) if newer else None,
        next_url=url_for("staff.customers.index", **kept, before=shown[-1].id) if older else None,
    )


@blueprint.get("/customers.csv")
@require_role("manager")
def download() -> Response:
    """All customers, or those of an audience, as they come from the database."""
    audience_id = request.args.get("audience", type=_parse_row_id)
    audience = _get_audience_or_404(audience_id) if audience_id is not None else None
    customer_actions.record_customer_export(audience, by=current_user.email)
    return csv_response(customer_queries.export_customers(audience_id), "customers.csv")


@blueprint.get("/customers/<int:customer_id>")
def show(customer_id: int) -> Response:
    """One customer: who, in which audiences, what was redeemed, what was mailed."""
    customer = customer_queries.find_customer(_check_row_id(customer_id))
    if customer is None:
        raise NotFound("There is no such customer.")
    listed = suppression_queries.find_suppression_by_email(customer.email)
    mailed = delivery_queries.list_customer_deliveries(customer.id)
    usable = [
        facts.offer for facts in redemption_facts.load_open_offer_facts(customer.id) if evaluate(facts).reason is None
    ]
    offers = offer_queries.find_offers([mail.campaign.offer_id for mail in mailed])
    return rendering.render(
        "customers/show.html",
        customer=customer,
        listed=listed,
        mailings=campaign_queries.get_offer_names_by_campaign([listed.campaign_id]) if listed is not None else {},
        audiences=customer_queries.list_customer_audiences(customer.id),
        usable=usable[:MAX_USABLE_OFFERS_SHOWN],
        usable_too=len(usable) - MAX_USABLE_OFFERS_SHOWN,
        redeemed=redemption_queries.list_customer_redemptions(customer.id),
        mailed=mailed,
        offer_names={offer.id: offer.name for offer in offers.values()},
        channels=CHANNEL_LABELS,
    )


@blueprint.route("/customers/new", methods=["GET", "POST"])
@require_role("manager")
def new() -> BaseResponse:
    """Enter one customer."""
    form = CustomerForm()
    form.set_audience_choices(customer_queries.list_audiences())
    if form.validate_on_submit():
        try:
            customer = customer_actions.create_customer(
                form.values(), form.selected_audience_ids(), by=current_user.email
            )
            flash(f"{customer.email_as_given} is entered.", "success")
            return redirect(url_for("staff.customers.show", customer_id=customer.id))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    return rendering.render(
        "customers/edit.html", status=422 if form.is_submitted() else 200, form=form, customer_id=None
    )


@blueprint.route("/customers/<int:customer_id>/edit", methods=["GET", "POST"])
@require_role("manager")
def edit(customer_id: int) -> BaseResponse:
    """Change one customer."""
    customer = customer_queries.find_customer(_check_row_id(customer_id))
    if customer is None or customer.erased_at is not None:
        raise NotFound("There is no such customer.")
    form = CustomerForm()
    form.set_audience_choices(customer_queries.list_audiences())
    title = customer.email_as_given
    if form.validate_on_submit():
        try:
            customer_actions.update_customer(
                customer_id, form.values(), form.selected_audience_ids(), by=current_user.email
            )
            flash("The changes are saved.", "success")
            return redirect(url_for("staff.customers.show", customer_id=customer_id))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    elif request.method == "GET":
        form.fill_from_customer(customer, customer_queries.list_customer_audiences(customer_id))
    status = 422 if form.is_submitted() else 200
    return rendering.render("customers/edit.html", status=status, form=form, customer_id=customer_id, title=title)


@blueprint.route("/customers/<int:customer_id>/erase", methods=["GET", "POST"])
@require_role("admin")
def erase(customer_id: int) -> BaseResponse:
    """Forget who a customer is, after saying what stays."""
    customer = customer_queries.find_customer(_check_row_id(customer_id))
    if customer is None or customer.erased_at is not None:
        raise NotFound("There is no such customer.")
    form = FlaskForm()
    if form.validate_on_submit():
        customer_actions.erase_customer(customer_id, by=current_user.email)
        flash("The customer is erased. What they redeemed is still counted.", "success")
        return redirect(url_for("staff.customers.show", customer_id=customer_id))
    return rendering.render(
        "customers/erase.html",
        form=form,
        customer=customer,
        uses=len(redemption_queries.list_customer_redemptions(customer_id)),
        mails=len(delivery_queries.list_customer_deliveries(customer_id)),
    )


# --- audiences -----------------------------------------------------------------------------------


@blueprint.route("/customers/audiences", methods=["GET", "POST"])
def audiences() -> BaseResponse:
    """Every audience with its size, and a new one."""
    form = AudienceForm()
    if form.validate_on_submit():
        try:
            audience = customer_actions.create_audience(form.name.data or "", by=current_user.email)
            flash(f"The audience {audience.name} is made. Import customers into it.", "success")
            return redirect(url_for("staff.customers.audiences"))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    status = 422 if form.is_submitted() else 200
    return rendering.render(
        "customers/audiences.html", status=status, form=form, audiences=customer_queries.list_audience_summaries()
    )


@blueprint.route("/customers/audiences/<int:audience_id>", methods=["GET", "POST"])
@require_role("manager")
def edit_audience(audience_id: int) -> BaseResponse:
    """Rename an audience."""
    found = _get_audience_or_404(audience_id)
    form = AudienceForm(name=found.name)
    title = found.name
    if form.validate_on_submit():
        try:
            customer_actions.rename_audience(audience_id, form.name.data or "", by=current_user.email)
            flash("The audience has its new name.", "success")
            return redirect(url_for("staff.customers.audiences"))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    status = 422 if form.is_submitted() else 200
    return rendering.render("customers/audience.html", status=status, form=form, title=title)


# --- imports -------------------------------------------------------------------------------------


@blueprint.get("/customers/import")
@require_role("manager")
def import_form() -> Response:
    """Choose a file of customers."""
    return _render_import_page(ImportForm(audience=request.args.get("audience", "")))


@blueprint.post("/customers/import")
@csrf.exempt
def receive_upload() -> BaseResponse:
    """Take an uploaded file while it arrives. Its fields stand before it, so the token is checked before the file."""
    limit: int = current_app.config["SETTINGS"].max_upload_bytes
    # The form's fields and boundaries come on top; what is too large is read and thrown away, so that we can say so.
    request.max_content_length = 2 * limit
    form = ImportForm()
    try:
        if (request.content_length or 0) > limit + upload.MAX_FIELDS_SIZE:
            raise upload.file_too_large_error(limit)
        sent = upload.parse_multipart_form(request.stream, request.headers.get("Content-Type", ""), limit)
        check_upload_csrf(sent)
        form = ImportForm(audience=sent.fields.get("audience", ""))
        import_id = _start_import(sent)
    except DomainError as error:
        upload.drain_body(request.stream, 2 * limit)
        rendering.add_form_errors(form, error)
        return _render_import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _start_import(sent: upload.Upload) -> int:
    if not sent.filename:
        raise InvalidInput(FieldError("file", "file_missing", "Choose a file first."))
    media_type = NDJSON if sent.filename.lower().endswith((".ndjson", ".jsonl")) else CSV
    audience = sent.fields.get("audience", "")
    return import_actions.store_import_file(sent.chunks, sent.filename, media_type, audience, by=current_user.email)


def check_upload_csrf(sent: upload.Upload) -> None:
    """What CSRFProtect does for other forms, without reading the file for it."""
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(sent.fields.get("csrf_token") or request.headers.get("X-CSRFToken"))
    except ValidationError as error:
        upload.drain_body(request.stream, 2 * current_app.config["SETTINGS"].max_upload_bytes)
        raise CSRFError(str(error)) from error


def _render_import_page(form: ImportForm, status: int = 200) -> Response:
    limit = current_app.config["SETTINGS"].max_upload_bytes // 1024 // 1024
    return rendering.render(
        "customers/import.html", status=status, form=form, audiences=customer_queries.list_audiences(), limit_mb=limit
    )


@blueprint.get("/customers/import/sample.csv")
def download_sample() -> Response:
    """A file to start from."""
    return csv_response(iter([SAMPLE_CSV.encode()]), "customers-sample.csv")


@blueprint.get("/customers/imports")
def imports() -> Response:
    """All imports, newest first."""
    before = request.args.get("before", type=_parse_row_id)
    found = customer_queries.list_imports(before, PAGE_SIZE)
    shown = found[:PAGE_SIZE]
    return rendering.render(
        "customers/imports.html",
        shown=shown,
        prev_url=url_for("staff.customers.imports") if before is not None else None,
        next_url=url_for("staff.customers.imports", before=shown[-1].id) if len(found) > PAGE_SIZE else None,
    )


@blueprint.get("/customers/imports/<int:import_id>")
def show_import(import_id: int) -> Response:
    """How far an import is; the card renews itself until it is over."""
    row = _get_import_or_404(import_id)
    place = pagination.decode_cursor(request.args.get("cursor"), 2)
    found = customer_queries.list_rejected_rows(row.id, place, PAGE_SIZE) if not row.is_open else []
    shown = found[:PAGE_SIZE]
    following = pagination.encode_cursor(shown[-1].line, shown[-1].id) if len(found) > PAGE_SIZE else None
    here = "staff.customers.show_import"
    return rendering.render(
        "customers/show_import.html",
        block="card",
        row=row,
        audience=customer_queries.find_audience(row.audience_id) if row.audience_id else None,
        pace=row.rows_per_second(datetime.now(UTC)),
        rejections=shown,
        first_url=url_for(here, import_id=row.id) if place else None,
        next_url=url_for(here, import_id=row.id, cursor=following) if following else None,
    )


@blueprint.get("/customers/imports/<int:import_id>/rejected.csv")
@require_role("manager")
def download_rejected_rows(import_id: int) -> Response:
    """The rows that could not be taken, with their reasons, as they come from the database."""
    row = _get_import_or_404(import_id)
    customer_actions.record_rejected_rows_export(row.id, by=current_user.email)
    return csv_response(customer_queries.export_rejected_rows(row.id), f"import-{row.id}-rejected.csv")


def _get_import_or_404(import_id: int) -> CustomerImport:
    row = customer_queries.find_import(_check_row_id(import_id))
    if row is None:
        raise NotFound("There is no such import.")
    return row


def _get_audience_or_404(audience_id: int) -> Audience:
    found = customer_queries.find_audience(_check_row_id(audience_id))
    if found is None:
        raise NotFound("There is no such audience.")
    return found


def _check_row_id(row_id: int) -> int:
    """A number that can be the id of a row."""
    if row_id >= 1 << 63:
        raise NotFound("There is nothing here.")
    return row_id


def _parse_row_id(given: str) -> int:
    return _check_row_id(int(given)) if given.isascii() and given.isdigit() else 0


def csv_response(pieces: Iterator[bytes], name: str) -> Response:
    response = Response(stream_with_context(pieces), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
