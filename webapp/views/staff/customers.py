"""Staff pages for customers and audiences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, flash, redirect, request, stream_with_context, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.core.errors import DomainError, NotFound
from webapp.customers import actions as customer_actions
from webapp.customers import audience_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience
from webapp.customers.suppressions import queries as suppression_queries
from webapp.offers import queries as offer_queries
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import evaluate
from webapp.views import rendering
from webapp.views.access_notes import note_access
from webapp.views.form_base import PostForm
from webapp.views.staff.blueprint import require_recent_password, require_role
from webapp.views.staff.forms.customers import AudienceForm, CustomerForm, CustomerSearchForm
from webapp.views.staff.forms.redemptions import CHANNEL_LABELS

blueprint = Blueprint("customers", __name__)

PAGE_SIZE = 50
MAX_USABLE_OFFERS_SHOWN = 20


# --- customers -----------------------------------------------------------------------------------


@blueprint.get("/customers")
def index() -> Response:
    """List customers, newest first, with a search."""
    form = CustomerSearchForm(request.args)
    form.set_audience_choices(customer_queries.list_audiences())
    audience_id, q = form.selected_audience_id(), form.q.data or ""
    before, after = (request.args.get(name, type=rendering.parse_row_id) for name in ("before", "after"))
    rows = customer_queries.list_customers(q, audience_id, before=before, after=after, limit=PAGE_SIZE)
    customers = rows[-PAGE_SIZE:] if after is not None else rows[:PAGE_SIZE]
    has_newer = bool(customers) and (len(rows) > PAGE_SIZE if after is not None else before is not None)
    has_older = bool(customers) and (after is not None or len(rows) > PAGE_SIZE)
    filters: dict[str, Any] = {name: value for name, value in form.data.items() if value}
    note_access("customers.listed")
    return rendering.render(
        "customers/index.html",
        form=form,
        customers=customers,
        suppression_reasons=customer_queries.find_suppression_reasons([customer.id for customer in customers]),
        total=customer_queries.count_customers(),
        is_filtered=bool(filters),
        export_url=url_for("staff.customers.download", audience=audience_id or None),
        prev_url=url_for("staff.customers.index", **filters, after=customers[0].id) if has_newer else None,
        next_url=url_for("staff.customers.index", **filters, before=customers[-1].id) if has_older else None,
    )


@blueprint.get("/customers.csv")
@require_role("manager")
def download() -> Response:
    """Export all customers, or those of an audience, as CSV."""
    audience = None
    if "audience" in request.args:
        audience = _get_audience_or_404(_parse_audience_id(request.args["audience"]))
    customer_actions.record_customer_export(audience, by=current_user.email)
    return csv_response(
        customer_queries.export_customers(audience.id if audience is not None else None), "customers.csv"
    )


@blueprint.get("/customers/<int:customer_id>")
def show(customer_id: int) -> Response:
    """Show a customer with redemptions, available offers and campaign emails."""
    customer = customer_queries.find_customer(customer_id)
    if customer is None:
        raise NotFound(_("This customer does not exist."))
    suppression = suppression_queries.find_suppression_by_email(customer.email)
    campaign_ids = [suppression.campaign_id] if suppression is not None else []
    deliveries = delivery_queries.list_customer_deliveries(customer.id)
    usable_offers = [
        facts.offer
        for facts in redemption_facts.load_current_offer_facts(customer.id)
        if evaluate(facts).reason is None
    ]
    offers = offer_queries.find_offers([item.campaign.offer_id for item in deliveries])
    note_access("customer.viewed", f"customer {customer_id}")
    return rendering.render(
        "customers/show.html",
        customer=customer,
        suppression=suppression,
        offer_names_by_campaign=campaign_queries.get_offer_names_by_campaign(campaign_ids),
        audiences=customer_queries.list_customer_audiences(customer.id),
        usable_offers=usable_offers[:MAX_USABLE_OFFERS_SHOWN],
        more_usable_offers=max(0, len(usable_offers) - MAX_USABLE_OFFERS_SHOWN),
        redemptions=redemption_queries.list_customer_redemptions(customer.id),
        deliveries=deliveries,
        offer_names={offer.id: offer.name for offer in offers.values()},
        channels=CHANNEL_LABELS,
    )


@blueprint.route("/customers/new", methods=["GET", "POST"])
@require_role("manager")
def new() -> BaseResponse:
    """Create a customer."""
    form = CustomerForm()
    form.set_audience_choices(customer_queries.list_audiences())
    if form.validate_on_submit():
        try:
            customer = customer_actions.create_customer(
                form.to_values(), form.selected_audience_ids(), by=current_user.email
            )
            flash(_("The customer %(email)s was created.", email=customer.email_as_given), "success")
            return redirect(url_for("staff.customers.show", customer_id=customer.id))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    return rendering.render("customers/edit.html", status=rendering.form_status(form), form=form, customer_id=None)


@blueprint.route("/customers/<int:customer_id>/edit", methods=["GET", "POST"])
@require_role("manager")
def edit(customer_id: int) -> BaseResponse:
    """Edit a customer."""
    customer = customer_queries.find_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        raise NotFound(_("This customer does not exist."))
    form = CustomerForm()
    form.set_audience_choices(customer_queries.list_audiences())
    title = customer.email_as_given
    if form.validate_on_submit():
        try:
            customer_actions.update_customer(
                customer_id, form.to_values(), form.selected_audience_ids(), by=current_user.email
            )
            flash(_("The customer was saved."), "success")
            return redirect(url_for("staff.customers.show", customer_id=customer_id))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    elif request.method == "GET":
        form.fill_from_customer(customer, customer_queries.list_customer_audiences(customer_id))
    # The page contains the stored email address also when the input is invalid.
    note_access("customer.viewed", f"customer {customer_id}")
    status = rendering.form_status(form)
    return rendering.render("customers/edit.html", status=status, form=form, customer_id=customer_id, title=title)


@blueprint.route("/customers/<int:customer_id>/erase", methods=["GET", "POST"])
@require_role("admin")
@require_recent_password
def erase(customer_id: int) -> BaseResponse:
    """Erase a customer's personal data after a confirmation page."""
    customer = customer_queries.find_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        raise NotFound(_("This customer does not exist."))
    form = PostForm()
    if form.validate_on_submit():
        customer_actions.erase_customer(customer_id, by=current_user.email)
        flash(_("The customer was erased. The redemptions are still counted."), "success")
        return redirect(url_for("staff.customers.show", customer_id=customer_id))
    note_access("customer.viewed", f"customer {customer_id}")
    return rendering.render(
        "customers/erase.html",
        form=form,
        customer=customer,
        redemption_count=len(redemption_queries.list_customer_redemptions(customer_id)),
        delivery_count=len(delivery_queries.list_customer_deliveries(customer_id)),
    )


# --- audiences -----------------------------------------------------------------------------------


@blueprint.route("/customers/audiences", methods=["GET", "POST"])
def audiences() -> BaseResponse:
    """List audiences with their sizes, and create one."""
    form = AudienceForm()
    if form.validate_on_submit():
        try:
            audience = audience_actions.create_audience(form.name.data or "", by=current_user.email)
            flash(
                _("The audience %(name)s was created. Next, import customers into it.", name=audience.name), "success"
            )
            return redirect(url_for("staff.customers.audiences"))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    status = rendering.form_status(form)
    return rendering.render(
        "customers/audiences.html", status=status, form=form, audiences=customer_queries.list_audience_summaries()
    )


@blueprint.route("/customers/audiences/<int:audience_id>", methods=["GET", "POST"])
@require_role("manager")
def edit_audience(audience_id: int) -> BaseResponse:
    """Rename an audience."""
    audience = _get_audience_or_404(audience_id)
    form = AudienceForm(name=audience.name)
    title = audience.name
    if form.validate_on_submit():
        try:
            audience_actions.rename_audience(audience_id, form.name.data or "", by=current_user.email)
            flash(_("The audience was renamed."), "success")
            return redirect(url_for("staff.customers.audiences"))
        except DomainError as error:
            rendering.add_form_errors(form, error)
    status = rendering.form_status(form)
    return rendering.render("customers/audience.html", status=status, form=form, title=title)


def _get_audience_or_404(audience_id: int) -> Audience:
    audience = customer_queries.find_audience(audience_id)
    if audience is None:
        raise NotFound(_("This audience does not exist."))
    return audience


def _parse_audience_id(text: str) -> int:
    # An invalid id must not export the customers of all audiences.
    try:
        return rendering.parse_row_id(text)
    except ValueError:
        raise NotFound(_("This audience does not exist.")) from None


def csv_response(chunks: Iterator[bytes], filename: str) -> Response:
    """Return a streamed CSV download; the request context stays active for the chunks."""
    response = Response(stream_with_context(chunks), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return response
