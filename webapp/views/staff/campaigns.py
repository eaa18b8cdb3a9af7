"""Staff screens of campaigns that are under way: watching them go out. Before that: writing_staff."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, stream_with_context, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns import actions as campaign_actions
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import tasks as campaign_tasks
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import export as delivery_export
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries import smtp_replies
from webapp.campaigns.deliveries.actions import Which
from webapp.campaigns.models import Campaign
from webapp.core import formatting
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, Invalid, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries
from webapp.views import rendering
from webapp.views.staff.blueprint import needs
from webapp.views.staff.campaign_editor import as_seen, audience_name, find_campaign, find_offer, place, stored
from webapp.views.staff.forms.campaigns import StateForm

room = Blueprint("campaigns", __name__)

PAGE = 25
ISSUES = 50
CAUSES = 8
LIVE = ("preparing", "sending")
# Not under way yet: its page is the one on which it is written or launched.
BEFORE = ("draft", "scheduled")
# Of what staff may decide, whoever must not be mailed any more is named as such.
_DECIDED = ("failed", "uncertain")
_ID = re.compile("[0-9]{1,18}")
_CODE = re.compile("[2-5][0-9]{2}")


# --- watching ---------------------------------------------------------------------------------------


@room.get("/campaigns")
def index() -> Response:
    """All campaigns, newest first, or those in one state."""
    form = StateForm(request.args)
    found = campaign_queries.page(request.args.get("before", type=_row_id), PAGE, form.chosen())
    shown = found[:PAGE]
    kept: dict[str, Any] = {"state": form.chosen()} if form.chosen() else {}
    return rendering.render(
        "campaigns/index.html",
        shown=shown,
        counts=campaign_queries.counts_of([campaign.id for campaign in shown]),
        offers=offer_queries.by_ids([campaign.offer_id for campaign in shown]),
        form=form,
        narrowed=bool(kept),
        newest_url=url_for("staff.campaigns.index", **kept) if "before" in request.args else None,
        next_url=url_for("staff.campaigns.index", **kept, before=shown[-1].id) if len(found) > PAGE else None,
    )


@room.get("/campaigns/<int:campaign_id>")
def show(campaign_id: int) -> BaseResponse:
    """One campaign: how far it is, and what did not simply go out."""
    campaign = find_campaign(campaign_id)
    if campaign.status in BEFORE:
        return redirect(place(campaign), 303)
    offer = find_offer(campaign.offer_id)
    settings = current_app.config["SETTINGS"]
    page = rendering.render(
        "campaigns/show.html",
        offer=offer,
        sink_url=settings.sink_url if settings.mail_is_sink else None,
        # Settled at the launch; of what never was, that of the offer.
        audience=audience_name(campaign.audience_id if campaign.launched_at else offer.audience_id),
        preview=as_seen(stored(campaign), offer, ""),
        **_progress_values(campaign),
        **_who_values(campaign),
    )
    return rendering.with_frames(page)


@room.get("/campaigns/<int:campaign_id>/progress")
def progress(campaign_id: int) -> Response:
    """The piece that renews itself while mails go out."""
    return rendering.render("campaigns/_progress.html", **_progress_values(find_campaign(campaign_id)))


@room.get("/campaigns/<int:campaign_id>/frame")
def sent_frame(campaign_id: int) -> Response:
    """The mail of a campaign, alone, for the frame on its page."""
    campaign = find_campaign(campaign_id)
    return rendering.framed(as_seen(stored(campaign), find_offer(campaign.offer_id), "").html)


@room.get("/campaigns/<int:campaign_id>/who")
def who(campaign_id: int) -> Response:
    """Who got it? An e-mail in, the answer out."""
    campaign = find_campaign(campaign_id)
    values = _who_values(campaign)
    status = 422 if values["who_error"] else 200
    if rendering.is_htmx():
        return rendering.render("campaigns/_who.html", status=status, campaign=campaign, **values)
    offer = find_offer(campaign.offer_id)
    return rendering.render("campaigns/who.html", status=status, campaign=campaign, offer=offer, **values)


@room.get("/campaigns/<int:campaign_id>/recipients")
def recipients(campaign_id: int) -> Response:
    """The recipients by what became of their mail, with the relay's words."""
    campaign = find_campaign(campaign_id)
    which = _which(request.args)
    state = which.state
    after = request.args.get("after", 0, type=_row_id)
    page = delivery_queries.page(campaign_id, state, after, ISSUES, which.code, which.cause)
    kept = {name: request.args[name] for name in ("state", "code", "cause") if name in request.args}
    here: dict[str, Any] = {"campaign_id": campaign_id, **kept}
    return rendering.render(
        "campaigns/recipients.html",
        campaign=campaign,
        offer=find_offer(campaign.offer_id),
        counts=campaign_queries.counts(campaign_id),
        state=state,
        which=which,
        cause=_cause_words(campaign_id, which),
        unknown=request.args.get("state", "") if not state else "",
        listed=customer_queries.suppressed_among([f.customer_id for f in page.fates]) if state in _DECIDED else {},
        shown=page.fates,
        first_url=url_for("staff.campaigns.recipients", **here) if "after" in request.args else None,
        next_url=url_for("staff.campaigns.recipients", **{**here, "after": page.after}) if page.after else None,
    )


@room.get("/campaigns/<int:campaign_id>/recipients.csv")
@needs("manager")
def download(campaign_id: int) -> Response:
    """All recipients, or those in one state, as they come from the database."""
    campaign = find_campaign(campaign_id)
    state = _which(request.args).state
    delivery_actions.note_export(campaign.id, state, by=current_user.email)
    lines = delivery_export.lines(delivery_queries.everybody(campaign.id, state))
    response = Response(stream_with_context(lines), mimetype="text/csv")
    name = f"campaign-{campaign.id}{'-' + state if state else ''}.csv"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@room.post("/campaigns/<int:campaign_id>/pause")
def pause(campaign_id: int) -> BaseResponse:
    """Stop before the next fifty."""
    return _done(campaign_id, lambda: campaign_actions.pause(campaign_id, by=current_user.email))


@room.post("/campaigns/<int:campaign_id>/resume")
def resume(campaign_id: int) -> BaseResponse:
    """Go on where it stands."""
    return _done(campaign_id, lambda: campaign_tasks.resume(campaign_id, by=current_user.email))


@room.post("/campaigns/<int:campaign_id>/cancel")
def cancel(campaign_id: int) -> BaseResponse:
    """End it for good."""
    return _done(campaign_id, lambda: campaign_tasks.cancel(campaign_id, by=current_user.email))


@room.post("/campaigns/<int:campaign_id>/send-again")
def send_again(campaign_id: int) -> BaseResponse:
    """Try those again that failed, or of which nobody knows: one, those of a cause, or all."""
    try:
        again = campaign_tasks.send_again(campaign_id, _which(request.form), by=current_user.email)
    except DomainError as error:
        return _decided(campaign_id, error.message, "warning")
    words = f"{formatting.number(again.mails)} {'mail goes' if again.mails == 1 else 'mails go'} out again."
    if again.left_out:
        words += f" {formatting.number(again.left_out)} not: the address must not be mailed any more."
    return _decided(campaign_id, words, "success")


@room.post("/campaigns/<int:campaign_id>/leave")
def leave(campaign_id: int) -> BaseResponse:
    """Let uncertain mails be: one, or all."""
    try:
        n = delivery_actions.leave(campaign_id, _which(request.form), by=current_user.email)
    except DomainError as error:
        return _decided(campaign_id, error.message, "warning")
    words = "The mail is left as it is." if n == 1 else f"{formatting.number(n)} mails are left as they are."
    return _decided(campaign_id, words, "success")


def _decided(campaign_id: int, words: str, tone: str) -> BaseResponse:
    """Back to the list that the decision came from, if any."""
    find_campaign(campaign_id)
    flash(words, tone)
    # Of one mail back to the list, for the next; after a decision about all of them there is nothing more on it.
    if request.form.get("back") in delivery_queries.ISSUES and (tone != "success" or "customer" in request.form):
        return redirect(url_for("staff.campaigns.recipients", campaign_id=campaign_id, state=request.form["back"]))
    return redirect(url_for("staff.campaigns.show", campaign_id=campaign_id))


def _which(given: Mapping[str, str]) -> Which:
    """The mails that an address or a form means; nonsense means none in particular."""
    state = given.get("state", "")
    code, customer = given.get("code", ""), given.get("customer", "")
    return Which(
        state if state in (*delivery_queries.ISSUES, *delivery_queries.PLACES) else "",
        customer_id=_row_id(customer) if _ID.fullmatch(customer) else None,
        code=int(code) if _CODE.fullmatch(code) else None,
        cause=given["cause"].replace("\0", "") if "cause" in given else None,
    )


def _heading(cause: campaign_queries.Cause, words: str) -> str:
    """What the answers of a cause mean, or the words where there was no answer."""
    if cause.code is None:
        return smtp_replies.sentence(words) or "No words are kept"
    return smtp_replies.meaning(cause.code, cause.cause) or f"The server answered {cause.code}"


def _cause_words(campaign_id: int, which: Which) -> str:
    """What a list is narrowed to, in words: what the answer means, or else the words themselves, not cut."""
    if which.cause is None:
        return ""
    means = smtp_replies.meaning(which.code, which.cause)
    if which.code is None:
        cause = campaign_queries.Cause(which.state, None, which.cause, 0)
        return smtp_replies.sentence(campaign_queries.examples(campaign_id, [cause])[0] or which.cause)
    answer = f"{which.code} {which.cause}".strip()
    return f"{means} ({answer})" if means else f"The server answered {answer}"


def _who_values(campaign: Campaign) -> dict[str, Any]:
    """Whom was asked for, and what became of the mail."""
    typed = request.args.get("email", "").strip()
    customer, error = None, ""
    if typed:
        try:
            customer = customer_queries.by_email(normalise_email(typed))
        except Invalid as invalid:
            error = invalid.errors[0].message if invalid.errors else invalid.message
        if customer is None and not error:
            error = "There is no customer with this e-mail."
    return {
        "who": typed,
        "who_error": error,
        "fate": delivery_queries.of_one(campaign, customer) if customer is not None else None,
    }


def _done(campaign_id: int, deed: Callable[[], Campaign]) -> BaseResponse:
    """Press a button, then show how it stands now; what a button of an old page can't do any more is said, too."""
    try:
        deed()
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
    if rendering.is_htmx():
        return progress(campaign_id)
    return redirect(place(find_campaign(campaign_id)), 303)


def _progress_values(campaign: Campaign) -> dict[str, Any]:
    counts = campaign_queries.counts(campaign.id)
    causes = [cause for cause in counts.causes if cause.state != "sent_later"]
    shown = causes[:CAUSES]
    return {
        "campaign": campaign,
        "counts": counts,
        "to_decide": campaign_queries.to_decide(campaign.id) if counts.uncertain else 0,
        "causes": [
            (cause, _heading(cause, words), words)
            for cause, words in zip(shown, campaign_queries.examples(campaign.id, shown), strict=True)
        ],
        "causes_too": len(causes) - len(shown),
        "is_live": campaign.status in LIVE or counts.is_being_sent,
    }


def _row_id(text: str) -> int:
    number = int(text)
    if not 0 < number < 1 << 63:
        raise ValueError(text)
    return number
