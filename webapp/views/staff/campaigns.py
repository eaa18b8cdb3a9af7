"""Staff screens of campaigns that are under way: watching them go out. Before that: writing_staff."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, stream_with_context, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import export as delivery_export
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries import smtp_replies
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.core import formatting
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.campaign_editor import (
    audience_name,
    campaign_content,
    campaign_url,
    get_campaign_or_404,
    get_offer_or_404,
    preview_email,
)
from webapp.views.staff.forms.campaigns import CampaignFilterForm

blueprint = Blueprint("campaigns", __name__)

PAGE_SIZE = 25
RECIPIENTS_PAGE_SIZE = 50
CAUSES_MAX = 8
LIVE_STATUSES = ("preparing", "sending")
# Not under way yet: its page is the one on which it is written or launched.
UNLAUNCHED_STATUSES = ("draft", "scheduled")
# Of what staff may decide, whoever must not be mailed any more is named as such.
_RESENDABLE_STATES = ("failed", "uncertain")
_ID_PATTERN = re.compile("[0-9]{1,18}")
_REPLY_CODE_PATTERN = re.compile("[2-5][0-9]{2}")


# --- watching ---------------------------------------------------------------------------------------


@blueprint.get("/campaigns")
def index() -> Response:
    """All campaigns, newest first, or those in one state."""
    form = CampaignFilterForm(request.args)
    found = campaign_queries.list_campaigns(
        request.args.get("before", type=_parse_row_id), PAGE_SIZE, form.selected_status()
    )
    shown = found[:PAGE_SIZE]
    kept: dict[str, Any] = {"state": form.selected_status()} if form.selected_status() else {}
    return rendering.render(
        "campaigns/index.html",
        shown=shown,
        counts=campaign_queries.get_stats_by_campaign([campaign.id for campaign in shown]),
        offers=offer_queries.find_offers([campaign.offer_id for campaign in shown]),
        form=form,
        narrowed=bool(kept),
        newest_url=url_for("staff.campaigns.index", **kept) if "before" in request.args else None,
        next_url=url_for("staff.campaigns.index", **kept, before=shown[-1].id) if len(found) > PAGE_SIZE else None,
    )


@blueprint.get("/campaigns/<int:campaign_id>")
def show(campaign_id: int) -> BaseResponse:
    """One campaign: how far it is, and what did not simply go out."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status in UNLAUNCHED_STATUSES:
        return redirect(campaign_url(campaign), 303)
    offer = get_offer_or_404(campaign.offer_id)
    settings = current_app.config["SETTINGS"]
    page = rendering.render(
        "campaigns/show.html",
        offer=offer,
        sink_url=settings.sink_url if settings.uses_mail_sink else None,
        # Settled at the launch; of what never was, that of the offer.
        audience=audience_name(campaign.audience_id if campaign.launched_at else offer.audience_id),
        preview=preview_email(campaign_content(campaign), offer, ""),
        **_progress_values(campaign),
        **_recipient_lookup_values(campaign),
    )
    return rendering.allow_frames(page)


@blueprint.get("/campaigns/<int:campaign_id>/progress")
def progress(campaign_id: int) -> Response:
    """The piece that renews itself while mails go out."""
    return rendering.render("campaigns/_progress.html", **_progress_values(get_campaign_or_404(campaign_id)))


@blueprint.get("/campaigns/<int:campaign_id>/frame")
def email_frame(campaign_id: int) -> Response:
    """The mail of a campaign, alone, for the frame on its page."""
    campaign = get_campaign_or_404(campaign_id)
    return rendering.sandboxed_response(
        preview_email(campaign_content(campaign), get_offer_or_404(campaign.offer_id), "").html
    )


@blueprint.get("/campaigns/<int:campaign_id>/who")
def find_recipient(campaign_id: int) -> Response:
    """Who got it? An e-mail in, the answer out."""
    campaign = get_campaign_or_404(campaign_id)
    values = _recipient_lookup_values(campaign)
    status = 422 if values["who_error"] else 200
    if rendering.is_htmx():
        return rendering.render("campaigns/_who.html", status=status, campaign=campaign, **values)
    offer = get_offer_or_404(campaign.offer_id)
    return rendering.render("campaigns/who.html", status=status, campaign=campaign, offer=offer, **values)


@blueprint.get("/campaigns/<int:campaign_id>/recipients")
def recipients(campaign_id: int) -> Response:
    """The recipients by what became of their mail, with the relay's words."""
    campaign = get_campaign_or_404(campaign_id)
    which = _parse_selection(request.args)
    state = which.state
    after = request.args.get("after", 0, type=_parse_row_id)
    page = delivery_queries.list_recipients(campaign_id, state, after, RECIPIENTS_PAGE_SIZE, which.code, which.cause)
    kept = {name: request.args[name] for name in ("state", "code", "cause") if name in request.args}
    here: dict[str, Any] = {"campaign_id": campaign_id, **kept}
    return rendering.render(
        "campaigns/recipients.html",
        campaign=campaign,
        offer=get_offer_or_404(campaign.offer_id),
        counts=campaign_queries.get_campaign_stats(campaign_id),
        state=state,
        which=which,
        cause=_describe_cause(campaign_id, which),
        unknown=request.args.get("state", "") if not state else "",
        listed=customer_queries.find_suppression_reasons([f.customer_id for f in page.deliveries])
        if state in _RESENDABLE_STATES
        else {},
        shown=page.deliveries,
        first_url=url_for("staff.campaigns.recipients", **here) if "after" in request.args else None,
        next_url=url_for("staff.campaigns.recipients", **{**here, "after": page.next_after})
        if page.next_after
        else None,
    )


@blueprint.get("/campaigns/<int:campaign_id>/recipients.csv")
@require_role("manager")
def download(campaign_id: int) -> Response:
    """All recipients, or those in one state, as they come from the database."""
    campaign = get_campaign_or_404(campaign_id)
    state = _parse_selection(request.args).state
    delivery_actions.record_recipient_export(campaign.id, state, by=current_user.email)
    lines = delivery_export.iter_recipient_csv(delivery_queries.iter_recipients(campaign.id, state))
    response = Response(stream_with_context(lines), mimetype="text/csv")
    name = f"campaign-{campaign.id}{'-' + state if state else ''}.csv"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@blueprint.post("/campaigns/<int:campaign_id>/pause")
def pause(campaign_id: int) -> BaseResponse:
    """Stop before the next fifty."""
    return _run_action(campaign_id, lambda: transitions.pause_campaign(campaign_id, by=current_user.email))


@blueprint.post("/campaigns/<int:campaign_id>/resume")
def resume(campaign_id: int) -> BaseResponse:
    """Go on where it stands."""
    return _run_action(campaign_id, lambda: transitions.resume_campaign(campaign_id, by=current_user.email))


@blueprint.post("/campaigns/<int:campaign_id>/cancel")
def cancel(campaign_id: int) -> BaseResponse:
    """End it for good."""
    return _run_action(campaign_id, lambda: transitions.cancel_campaign(campaign_id, by=current_user.email))


@blueprint.post("/campaigns/<int:campaign_id>/send-again")
def resend(campaign_id: int) -> BaseResponse:
    """Try those again that failed, or of which nobody knows: one, those of a cause, or all."""
    try:
        again = delivery_actions.retry_deliveries(campaign_id, _parse_selection(request.form), by=current_user.email)
    except DomainError as error:
        return _redirect_after_decision(campaign_id, error.message, "warning")
    words = f"{formatting.format_number(again.retried)} {'mail goes' if again.retried == 1 else 'mails go'} out again."
    if again.suppressed:
        words += f" {formatting.format_number(again.suppressed)} not: the address must not be mailed any more."
    return _redirect_after_decision(campaign_id, words, "success")


@blueprint.post("/campaigns/<int:campaign_id>/leave")
def leave_uncertain(campaign_id: int) -> BaseResponse:
    """Let uncertain mails be: one, or all."""
    try:
        n = delivery_actions.dismiss_uncertain_deliveries(
            campaign_id, _parse_selection(request.form), by=current_user.email
        )
    except DomainError as error:
        return _redirect_after_decision(campaign_id, error.message, "warning")
    words = "The mail is left as it is." if n == 1 else f"{formatting.format_number(n)} mails are left as they are."
    return _redirect_after_decision(campaign_id, words, "success")


def _redirect_after_decision(campaign_id: int, words: str, tone: str) -> BaseResponse:
    """Back to the list that the decision came from, if any."""
    get_campaign_or_404(campaign_id)
    flash(words, tone)
    # Of one mail back to the list, for the next; after a decision about all of them there is nothing more on it.
    if request.form.get("back") in delivery_queries.RECORDED_STATES and (
        tone != "success" or "customer" in request.form
    ):
        return redirect(url_for("staff.campaigns.recipients", campaign_id=campaign_id, state=request.form["back"]))
    return redirect(url_for("staff.campaigns.show", campaign_id=campaign_id))


def _parse_selection(given: Mapping[str, str]) -> DeliverySelection:
    """The mails that an address or a form means; nonsense means none in particular."""
    state = given.get("state", "")
    code, customer = given.get("code", ""), given.get("customer", "")
    return DeliverySelection(
        state if state in (*delivery_queries.RECORDED_STATES, *delivery_queries.DERIVED_STATES) else "",
        customer_id=_parse_row_id(customer) if _ID_PATTERN.fullmatch(customer) else None,
        code=int(code) if _REPLY_CODE_PATTERN.fullmatch(code) else None,
        cause=given["cause"].replace("\0", "") if "cause" in given else None,
    )


def _format_cause_heading(cause: campaign_queries.IssueCause, words: str) -> str:
    """What the answers of a cause mean, or the words where there was no answer."""
    if cause.code is None:
        return smtp_replies.capitalise_first(words) or "No words are kept"
    return smtp_replies.explain_reply(cause.code, cause.cause) or f"The server answered {cause.code}"


def _describe_cause(campaign_id: int, which: DeliverySelection) -> str:
    """What a list is narrowed to, in words: what the answer means, or else the words themselves, not cut."""
    if which.cause is None:
        return ""
    means = smtp_replies.explain_reply(which.code, which.cause)
    if which.code is None:
        cause = campaign_queries.IssueCause(which.state, None, which.cause, 0)
        return smtp_replies.capitalise_first(
            campaign_queries.list_example_replies(campaign_id, [cause])[0] or which.cause
        )
    answer = f"{which.code} {which.cause}".strip()
    return f"{means} ({answer})" if means else f"The server answered {answer}"


def _recipient_lookup_values(campaign: Campaign) -> dict[str, Any]:
    """Whom was asked for, and what became of the mail."""
    typed = request.args.get("email", "").strip()
    customer, error = None, ""
    if typed:
        try:
            customer = customer_queries.find_customer_by_email(normalise_email(typed))
        except InvalidInput as invalid:
            error = invalid.errors[0].message if invalid.errors else invalid.message
        if customer is None and not error:
            error = "There is no customer with this e-mail."
    return {
        "who": typed,
        "who_error": error,
        "fate": delivery_queries.find_delivery(campaign, customer) if customer is not None else None,
    }


def _run_action(campaign_id: int, deed: Callable[[], Campaign]) -> BaseResponse:
    """Press a button, then show how it stands now; what a button of an old page can't do any more is said, too."""
    try:
        deed()
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
    if rendering.is_htmx():
        return progress(campaign_id)
    return redirect(campaign_url(get_campaign_or_404(campaign_id)), 303)


def _progress_values(campaign: Campaign) -> dict[str, Any]:
    counts = campaign_queries.get_campaign_stats(campaign.id)
    causes = [cause for cause in counts.causes if cause.state != "sent_later"]
    shown = causes[:CAUSES_MAX]
    return {
        "campaign": campaign,
        "counts": counts,
        "to_decide": campaign_queries.count_unresolved(campaign.id) if counts.uncertain else 0,
        "causes": [
            (cause, _format_cause_heading(cause, words), words)
            for cause, words in zip(shown, campaign_queries.list_example_replies(campaign.id, shown), strict=True)
        ],
        "causes_too": len(causes) - len(shown),
        "is_live": campaign.status in LIVE_STATUSES or counts.has_active_worker,
    }


def _parse_row_id(text: str) -> int:
    number = int(text)
    if not 0 < number < 1 << 63:
        raise ValueError(text)
    return number
