"""Launch page of a campaign: review, launch, schedule and unschedule."""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo

from flask import Response, current_app, flash, redirect, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import parse_template
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.models import Campaign
from webapp.core import database_clock, formatting
from webapp.core.errors import DomainError, NotFound
from webapp.mail import addresses
from webapp.mail.template import Placeholder
from webapp.offers.models import Offer
from webapp.views import rendering
from webapp.views.staff.blueprint import refreshes_itself, require_role
from webapp.views.staff.campaign_editor import blueprint
from webapp.views.staff.campaign_pages import (
    audience_name,
    campaign_content,
    campaign_url,
    get_campaign_or_404,
    get_offer_or_404,
    preview_email,
)
from webapp.views.staff.forms.campaigns import LaunchForm

# A second launch by the same user within this time is a double click or a page that was sent again.
REPEATED_CLICK = timedelta(seconds=30)

# These views belong to the blueprint of the editor, so that their endpoints keep its name.
__all__ = ["blueprint"]


@blueprint.get("/offers/<int:offer_id>/launch")
@require_role("manager")
def redirect_to_announcement(offer_id: int) -> BaseResponse:
    """Redirect the former URL of the launch page to that of the offer's announcement."""
    get_offer_or_404(offer_id)
    announcement = campaign_queries.find_announcement(offer_id)
    if announcement is None:
        return redirect(url_for("staff.campaign_editor.new", offer_id=offer_id, kind="announcement"), 303)
    return redirect(campaign_url(announcement, to_launch=True), 303)


@blueprint.post("/offers/<int:offer_id>/launch")
def launch_announcement_from_old_page(offer_id: int) -> BaseResponse:
    """Launch an offer's announcement now.

    Kept for pages that an earlier version of Onecode rendered.
    """
    offer = get_offer_or_404(offer_id)
    try:
        launched = launch_actions.launch_announcement(offer_id, by=current_user.email)
    except DomainError as error:
        announcement = campaign_queries.find_announcement(offer_id)
        if announcement is None or announcement.status not in ("draft", "scheduled"):
            raise
        form = LaunchForm(formdata=None)
        form.fill_from_campaign(announcement, offer.time_zone)
        rendering.add_form_errors(form, error)
        return _render_review(offer, announcement, form, error.status)
    return _redirect_after_launch(launched)


@blueprint.get("/campaigns/<int:campaign_id>/launch")
@require_role("manager")
def review(campaign_id: int) -> BaseResponse:
    """Show the launch page: preview, number of recipients, and the launch time if scheduled."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status not in ("draft", "scheduled"):
        return redirect(campaign_url(campaign), 303)
    offer = get_offer_or_404(campaign.offer_id)
    form = LaunchForm(formdata=None)
    form.fill_from_campaign(campaign, offer.time_zone)
    return _render_review(offer, campaign, form)


@blueprint.post("/campaigns/<int:campaign_id>/launch")
def launch(campaign_id: int) -> BaseResponse:
    """Launch the campaign now, or schedule it."""
    campaign = get_campaign_or_404(campaign_id)
    offer = get_offer_or_404(campaign.offer_id)
    form = LaunchForm()
    try:
        if not form.validate_on_submit():
            return _render_review(offer, campaign, form, 422)
        at = form.parse_launch_time(offer.time_zone)
        if at is None:
            launched = launch_actions.launch_campaign(
                campaign_id, current_user.email, form.includes_earlier_recipients(), form.expected_status()
            )
        else:
            launched = launch_actions.schedule_campaign(
                campaign_id, at, current_user.email, form.includes_earlier_recipients(), form.expected_status()
            )
    except DomainError as error:
        campaign = get_campaign_or_404(campaign_id)
        if campaign.status not in ("draft", "scheduled"):
            # The campaign was launched or cancelled concurrently: show its current page.
            flash(error.message, "error")
            return redirect(campaign_url(campaign), 303)
        rendering.add_form_errors(form, error)
        # The page now shows the current status, so the next submission refers to it.
        form.rendered_status.data = campaign.status
        return _render_review(get_offer_or_404(campaign.offer_id), campaign, form, error.status)
    return _redirect_after_launch(launched)


@blueprint.post("/campaigns/<int:campaign_id>/draft")
def unschedule(campaign_id: int) -> BaseResponse:
    """Turn a scheduled campaign back into a draft."""
    try:
        campaign = launch_actions.unschedule_campaign(campaign_id, by=current_user.email)
    except NotFound:
        # NotFound is a DomainError too, but the error handler renders it as a page.
        raise
    except DomainError as error:
        flash(error.message, "error")
        return redirect(campaign_url(get_campaign_or_404(campaign_id)), 303)
    flash(_("The campaign is a draft again and will not be launched automatically."), "success")
    return redirect(url_for("staff.campaign_editor.edit", campaign_id=campaign.id), 303)


@blueprint.get("/campaigns/<int:campaign_id>/waits")
@require_role("manager")
@refreshes_itself
def redirect_if_launched(campaign_id: int) -> Response:
    """Redirect the polling launch page once the campaign was launched or cancelled; 204 before."""
    campaign = get_campaign_or_404(campaign_id)
    response = Response(status=204)
    if campaign.status not in ("draft", "scheduled"):
        response.headers["HX-Redirect"] = campaign_url(campaign)
    return response


def _redirect_after_launch(launched: launch_actions.LaunchResult) -> BaseResponse:
    campaign = launched.campaign
    if campaign.status == "scheduled":
        offer = get_offer_or_404(campaign.offer_id)
        launch_time = formatting.format_datetime(campaign.scheduled_at, offer.time_zone)
        flash(_("The campaign will be launched automatically on %(time)s.", time=launch_time), "success")
    elif launched.changed or _is_repeated_click(campaign):
        flash(_("Launched. You can leave this page: the emails are sent in the background."), "success")
    else:
        flash(_("This campaign is already launched. Nothing is sent twice."), "info")
    return redirect(campaign_url(campaign), 303)


def _is_repeated_click(campaign: Campaign) -> bool:
    """Return whether the same user has just launched the campaign: the second request of a double click."""
    return (
        campaign.launched_by == current_user.email
        and campaign.launched_at is not None
        and database_clock.get_database_time() - campaign.launched_at < REPEATED_CLICK
    )


def _render_review(offer: Offer, campaign: Campaign, form: LaunchForm, status: int = 200) -> Response:
    return rendering.render(
        "campaigns/launch.html",
        status=status,
        form=form,
        offer=offer,
        campaign=campaign,
        preview=preview_email(campaign_content(campaign), offer, customer_email=""),
        is_sample_subject=any(
            isinstance(part, Placeholder) and part.name.startswith("customer.")
            for part in parse_template(campaign.subject)
        ),
        uses_mail_sink=current_app.config["SETTINGS"].uses_mail_sink,
        shop=rendering.load_shop(),
        sender=addresses.format_sender(rendering.load_shop()),
        audience_count=launch_audience.count_campaign_recipients(campaign, offer),
        audience=audience_name(offer.audience_id),
        launch_times_in_other_zones=_format_launch_time_in_other_zones(campaign, offer),
        now=database_clock.get_database_time(),
    )


def _format_launch_time_in_other_zones(campaign: Campaign, offer: Offer) -> list[str]:
    """Format the launch time in the staff member's time zone and in UTC.

    Zones with the same offset as the offer's are omitted.
    """
    at = campaign.scheduled_at
    if at is None:
        return []
    shown_offsets = {at.astimezone(ZoneInfo(offer.time_zone)).utcoffset()}
    times = []
    own_zone = current_user.time_zone
    for zone in dict.fromkeys((own_zone, "UTC")):
        offset = at.astimezone(ZoneInfo(zone)).utcoffset()
        if offset not in shown_offsets:
            shown_offsets.add(offset)
            time = formatting.format_datetime(at, zone)
            times.append(_("%(time)s for you", time=time) if zone == own_zone else time)
    return times
