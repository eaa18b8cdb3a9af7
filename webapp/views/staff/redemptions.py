"""Staff screens of redemptions."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, flash, redirect, request, stream_with_context, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.core import formatting, pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries
from webapp.offers.models import normalise_code
from webapp.overview.why_not import Explanation, explain_eligibility
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import export as redemption_export
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.forms.redemptions import (
    CHANNEL_LABELS,
    CHECK_LABELS,
    RedemptionSearchForm,
    StaffRedeemForm,
    UndoForm,
    WhyNotForm,
)

blueprint = Blueprint("redemptions", __name__)

PAGE_SIZE = 50


@blueprint.get("/redemptions")
def index() -> BaseResponse:
    """Live redemptions, newest first; the first page renews itself. With a channel it may say to look further back."""
    form = RedemptionSearchForm(request.args)
    form.validate()
    undone = _find_rolled_back(form)
    if undone is not None:
        return redirect(url_for("staff.redemptions.show", public_id=undone.public_id))
    place = pagination.decode_cursor(request.args.get("cursor"), 3)
    narrowed = _build_filter(form)
    after = KeysetCursor.from_integers(*place) if place else None
    found = (
        redemption_queries.scan_redemptions(narrowed, PAGE_SIZE, after)
        if narrowed
        else redemption_queries.ScanPage([], None)
    )
    kept: dict[str, Any] = {name: value for name, value in request.args.items() if value and name in form}
    following = pagination.encode_cursor(*found.next_cursor.to_integers()) if found.next_cursor else None
    return rendering.render(
        "redemptions/index.html",
        form=form,
        shown=found.redemptions,
        looked_to=found.next_cursor.redeemed_at if found.next_cursor and len(found.redemptions) < PAGE_SIZE else None,
        channels=CHANNEL_LABELS,
        narrowed=bool(kept),
        live_url=None if place else url_for("staff.redemptions.index", **kept),
        export_url=url_for("staff.redemptions.download", **kept),
        first_url=url_for("staff.redemptions.index", **kept) if place else None,
        next_url=url_for("staff.redemptions.index", **kept, cursor=following) if following else None,
    )


@blueprint.get("/redemptions.csv")
@require_role("manager")
def download() -> Response:
    """All redemptions that the filters leave, as they come from the database."""
    form = RedemptionSearchForm(request.args)
    form.validate()
    narrowed = _build_filter(form)
    redemption_actions.record_redemption_export(narrowed, by=current_user.email)
    rows = redemption_queries.stream_redemptions(narrowed) if narrowed else iter(())
    response = Response(stream_with_context(redemption_export.generate_redemption_csv(rows)), mimetype="text/csv")
    response.headers["Content-Disposition"] = 'attachment; filename="redemptions.csv"'
    return response


@blueprint.route("/redemptions/new", methods=["GET", "POST"])
@require_role("manager")
def new() -> BaseResponse:
    """Redeem by hand for a customer."""
    form = StaffRedeemForm(code=request.args.get("code"), email=request.args.get("email"))
    if not form.validate_on_submit():
        return rendering.render("redemptions/new.html", status=422 if form.is_submitted() else 200, form=form)
    try:
        done = group_commit.redeem(form.to_request())
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return rendering.render("redemptions/new.html", status=error.status, form=form)
    flash(f"Redeemed: {formatting.format_discount(done.discount)}, {done.offer_name}, for {done.email}.", "success")
    return redirect(url_for("staff.redemptions.show", public_id=done.public_id))


@blueprint.get("/why-not")
def why_not() -> Response:
    """A customer and a code in; every check of the rule out, with the fact behind it."""
    form = WhyNotForm(request.args)
    if not any(request.args.get(name) for name in ("who", "code")):
        return _render_why_not(form)
    try:
        # A page that links here may know only one of the two.
        told = explain_eligibility(form.to_request()) if {"who", "code"} <= request.args.keys() else None
    except InvalidInput as error:
        rendering.add_form_errors(form, error)
        return _render_why_not(form, status=422)
    return _render_why_not(form, told)


def _render_why_not(form: WhyNotForm, told: Explanation | None = None, status: int = 200) -> Response:
    return rendering.render(
        "redemptions/why_not.html",
        status=status,
        form=form,
        told=told,
        labels=CHECK_LABELS,
        channels=CHANNEL_LABELS,
    )


@blueprint.get("/redemptions/<public_id>")
def show(public_id: str) -> Response:
    """One redemption, with what became of it."""
    return _render_redemption(_get_redemption(public_id), UndoForm())


@blueprint.post("/redemptions/<public_id>/undo")
def undo(public_id: str) -> BaseResponse:
    """Undo it, with a reason."""
    done = _get_redemption(public_id)
    form = UndoForm()
    if not form.validate_on_submit():
        return _render_redemption(done, form, 422)
    try:
        redemption_rollback.roll_back_redemption(public_id, form.reason.data or "", by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return _render_redemption(_get_redemption(public_id), form, error.status)
    flash(f"Undone. {done.email} may use {done.offer_name} again.", "success")
    return redirect(url_for("staff.redemptions.show", public_id=public_id))


def _render_redemption(done: RedemptionRecord, form: UndoForm, status: int = 200) -> Response:
    return rendering.render("redemptions/show.html", status=status, done=done, channels=CHANNEL_LABELS, undo=form)


def _get_redemption(public_id: str) -> RedemptionRecord:
    done = redemption_queries.find_redemption(public_id)
    if done is None:
        raise NotFound("There is no redemption with this reference.")
    return done


def _build_filter(form: RedemptionSearchForm) -> RedemptionFilter | None:
    """What to narrow the list to; None when that can't have any."""
    offer_id = customer_id = None
    since, until = form.time_range(current_user.time_zone)
    try:
        if (form.code.data or "").strip():
            offer = offer_queries.find_offer_by_code(normalise_code(form.code.data or ""))
            if offer is None:
                return None
            offer_id = offer.id
        if (form.who.data or "").strip():
            customer_id = _find_customer_id((form.who.data or "").strip())
            if customer_id is None:
                return None
    except InvalidInput:
        return None
    return RedemptionFilter(
        offer_id, customer_id, form.channel.data if form.channel.data in CHANNEL_LABELS else None, since, until
    )


def _find_rolled_back(form: RedemptionSearchForm) -> RedemptionRecord | None:
    """The redemption that was asked for by its reference, when it is in no list of live ones any more."""
    who = (form.who.data or "").replace(" ", "")
    done = redemption_queries.find_redemption(who) if who and "@" not in who else None
    return done if done is not None and done.row.rolled_back_at is not None else None


def _find_customer_id(who: str) -> int | None:
    """Whose e-mail this is, or whose redemption has this reference."""
    if "@" not in who:
        done = redemption_queries.find_redemption(who.replace(" ", ""))
        return done.customer_id if done else None
    customer = customer_queries.find_customer_by_email(normalise_email(who))
    return customer.id if customer else None
