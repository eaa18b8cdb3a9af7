"""Staff pages for offers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import segno
from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_login import current_user
from markupsafe import Markup
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.core import database_clock, formatting
from webapp.core.errors import DomainError, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import address_limit, count_queries, guessing
from webapp.redemptions import queries as redemption_queries
from webapp.views import rendering
from webapp.views.access_notes import note_access
from webapp.views.staff.blueprint import preserve_form_data, refreshes_itself, require_role
from webapp.views.staff.forms.offers import OfferForm, OfferSearchForm, RenewCodeForm
from webapp.views.staff.forms.redemptions import CHANNEL_LABELS

blueprint = Blueprint("offers", __name__)

PAGE_SIZE = 25
CHART_DAYS = 30
LATEST_REDEMPTIONS_SHOWN = 10

_preserve_offer_form = preserve_form_data(
    name=_l("Name"),
    code=_l("Code"),
    discount_percent=_l("Percentage"),
    discount_amount=_l("Amount"),
    discount_currency=_l("Currency"),
    time_zone=_l("Time zone"),
    starts_at=_l("First day"),
    starts_at_time=_l("Start time"),
    ends_at=_l("Last day"),
    ends_at_time=_l("End time"),
    max_redemptions=_l("Redemption limit"),
)


@blueprint.get("/offers")
def index() -> Response:
    """List offers, newest first, with a search."""
    form = OfferSearchForm(request.args)
    state = form.selected_state()
    before_id, after_id = (request.args.get(name, type=rendering.parse_row_id) for name in ("before", "after"))
    rows = offer_queries.list_offers(form.q.data or "", state, before_id=before_id, after_id=after_id, limit=PAGE_SIZE)
    offers = rows[-PAGE_SIZE:] if after_id is not None else rows[:PAGE_SIZE]
    filters = {name: value for name, value in form.data.items() if value}
    has_newer = bool(offers) and (len(rows) > PAGE_SIZE if after_id is not None else before_id is not None)
    has_older = bool(offers) and (after_id is not None or len(rows) > PAGE_SIZE)
    return rendering.render(
        "offers/index.html",
        form=form,
        offers=offers,
        at=database_clock.get_database_time(),
        redeemed=count_queries.count_redemptions([offer.id for offer in offers]),
        failed_attempts=guessing.find_guessing_alerts([offer.id for offer in offers]),
        is_filtered=bool(filters),
        prev_url=url_for("staff.offers.index", **filters, after=offers[0].id) if has_newer else None,
        next_url=url_for("staff.offers.index", **filters, before=offers[-1].id) if has_older else None,
    )


@blueprint.route("/offers/new", methods=["GET", "POST"])
@require_role("manager")
@_preserve_offer_form
def new() -> BaseResponse:
    """Create an offer."""
    form = _build_form()
    if request.method == "GET":
        form.time_zone.data = current_user.time_zone
        form.starts_at.data = datetime.now(ZoneInfo(current_user.time_zone)).date()
    if not form.validate_on_submit():
        return _render_edit_page(form, None, rendering.form_status(form))
    try:
        offer = offer_actions.create_offer(form.to_values(), by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return _render_edit_page(form, None, error.status)
    flash(_("The offer was created. Next, write the email that announces it."), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer.id))


@blueprint.get("/offers/<int:offer_id>")
def show(offer_id: int) -> Response:
    """Show one offer: its codes, its campaigns and its redemptions."""
    offer = _get_offer_or_404(offer_id)
    link = f"{current_app.config['SETTINGS'].public_url}{url_for('public.redemptions.redeem_form', code=offer.code)}"
    qr_code = segno.make(link, error="m").svg_inline(scale=4, border=2, omitsize=True)
    campaigns = campaign_queries.list_offer_campaigns(offer.id)
    # Includes campaigns that were cancelled while sending, because some recipients have their email.
    launched_campaigns = [campaign for campaign in campaigns if campaign.launched_at is not None]
    stats_by_campaign = stats_queries.get_stats_by_campaign([campaign.id for campaign in launched_campaigns])
    return rendering.render(
        "offers/show.html",
        offer=offer,
        at=database_clock.get_database_time(),
        failed_attempts=guessing.find_guessing_alerts([offer.id]).get(offer.id),
        addresses_over_limit=address_limit.count_addresses_over_limit([offer.id]).get(offer.id),
        customers_per_address=current_app.config["SETTINGS"].public_customers_per_address,
        audience=_audience_name(offer),
        codes=offer_queries.list_codes_by_offer([offer.id])[offer.id],
        link=link,
        qr=Markup(qr_code),  # noqa: S704
        chart=_redemption_chart(offer),
        campaigns=campaigns,
        stats_by_campaign=stats_by_campaign,
        announcement=campaign_queries.find_current_campaign(offer.id, "announcement"),
        reminder=campaign_queries.find_current_campaign(offer.id, "reminder"),
        is_launched=bool(launched_campaigns),
        emails_sent=sum(
            stats_by_campaign[campaign.id].sent for campaign in launched_campaigns if campaign.kind == "announcement"
        ),
        **_redemption_context(offer),
    )


@blueprint.get("/offers/<int:offer_id>/live")
@refreshes_itself
def redemptions_section(offer_id: int) -> Response:
    """Render the section with the redemptions, which refreshes itself."""
    offer = _get_offer_or_404(offer_id)
    return rendering.render(
        "offers/_redemptions.html", offer=offer, at=database_clock.get_database_time(), **_redemption_context(offer)
    )


@blueprint.route("/offers/<int:offer_id>/edit", methods=["GET", "POST"])
@require_role("manager")
@_preserve_offer_form
def edit(offer_id: int) -> BaseResponse:
    """Edit an offer."""
    offer = _get_offer_or_404(offer_id)
    form = _build_form()
    if request.method == "GET":
        form.fill_from_offer(offer)
    if not form.validate_on_submit():
        return _render_edit_page(form, offer, rendering.form_status(form))
    try:
        changes = vars(form.to_values(offer))
        offer_actions.update_offer(offer_id, changes, form.submitted_version(), by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        if error.key == "conflict":
            # The user has seen the conflict: saving again is a deliberate decision.
            form.version.data = str(_get_offer_or_404(offer_id).version)
        return _render_edit_page(form, offer, error.status)
    flash(_("The offer was saved."), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


@blueprint.post("/offers/<int:offer_id>/pause")
def pause(offer_id: int) -> BaseResponse:
    """Pause an offer."""
    offer_actions.pause_offer(offer_id, by=current_user.email)
    flash(_("The offer is paused. It can't be redeemed until you resume it."), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


@blueprint.post("/offers/<int:offer_id>/resume")
def resume(offer_id: int) -> BaseResponse:
    """Resume an offer."""
    offer_actions.resume_offer(offer_id, by=current_user.email)
    flash(_("The offer was resumed and can be redeemed again."), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


@blueprint.route("/offers/<int:offer_id>/code", methods=["GET", "POST"])
@require_role("manager")
def renew_code(offer_id: int) -> BaseResponse:
    """Assign another code to an offer."""
    offer, form = _get_offer_or_404(offer_id), RenewCodeForm()
    previous_code = offer.code_as_written
    if not form.validate_on_submit():
        return rendering.render("offers/renew.html", status=rendering.form_status(form), form=form, offer=offer)
    try:
        offer = code_actions.renew_code(offer_id, (form.code.data or "").strip() or None, by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return rendering.render("offers/renew.html", status=error.status, form=form, offer=_get_offer_or_404(offer_id))
    if offer.code_as_written == previous_code:
        flash(_("%(code)s is already the code of this offer. Nothing was changed.", code=previous_code), "info")
    elif offer.frozen_at is not None:
        message = _(
            "The code is now %(code)s. %(before)s stays valid until you close it.",
            code=offer.code_as_written,
            before=previous_code,
        )
        flash(message, "success")
    else:
        flash(_("The code is now %(code)s.", code=offer.code_as_written), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


@blueprint.post("/offers/<int:offer_id>/codes/<code>/close")
def close_code(offer_id: int, code: str) -> BaseResponse:
    """Close an earlier code."""
    with rendering.flash_domain_error():
        code_actions.close_code(offer_id, code, by=current_user.email)
        flash(_("%(code)s is closed and no longer valid.", code=code), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


@blueprint.post("/offers/<int:offer_id>/codes/<code>/reopen")
def reopen_code(offer_id: int, code: str) -> BaseResponse:
    """Reopen a closed code."""
    code_actions.reopen_code(offer_id, code, by=current_user.email)
    flash(_("%(code)s is valid again.", code=code), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


@blueprint.post("/offers/<int:offer_id>/personal-code")
def personal_code(offer_id: int) -> BaseResponse:
    """Require personal codes, or accept the shared code too."""
    value = request.form.get("required")
    if value not in ("yes", "no"):
        # An incomplete request must not switch the protection off.
        raise DomainError("invalid_payload", _("Choose whether personal codes are required: yes or no."), 422)
    is_required = value == "yes"
    offer_actions.set_personal_code_required(offer_id, is_required, by=current_user.email)
    if is_required:
        flash(_("Personal codes are required now. The shared code alone is not accepted."), "success")
    else:
        flash(_("Personal codes are no longer required. The shared code is accepted too."), "success")
    return redirect(url_for("staff.offers.show", offer_id=offer_id))


def _build_form() -> OfferForm:
    form = OfferForm()
    form.set_audience_choices(customer_queries.list_audiences())
    return form


def _render_edit_page(form: OfferForm, offer: Offer | None, status: int) -> Response:
    return rendering.render("offers/edit.html", status=status, form=form, offer=offer)


def _get_offer_or_404(offer_id: int) -> Offer:
    offer = offer_queries.find_offer(offer_id)
    if offer is None:
        raise NotFound(_("This offer does not exist."))
    return offer


def _audience_name(offer: Offer) -> str:
    names = {audience.id: audience.name for audience in customer_queries.list_audiences()}
    return names[offer.audience_id] if offer.audience_id else _("All customers")


def _redemption_context(offer: Offer) -> dict[str, Any]:
    latest = redemption_queries.list_latest_redemptions(offer.id, LATEST_REDEMPTIONS_SHOWN)
    if latest:
        note_access("redemptions.listed", offer.code_as_written)
    return {
        "redeemed": count_queries.count_redemptions([offer.id])[offer.id],
        "latest": latest,
        "channels": CHANNEL_LABELS,
    }


def _redemption_chart(offer: Offer) -> dict[str, Any]:
    """Return the chart of redemptions by day, for the last month of the offer.

    Days are those of the time zone of the offer.
    """
    time_zone = ZoneInfo(offer.time_zone)
    now = database_clock.get_database_time()
    # The offer ends before `ends_at`, which usually is the midnight after its last day.
    last = min(now, offer.ends_at - timedelta(microseconds=1) if offer.ends_at else now).astimezone(time_zone).date()
    first = last - timedelta(days=CHART_DAYS - 1)
    since = datetime.combine(first, datetime.min.time(), time_zone)
    counted = dict(count_queries.count_redemptions_per_day(offer.id, since, offer.time_zone))
    last = max([last, *counted])
    days = [first + timedelta(days=offset) for offset in range((last - first).days + 1)]
    return {
        "kind": "bars",
        "x": [day.isoformat() for day in days],
        "x_texts": [formatting.format_date(day) for day in days],
        "series": [{"label": _("Redemptions"), "values": [counted.get(day, 0) for day in days]}],
        "x_label": _("Day"),
    }
