"""Staff screens of redemptions."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, flash, redirect, request, stream_with_context, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.core import formatting, pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, Invalid, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries
from webapp.offers.models import normalise_code
from webapp.overview.why_not import Explanation, explain
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import export as redemption_export
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import Filter, Place, Redeemed
from webapp.views import rendering
from webapp.views.staff.blueprint import needs
from webapp.views.staff.forms.redemptions import (
    CHANNEL_WORDS,
    CHECK_WORDS,
    SearchForm,
    StaffRedeemForm,
    UndoForm,
    WhyNotForm,
)

room = Blueprint("redemptions", __name__)

PAGE = 50


@room.get("/redemptions")
def index() -> BaseResponse:
    """Live redemptions, newest first; the first page renews itself. With a channel it may say to look further back."""
    form = SearchForm(request.args)
    form.validate()
    undone = _undone(form)
    if undone is not None:
        return redirect(url_for("staff.redemptions.show", public_id=undone.public_id))
    place = pagination.read(request.args.get("cursor"), 3)
    narrowed = _filter(form)
    after = Place.of(*place) if place else None
    found = redemption_queries.stretch(narrowed, PAGE, after) if narrowed else redemption_queries.Stretch([], None)
    kept: dict[str, Any] = {name: value for name, value in request.args.items() if value and name in form}
    following = pagination.write(*found.following.numbers()) if found.following else None
    return rendering.render(
        "redemptions/index.html",
        form=form,
        shown=found.shown,
        looked_to=found.following.redeemed_at if found.following and len(found.shown) < PAGE else None,
        channels=CHANNEL_WORDS,
        narrowed=bool(kept),
        live_url=None if place else url_for("staff.redemptions.index", **kept),
        export_url=url_for("staff.redemptions.download", **kept),
        first_url=url_for("staff.redemptions.index", **kept) if place else None,
        next_url=url_for("staff.redemptions.index", **kept, cursor=following) if following else None,
    )


@room.get("/redemptions.csv")
@needs("manager")
def download() -> Response:
    """All redemptions that the filters leave, as they come from the database."""
    form = SearchForm(request.args)
    form.validate()
    narrowed = _filter(form)
    redemption_actions.note_export(narrowed, by=current_user.email)
    rows = redemption_queries.export(narrowed) if narrowed else iter(())
    response = Response(stream_with_context(redemption_export.lines(rows)), mimetype="text/csv")
    response.headers["Content-Disposition"] = 'attachment; filename="redemptions.csv"'
    return response


@room.route("/redemptions/new", methods=["GET", "POST"])
@needs("manager")
def new() -> BaseResponse:
    """Redeem by hand for a customer."""
    form = StaffRedeemForm(code=request.args.get("code"), email=request.args.get("email"))
    if not form.validate_on_submit():
        return rendering.render("redemptions/new.html", status=422 if form.is_submitted() else 200, form=form)
    try:
        done = group_commit.redeem(form.ask())
    except DomainError as error:
        rendering.attach(form, error)
        return rendering.render("redemptions/new.html", status=error.status, form=form)
    flash(f"Redeemed: {formatting.discount(done.discount)}, {done.offer_name}, for {done.email}.", "success")
    return redirect(url_for("staff.redemptions.show", public_id=done.public_id))


@room.get("/why-not")
def why_not() -> Response:
    """A customer and a code in; every check of the rule out, with the fact behind it."""
    form = WhyNotForm(request.args)
    if not any(request.args.get(name) for name in ("who", "code")):
        return _why_not(form)
    try:
        # A page that links here may know only one of the two.
        told = explain(form.ask()) if {"who", "code"} <= request.args.keys() else None
    except Invalid as error:
        rendering.attach(form, error)
        return _why_not(form, status=422)
    return _why_not(form, told)


def _why_not(form: WhyNotForm, told: Explanation | None = None, status: int = 200) -> Response:
    return rendering.render(
        "redemptions/why_not.html",
        status=status,
        form=form,
        told=told,
        labels=CHECK_WORDS,
        channels=CHANNEL_WORDS,
    )


@room.get("/redemptions/<public_id>")
def show(public_id: str) -> Response:
    """One redemption, with what became of it."""
    return _show(_redeemed(public_id), UndoForm())


@room.post("/redemptions/<public_id>/undo")
def undo(public_id: str) -> BaseResponse:
    """Undo it, with a reason."""
    done = _redeemed(public_id)
    form = UndoForm()
    if not form.validate_on_submit():
        return _show(done, form, 422)
    try:
        redemption_rollback.rollback(public_id, form.reason.data or "", by=current_user.email)
    except DomainError as error:
        rendering.attach(form, error)
        return _show(_redeemed(public_id), form, error.status)
    flash(f"Undone. {done.email} may use {done.offer_name} again.", "success")
    return redirect(url_for("staff.redemptions.show", public_id=public_id))


def _show(done: Redeemed, form: UndoForm, status: int = 200) -> Response:
    return rendering.render("redemptions/show.html", status=status, done=done, channels=CHANNEL_WORDS, undo=form)


def _redeemed(public_id: str) -> Redeemed:
    done = redemption_queries.find(public_id)
    if done is None:
        raise NotFound("There is no redemption with this reference.")
    return done


def _filter(form: SearchForm) -> Filter | None:
    """What to narrow the list to; None when that can't have any."""
    offer_id = customer_id = None
    since, until = form.days(current_user.time_zone)
    try:
        if (form.code.data or "").strip():
            offer = offer_queries.by_code(normalise_code(form.code.data or ""))
            if offer is None:
                return None
            offer_id = offer.id
        if (form.who.data or "").strip():
            customer_id = _customer_id((form.who.data or "").strip())
            if customer_id is None:
                return None
    except Invalid:
        return None
    return Filter(
        offer_id, customer_id, form.channel.data if form.channel.data in CHANNEL_WORDS else None, since, until
    )


def _undone(form: SearchForm) -> Redeemed | None:
    """The redemption that was asked for by its reference, when it is in no list of live ones any more."""
    who = (form.who.data or "").replace(" ", "")
    done = redemption_queries.find(who) if who and "@" not in who else None
    return done if done is not None and done.use.rolled_back_at is not None else None


def _customer_id(who: str) -> int | None:
    """Whose e-mail this is, or whose redemption has this reference."""
    if "@" not in who:
        done = redemption_queries.find(who.replace(" ", ""))
        return done.customer_id if done else None
    customer = customer_queries.by_email(normalise_email(who))
    return customer.id if customer else None
