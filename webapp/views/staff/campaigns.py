"""Staff pages for launched campaigns.

The pages for drafts are in `campaign_editor` and `campaign_launch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, stream_with_context, url_for
from flask_babel import gettext as _
from flask_babel import ngettext
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import export as delivery_export
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries import smtp_replies
from webapp.campaigns.deliveries import status as delivery_status
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.core import formatting
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, InvalidInput
from webapp.customers import queries as customer_queries
from webapp.monitoring import queries as monitoring_queries
from webapp.offers import queries as offer_queries
from webapp.views import rendering
from webapp.views.access_notes import note_access
from webapp.views.staff.blueprint import refreshes_itself, require_role
from webapp.views.staff.campaign_pages import (
    audience_name,
    campaign_content,
    campaign_url,
    get_campaign_or_404,
    get_offer_or_404,
    preview_email,
)
from webapp.views.staff.delivery_selections import parse_selection, parse_submitted_selection
from webapp.views.staff.forms.campaigns import CampaignFilterForm

blueprint = Blueprint("campaigns", __name__)

PAGE_SIZE = 25
RECIPIENTS_PAGE_SIZE = 50
MAX_CAUSES_SHOWN = 8
IN_PROGRESS_STATUSES = ("preparing", "sending")
# The page of such a campaign is the editor or the launch page.
UNLAUNCHED_STATUSES = ("draft", "scheduled")
# The lists of these states show which addresses are suppressed, because their emails cannot be resent.
_RESENDABLE_STATES = ("failed", "uncertain")


@blueprint.get("/campaigns")
def index() -> Response:
    """List all campaigns, or those with one status, newest first."""
    form = CampaignFilterForm(request.args)
    status = form.selected_status()
    rows = campaign_queries.list_campaigns(request.args.get("before", type=rendering.parse_row_id), PAGE_SIZE, status)
    campaigns = rows[:PAGE_SIZE]
    url_args: dict[str, Any] = {"state": status} if status else {}
    next_args = {**url_args, "before": campaigns[-1].id} if len(rows) > PAGE_SIZE else None
    return rendering.render(
        "campaigns/index.html",
        campaigns=campaigns,
        stats_by_campaign=stats_queries.get_stats_by_campaign([campaign.id for campaign in campaigns]),
        offers=offer_queries.find_offers([campaign.offer_id for campaign in campaigns]),
        form=form,
        is_filtered=bool(status),
        first_url=url_for("staff.campaigns.index", **url_args) if "before" in request.args else None,
        next_url=url_for("staff.campaigns.index", **next_args) if next_args else None,
    )


@blueprint.get("/campaigns/<int:campaign_id>")
def show(campaign_id: int) -> BaseResponse:
    """Show the progress of a campaign and its deliveries that need attention."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status in UNLAUNCHED_STATUSES:
        return redirect(campaign_url(campaign), 303)
    offer = get_offer_or_404(campaign.offer_id)
    settings = current_app.config["SETTINGS"]
    page = rendering.render(
        "campaigns/show.html",
        offer=offer,
        sink_url=settings.sink_url if settings.uses_mail_sink else None,
        # The audience is fixed at launch. A campaign that was cancelled before has none of its own.
        audience=audience_name(campaign.audience_id if campaign.launched_at else offer.audience_id),
        preview=preview_email(campaign_content(campaign), offer, customer_email=""),
        has_earlier_codes=len(offer_queries.list_codes_by_offer([offer.id])[offer.id]) > 1,
        **_progress_values(campaign),
        **_recipient_lookup_values(campaign),
    )
    return rendering.allow_frames(page)


@blueprint.get("/campaigns/<int:campaign_id>/progress")
@refreshes_itself
def progress(campaign_id: int) -> Response:
    """Render the progress fragment, which is polled while emails are sent."""
    return rendering.render("campaigns/_progress.html", **_progress_values(get_campaign_or_404(campaign_id)))


@blueprint.get("/campaigns/<int:campaign_id>/frame")
def email_frame(campaign_id: int) -> Response:
    """Render only the email of a campaign, for the iframe on its page."""
    campaign = get_campaign_or_404(campaign_id)
    return rendering.sandboxed_response(
        preview_email(campaign_content(campaign), get_offer_or_404(campaign.offer_id), customer_email="").html
    )


@blueprint.get("/campaigns/<int:campaign_id>/who")
def find_recipient(campaign_id: int) -> Response:
    """Find the delivery to the customer with the requested email address."""
    campaign = get_campaign_or_404(campaign_id)
    values = _recipient_lookup_values(campaign)
    status = 422 if values["email_error"] else 200
    if rendering.is_htmx():
        return rendering.render("campaigns/_find_recipient.html", status=status, campaign=campaign, **values)
    offer = get_offer_or_404(campaign.offer_id)
    return rendering.render("campaigns/find_recipient.html", status=status, campaign=campaign, offer=offer, **values)


@blueprint.get("/campaigns/<int:campaign_id>/recipients")
def recipients(campaign_id: int) -> Response:
    """List recipients by delivery state, with the relay's replies."""
    campaign = get_campaign_or_404(campaign_id)
    selection = parse_selection(request.args)
    state = selection.state
    after = request.args.get("after", 0, type=rendering.parse_row_id)
    page = delivery_queries.list_recipients(
        campaign_id, state, after, RECIPIENTS_PAGE_SIZE, selection.code, selection.cause
    )
    suppression_reasons: dict[int, str] = {}
    if state in _RESENDABLE_STATES:
        suppression_reasons = customer_queries.find_suppression_reasons(
            [delivery.customer_id for delivery in page.deliveries]
        )
    url_args: dict[str, Any] = {"campaign_id": campaign_id}
    url_args |= {name: request.args[name] for name in ("state", "code", "cause") if name in request.args}
    next_url = None
    if page.next_after:
        next_url = url_for("staff.campaigns.recipients", **{**url_args, "after": page.next_after})
    note_access("recipients.listed", f"campaign {campaign_id}")
    return rendering.render(
        "campaigns/recipients.html",
        campaign=campaign,
        offer=get_offer_or_404(campaign.offer_id),
        stats=stats_queries.get_campaign_stats(campaign_id),
        state=state,
        selection=selection,
        cause=_describe_cause(campaign_id, selection),
        unknown_state=request.args.get("state", "") if not state else "",
        suppression_reasons=suppression_reasons,
        deliveries=page.deliveries,
        first_url=url_for("staff.campaigns.recipients", **url_args) if "after" in request.args else None,
        next_url=next_url,
    )


@blueprint.get("/campaigns/<int:campaign_id>/recipients.csv")
@require_role("manager")
def download(campaign_id: int) -> Response:
    """Stream all recipients, or those in one state, as CSV."""
    campaign = get_campaign_or_404(campaign_id)
    state = parse_selection(request.args).state
    delivery_actions.record_recipient_export(campaign.id, state, by=current_user.email)
    lines = delivery_export.iter_recipient_csv(delivery_queries.iter_recipients(campaign.id, state))
    response = Response(stream_with_context(lines), mimetype="text/csv")
    name = f"campaign-{campaign.id}{'-' + state if state else ''}.csv"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@blueprint.post("/campaigns/<int:campaign_id>/pause")
def pause(campaign_id: int) -> BaseResponse:
    """Pause the campaign before its next send window."""
    return _run_action(campaign_id, lambda: transitions.pause_campaign(campaign_id, by=current_user.email))


@blueprint.post("/campaigns/<int:campaign_id>/resume")
def resume(campaign_id: int) -> BaseResponse:
    """Resume a paused campaign."""
    return _run_action(campaign_id, lambda: transitions.resume_campaign(campaign_id, by=current_user.email))


@blueprint.post("/campaigns/<int:campaign_id>/cancel")
def cancel(campaign_id: int) -> BaseResponse:
    """Cancel the campaign; this cannot be undone."""
    return _run_action(campaign_id, lambda: transitions.cancel_campaign(campaign_id, by=current_user.email))


@blueprint.post("/campaigns/<int:campaign_id>/send-again")
def resend(campaign_id: int) -> BaseResponse:
    """Resend failed or uncertain emails: one, those of a cause, or all."""
    try:
        result = delivery_actions.resend_deliveries(campaign_id, parse_submitted_selection(), by=current_user.email)
    except DomainError as error:
        return _redirect_after_resolution(campaign_id, error.message, "warning", return_to_list=True)
    message = ngettext(
        "%(count)s email is being resent.",
        "%(count)s emails are being resent.",
        result.resent,
        count=formatting.format_number(result.resent),
    )
    if result.suppressed:
        not_resent = ngettext(
            "%(count)s email was not resent, because its address is suppressed.",
            "%(count)s emails were not resent, because their addresses are suppressed.",
            result.suppressed,
            count=formatting.format_number(result.suppressed),
        )
        message = " ".join((message, not_resent))
    return _redirect_after_resolution(campaign_id, message, "success", return_to_list="customer" in request.form)


@blueprint.post("/campaigns/<int:campaign_id>/leave")
def dismiss_uncertain(campaign_id: int) -> BaseResponse:
    """Dismiss uncertain emails: one, or all."""
    try:
        count = delivery_actions.dismiss_uncertain_deliveries(
            campaign_id, parse_submitted_selection(), by=current_user.email
        )
    except DomainError as error:
        return _redirect_after_resolution(campaign_id, error.message, "warning", return_to_list=True)
    message = ngettext(
        "%(count)s uncertain email was dismissed.",
        "%(count)s uncertain emails were dismissed.",
        count,
        count=formatting.format_number(count),
    )
    return _redirect_after_resolution(campaign_id, message, "success", return_to_list="customer" in request.form)


def _redirect_after_resolution(campaign_id: int, message: str, category: str, *, return_to_list: bool) -> BaseResponse:
    """Flash a message and redirect to the list of the form, or to the campaign.

    Staff continue with the list after an error or after resolving one delivery. After resolving all, it would be empty.
    """
    get_campaign_or_404(campaign_id)
    flash(message, category)
    if request.form.get("back") in delivery_status.RECORDED_STATES and return_to_list:
        return redirect(url_for("staff.campaigns.recipients", campaign_id=campaign_id, state=request.form["back"]))
    return redirect(url_for("staff.campaigns.show", campaign_id=campaign_id))


def _format_cause_heading(cause: stats_queries.IssueCause, example: str) -> str:
    """Return the meaning of the reply; if there was no reply, the stored text."""
    if cause.code is None:
        return smtp_replies.capitalise_first(example) or _("No details are stored")
    return smtp_replies.explain_reply(cause.code, cause.cause) or _("The server replied %(code)s", code=cause.code)


def _describe_cause(campaign_id: int, selection: DeliverySelection) -> str:
    """Describe the cause that a list is filtered by; empty without such a filter.

    This is the meaning of the reply or, without a reply, the complete text of one delivery.
    """
    if selection.cause is None:
        return ""
    if selection.code is None:
        cause = stats_queries.IssueCause(selection.state, None, selection.cause, 0)
        examples = stats_queries.list_example_replies(campaign_id, [cause])
        return smtp_replies.capitalise_first(examples[0] or selection.cause)
    meaning = smtp_replies.explain_reply(selection.code, selection.cause)
    reply = " ".join((str(selection.code), selection.cause)).strip()
    if meaning:
        return str(_("%(meaning)s (%(reply)s)", meaning=meaning, reply=reply))
    return str(_("The server replied %(reply)s", reply=reply))


def _recipient_lookup_values(campaign: Campaign) -> dict[str, Any]:
    """Return the template values of the recipient lookup."""
    email = request.args.get("email", "").strip()
    customer, message = None, ""
    if email:
        try:
            customer = customer_queries.find_customer_by_email(normalise_email(email))
        except InvalidInput as error:
            message = error.errors[0].message if error.errors else error.message
        if customer is None and not message:
            message = _("No customer has this email address.")
    if customer is not None:
        note_access("customer.viewed", f"customer {customer.id}")
    return {
        "email": email,
        "email_error": message,
        "delivery": delivery_queries.find_delivery(campaign, customer) if customer is not None else None,
    }


def _run_action(campaign_id: int, action: Callable[[], Campaign]) -> BaseResponse:
    """Run an action, then show the campaign.

    The message of a `DomainError` is flashed, except for a campaign that does not exist.
    """
    with rendering.flash_domain_error():
        action()
    if rendering.is_htmx():
        return progress(campaign_id)
    return redirect(campaign_url(get_campaign_or_404(campaign_id)), 303)


def _progress_values(campaign: Campaign) -> dict[str, Any]:
    stats = stats_queries.get_campaign_stats(campaign.id)
    causes = [cause for cause in stats.causes if cause.state != "sent_later"]
    shown_causes = causes[:MAX_CAUSES_SHOWN]
    if shown_causes:
        # The replies of mail servers often contain the address of the recipient.
        note_access("recipients.listed", f"campaign {campaign.id}")
    examples = stats_queries.list_example_replies(campaign.id, shown_causes)
    return {
        "campaign": campaign,
        "stats": stats,
        "unresolved_count": campaign_queries.count_unresolved(campaign.id) if stats.uncertain else 0,
        "causes": [
            (cause, _format_cause_heading(cause, example), example)
            for cause, example in zip(shown_causes, examples, strict=True)
        ],
        "more_causes_count": len(causes) - len(shown_causes),
        "worker_problem": monitoring_queries.find_worker_problem() if campaign.status in IN_PROGRESS_STATUSES else None,
        "is_refreshing": campaign.status in IN_PROGRESS_STATUSES or stats.has_active_worker,
    }
