"""Staff pages for redemptions."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, flash, redirect, request, stream_with_context, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.core import formatting, pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.request_origin import get_request_origin
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries
from webapp.offers.models import normalise_code
from webapp.overview.eligibility import Explanation, explain_eligibility
from webapp.redemptions import export as redemption_export
from webapp.redemptions import export_actions, group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.redemptions.rules import StaffEntry
from webapp.views import rendering
from webapp.views.access_notes import note_access
from webapp.views.staff.blueprint import refreshes_itself, require_role
from webapp.views.staff.forms.redemptions import (
    CHANNEL_LABELS,
    CHECK_LABELS,
    EligibilityForm,
    RedemptionSearchForm,
    StaffRedeemForm,
    UndoForm,
)

blueprint = Blueprint("redemptions", __name__)

PAGE_SIZE = 50


@blueprint.get("/redemptions")
@refreshes_itself
def index() -> BaseResponse:
    """List redemptions, newest first.

    Rolled-back ones are not listed; a search for the reference of one redirects to it. htmx refreshes the first page.
    With a channel, a page may be empty and still link to older redemptions.
    """
    form = RedemptionSearchForm(request.args)
    rolled_back_record = _find_rolled_back_redemption(form)
    if rolled_back_record is not None:
        return redirect(url_for("staff.redemptions.show", public_id=rolled_back_record.public_id))
    position = pagination.decode_cursor(request.args.get("cursor"), 3)
    redemption_filter = _build_filter(form)
    after = KeysetCursor.from_integers(*position) if position else None
    scan = (
        redemption_queries.scan_redemptions(redemption_filter, PAGE_SIZE, after)
        if redemption_filter
        else redemption_queries.ScanPage([], None)
    )
    field_names = {field.name for field in form}
    filters: dict[str, Any] = {name: value for name, value in request.args.items() if value and name in field_names}
    next_cursor = pagination.encode_cursor(*scan.next_cursor.to_integers()) if scan.next_cursor else None
    note_access("redemptions.listed")
    return rendering.render(
        "redemptions/index.html",
        form=form,
        redemptions=scan.redemptions,
        scan_ended_at=scan.next_cursor.redeemed_at if scan.next_cursor and len(scan.redemptions) < PAGE_SIZE else None,
        channels=CHANNEL_LABELS,
        is_filtered=bool(filters),
        refresh_url=None if position else url_for("staff.redemptions.index", **filters),
        export_url=url_for("staff.redemptions.download", **filters),
        first_url=url_for("staff.redemptions.index", **filters) if position else None,
        next_url=url_for("staff.redemptions.index", **filters, cursor=next_cursor) if next_cursor else None,
    )


@blueprint.get("/redemptions.csv")
@require_role("manager")
def download() -> Response:
    """Export all redemptions that match the filters as a streamed CSV file."""
    form = RedemptionSearchForm(request.args)
    redemption_filter = _build_filter(form)
    export_actions.record_redemption_export(redemption_filter, by=current_user.email)
    records = redemption_queries.stream_redemptions(redemption_filter) if redemption_filter else iter(())
    response = Response(stream_with_context(redemption_export.generate_redemption_csv(records)), mimetype="text/csv")
    response.headers["Content-Disposition"] = 'attachment; filename="redemptions.csv"'
    return response


@blueprint.route("/redemptions/new", methods=["GET", "POST"])
@require_role("manager")
def new() -> BaseResponse:
    """Redeem an offer on behalf of a customer."""
    form = StaffRedeemForm(code=request.args.get("code"), email=request.args.get("email"))
    if not form.validate_on_submit():
        return rendering.render("redemptions/new.html", status=rendering.form_status(form), form=form)
    try:
        staff = StaffEntry(current_user.id, current_user.email, get_request_origin())
        record = group_commit.redeem(form.to_request(staff))
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return rendering.render("redemptions/new.html", status=error.status, form=form)
    message = _(
        "%(offer)s (%(discount)s) was redeemed for %(email)s.",
        offer=record.offer_name,
        discount=formatting.format_discount(record.discount),
        email=record.email,
    )
    flash(message, "success")
    return redirect(url_for("staff.redemptions.show", public_id=record.public_id))


@blueprint.get("/why-not")
def check_eligibility() -> Response:
    """Explain the eligibility of a customer for a code, check by check."""
    form = EligibilityForm(request.args)
    try:
        explanation = None
        # Links from other pages may fill in only one of the two.
        if {"who", "code"} <= request.args.keys():
            explanation = explain_eligibility(form.to_request(), current_user.time_zone)
            if explanation.facts.customer_id is not None:
                note_access("customer.viewed", f"customer {explanation.facts.customer_id}")
    except InvalidInput as error:
        rendering.add_form_errors(form, error)
        return _render_eligibility_page(form, status=422)
    return _render_eligibility_page(form, explanation)


def _render_eligibility_page(
    form: EligibilityForm, explanation: Explanation | None = None, status: int = 200
) -> Response:
    return rendering.render(
        "redemptions/eligibility.html",
        status=status,
        form=form,
        explanation=explanation,
        check_labels=CHECK_LABELS,
        channels=CHANNEL_LABELS,
    )


@blueprint.get("/redemptions/<public_id>")
def show(public_id: str) -> Response:
    """Show a redemption, whether it was rolled back or not."""
    record = _get_redemption_or_404(public_id)
    return _render_redemption(record, UndoForm())


@blueprint.post("/redemptions/<public_id>/undo")
def undo(public_id: str) -> BaseResponse:
    """Undo a redemption, with a reason."""
    record = _get_redemption_or_404(public_id)
    form = UndoForm()
    if not form.validate_on_submit():
        return _render_redemption(record, form, 422)
    try:
        redemption_rollback.roll_back_redemption(public_id, form.reason.data or "", by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return _render_redemption(_get_redemption_or_404(public_id), form, error.status)
    message = _(
        "The redemption was undone. %(email)s can redeem %(offer)s again.", email=record.email, offer=record.offer_name
    )
    flash(message, "success")
    return redirect(url_for("staff.redemptions.show", public_id=public_id))


def _render_redemption(record: RedemptionRecord, form: UndoForm, status: int = 200) -> Response:
    note_access("redemption.viewed", f"customer {record.customer_id}")
    return rendering.render(
        "redemptions/show.html", status=status, redemption=record, channels=CHANNEL_LABELS, undo_form=form
    )


def _get_redemption_or_404(public_id: str) -> RedemptionRecord:
    record = redemption_queries.find_redemption(public_id)
    if record is None:
        raise NotFound(_("No redemption has this reference."))
    return record


def _build_filter(form: RedemptionSearchForm) -> RedemptionFilter | None:
    """Return the filter of the list; None if a date is invalid, or the code, customer or reference does not exist.

    A reference matches one redemption, the only current one of its customer and its offer.
    """
    if not form.validate():
        return None
    offer_id = customer_id = None
    since, until = form.time_range(current_user.time_zone)
    try:
        if (form.code.data or "").strip():
            offer = offer_queries.find_offer_by_code(normalise_code(form.code.data or ""))
            if offer is None:
                return None
            offer_id = offer.id
        search = (form.customer.data or "").strip()
        if "@" in search:
            customer = customer_queries.find_customer_by_email(normalise_email(search))
            if customer is None:
                return None
            customer_id = customer.id
        elif search:
            record = _find_by_reference(form)
            if record is None or record.row.rolled_back_at is not None or offer_id not in (None, record.offer_id):
                return None
            offer_id, customer_id = record.offer_id, record.customer_id
    except InvalidInput:
        return None
    return RedemptionFilter(
        offer_id, customer_id, form.channel.data if form.channel.data in CHANNEL_LABELS else None, since, until
    )


def _find_rolled_back_redemption(form: RedemptionSearchForm) -> RedemptionRecord | None:
    """Return the rolled-back redemption with the reference in the form, if any.

    The list contains no rolled-back redemptions.
    """
    record = _find_by_reference(form)
    return record if record is not None and record.row.rolled_back_at is not None else None


def _find_by_reference(form: RedemptionSearchForm) -> RedemptionRecord | None:
    """Return the redemption, current or rolled back, with the reference in the form, if any."""
    reference = (form.customer.data or "").replace(" ", "")
    return redemption_queries.find_redemption(reference) if reference and "@" not in reference else None
