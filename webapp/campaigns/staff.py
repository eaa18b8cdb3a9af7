"""Staff screens of campaigns: writing a mail, launching it, watching it go out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, flash, redirect, request, stream_with_context, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp import web
from webapp.blueprints.staff import needs
from webapp.campaigns import actions, delivery, export, issue_actions, message, queries, replies, tasks
from webapp.campaigns import recipients as recipient_queries
from webapp.campaigns.forms import MailForm
from webapp.campaigns.issue_actions import Which
from webapp.campaigns.message import FormLetter, Preview
from webapp.campaigns.models import Campaign
from webapp.campaigns.wording import PLACEHOLDERS, MailText
from webapp.customers import queries as customers
from webapp.customers.models import Customer, normalise_email
from webapp.errors import DomainError, FieldError, Invalid, NotFound
from webapp.offers import queries as offers
from webapp.offers.models import Offer

room = Blueprint("campaigns", __name__)

PAGE = 25
ISSUES = 50
CAUSES = 8
LIVE = ("preparing", "sending")
_ID = re.compile("[0-9]{1,18}")
_CODE = re.compile("[2-5][0-9]{2}")


# --- writing ----------------------------------------------------------------------------------------


@room.get("/offers/<int:offer_id>/mail")
@needs("manager")
def mail(offer_id: int) -> BaseResponse:
    """Write the mail of an offer and see what it looks like."""
    offer = _offer(offer_id)
    announcement = queries.announcement(offer_id)
    if announcement is not None and announcement.status != "draft":
        return redirect(url_for("staff.campaigns.show", campaign_id=announcement.id))
    form = MailForm(formdata=None)
    form.show(_latest(offer_id))
    form.seen_as.data = request.args.get("seen_as", "")
    form.view.data = request.args.get("view", "wide")
    return _compose(form, offer)


@room.post("/offers/<int:offer_id>/mail")
def save(offer_id: int) -> BaseResponse:
    """Keep what was typed; then stay, go on to the launch, or send a test."""
    offer = _offer(offer_id)
    form = MailForm()
    typing = web.is_htmx()
    try:
        if not form.validate_on_submit():
            return _preview(form, offer, 422) if typing else _compose(form, offer, 422)
        actions.save_draft(offer_id, form.mail(), form.uncertain_policy.data, by=None if typing else current_user.email)
        if typing:
            return _preview(form, offer)
        if "test" in request.form:
            delivery.send_test(form.mail(), offer, current_user.email, current_user.name)
            flash(f"A test is on its way to {current_user.email}.", "success")
    except DomainError as error:
        web.attach(form, error)
        return _preview(form, offer, error.status) if typing else _compose(form, offer, error.status)
    if "launch" in request.form:
        return redirect(url_for("staff.campaigns.review", offer_id=offer_id))
    if "test" not in request.form:
        flash("The mail is saved.", "success")
    seen = {name: form[name].data for name in ("seen_as", "view") if form[name].data}
    return redirect(url_for("staff.campaigns.mail", offer_id=offer_id, **seen))


@room.get("/offers/<int:offer_id>/mail/frame")
def frame(offer_id: int) -> Response:
    """The saved mail as one customer sees it, alone, for the frame of the preview."""
    offer = _offer(offer_id)
    latest = _latest(offer_id)
    mail = _stored(latest) if latest else MailText()
    return web.framed(_as_seen(mail, offer, request.args.get("seen_as", "")).html)


def _compose(form: MailForm, offer: Offer, status: int = 200) -> Response:
    values = _preview_values(form, offer)
    page = web.render("campaigns/mail.html", status=status, placeholders=PLACEHOLDERS, **values)
    return web.with_frames(page)


def _preview(form: MailForm, offer: Offer, status: int = 200) -> Response:
    return web.render("campaigns/_preview.html", status=status, **_preview_values(form, offer))


def _preview_values(form: MailForm, offer: Offer) -> dict[str, Any]:
    """What the preview shows: the mail as typed, or nothing while it can't be read."""
    preview = None
    try:
        actions.check_mail(form.mail())
        preview = _as_seen(form.mail(), offer, form.seen_as.data or "")
    except Invalid as error:
        if not form.errors:
            web.attach(form, error)
    return {"form": form, "offer": offer, "preview": preview}


def _latest(offer_id: int) -> Campaign | None:
    """What a new mail starts from: the draft, or the mail of a mailing that was cancelled."""
    earlier = queries.of_offer(offer_id)
    return queries.announcement(offer_id) or (earlier[0] if earlier else None)


def _as_seen(mail: MailText, offer: Offer, typed: str) -> Preview:
    return FormLetter(mail, offer, 0).preview(_recipient(offer, typed))


def _recipient(offer: Offer, typed: str) -> Customer:
    """The customer asked for, else the first of the audience, else somebody who is none.

    :raises Invalid: when nobody has this e-mail.
    """
    if typed.strip():
        try:
            customer = customers.by_email(normalise_email(typed))
        except Invalid:
            customer = None
        if customer is None or customer.erased_at is not None:
            raise Invalid(FieldError("seen_as", "customer_unknown", "There is no customer with this e-mail."))
        return customer
    first = customers.ids_after(offer.audience_id, 0, 1)
    customer = customers.by_id(first[0]) if first else None
    return customer or Customer(
        id=message.NOBODY, email="ada@example.com", email_as_given="ada@example.com", name="Ada Lovelace"
    )


# --- launching --------------------------------------------------------------------------------------


@room.get("/offers/<int:offer_id>/launch")
@needs("manager")
def review(offer_id: int) -> BaseResponse:
    """Who will get it, once more before it goes out."""
    offer = _offer(offer_id)
    announcement = queries.announcement(offer_id)
    if announcement is None:
        return redirect(url_for("staff.campaigns.mail", offer_id=offer_id))
    if announcement.status != "draft":
        return redirect(url_for("staff.campaigns.show", campaign_id=announcement.id))
    return _review(offer, announcement)


@room.post("/offers/<int:offer_id>/launch")
def launch(offer_id: int) -> BaseResponse:
    """Send it to everybody of the audience."""
    offer = _offer(offer_id)
    try:
        launched = tasks.launch_offer(offer_id, by=current_user.email)
    except DomainError as error:
        announcement = queries.announcement(offer_id)
        if announcement is None:
            raise
        return _review(offer, announcement, error)
    if launched.changed:
        flash("Launched. You can leave this page: the mails go out in the background.", "success")
    else:
        flash("It had been launched already; nothing was sent twice.", "info")
    return redirect(url_for("staff.campaigns.show", campaign_id=launched.campaign.id))


def _review(offer: Offer, announcement: Campaign, error: DomainError | None = None) -> Response:
    mail = _stored(announcement)
    form_letter = FormLetter(mail, offer, announcement.id)
    return web.render(
        "campaigns/launch.html",
        status=error.status if error else 200,
        offer=offer,
        campaign=announcement,
        preview=form_letter.preview(_recipient(offer, "")),
        sender=message.shown_sender(),
        reach=customers.reach(offer.audience_id),
        audience=_audience(offer.audience_id),
        mailed_before=sum(
            counts.sent for counts in queries.counts_of([c.id for c in queries.of_offer(offer.id)]).values()
        ),
        at=offers.clock(),
        refusal=error.message if error else None,
    )


# --- watching ---------------------------------------------------------------------------------------


@room.get("/campaigns")
def index() -> Response:
    """All campaigns, newest first."""
    found = queries.page(before=request.args.get("before", type=_row_id), limit=PAGE)
    shown = found[:PAGE]
    return web.render(
        "campaigns/index.html",
        shown=shown,
        counts=queries.counts_of([campaign.id for campaign in shown]),
        offers=offers.by_ids([campaign.offer_id for campaign in shown]),
        newest_url=url_for("staff.campaigns.index") if "before" in request.args else None,
        next_url=url_for("staff.campaigns.index", before=shown[-1].id) if len(found) > PAGE else None,
    )


@room.get("/campaigns/<int:campaign_id>")
def show(campaign_id: int) -> BaseResponse:
    """One campaign: how far it is, and what did not simply go out."""
    campaign = _campaign(campaign_id)
    if campaign.status == "draft":
        return redirect(url_for("staff.campaigns.mail", offer_id=campaign.offer_id))
    offer = _offer(campaign.offer_id)
    page = web.render(
        "campaigns/show.html",
        offer=offer,
        audience=_audience(campaign.audience_id),
        preview=FormLetter(_stored(campaign), offer, 0).preview(_recipient(offer, "")),
        **_progress_values(campaign),
        **_who_values(campaign),
    )
    return web.with_frames(page)


@room.get("/campaigns/<int:campaign_id>/progress")
def progress(campaign_id: int) -> Response:
    """The piece that renews itself while mails go out."""
    return web.render("campaigns/_progress.html", **_progress_values(_campaign(campaign_id)))


@room.get("/campaigns/<int:campaign_id>/frame")
def sent_frame(campaign_id: int) -> Response:
    """The mail of a campaign, alone, for the frame on its page."""
    campaign = _campaign(campaign_id)
    return web.framed(_as_seen(_stored(campaign), _offer(campaign.offer_id), "").html)


@room.get("/campaigns/<int:campaign_id>/who")
def who(campaign_id: int) -> Response:
    """Who got it? An e-mail in, the answer out."""
    campaign = _campaign(campaign_id)
    values = _who_values(campaign)
    status = 422 if values["who_error"] else 200
    if web.is_htmx():
        return web.render("campaigns/_who.html", status=status, campaign=campaign, **values)
    offer = _offer(campaign.offer_id)
    return web.render("campaigns/who.html", status=status, campaign=campaign, offer=offer, **values)


@room.get("/campaigns/<int:campaign_id>/recipients")
def recipients(campaign_id: int) -> Response:
    """The recipients by what became of their mail, with the relay's words."""
    campaign = _campaign(campaign_id)
    which = _which(request.args)
    state = which.state
    after = request.args.get("after", 0, type=_row_id)
    page = recipient_queries.page(campaign_id, state, after, ISSUES, which.code, which.cause)
    kept = {name: request.args[name] for name in ("state", "code", "cause") if name in request.args}
    here: dict[str, Any] = {"campaign_id": campaign_id, **kept}
    return web.render(
        "campaigns/recipients.html",
        campaign=campaign,
        offer=_offer(campaign.offer_id),
        counts=queries.counts(campaign_id),
        state=state,
        which=which,
        meaning=replies.meaning(which.code, which.cause) if which.cause is not None else None,
        shown=page.fates,
        first_url=url_for("staff.campaigns.recipients", **here) if "after" in request.args else None,
        next_url=url_for("staff.campaigns.recipients", **{**here, "after": page.after}) if page.after else None,
    )


@room.get("/campaigns/<int:campaign_id>/recipients.csv")
@needs("manager")
def download(campaign_id: int) -> Response:
    """All recipients, or those in one state, as they come from the database."""
    campaign = _campaign(campaign_id)
    state = _which(request.args).state
    issue_actions.note_export(campaign.id, state, by=current_user.email)
    lines = export.lines(recipient_queries.everybody(campaign.id, state))
    response = Response(stream_with_context(lines), mimetype="text/csv")
    name = f"campaign-{campaign.id}{'-' + state if state else ''}.csv"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@room.post("/campaigns/<int:campaign_id>/pause")
def pause(campaign_id: int) -> BaseResponse:
    """Stop before the next fifty."""
    actions.pause(campaign_id, by=current_user.email)
    return _back(campaign_id)


@room.post("/campaigns/<int:campaign_id>/resume")
def resume(campaign_id: int) -> BaseResponse:
    """Go on where it stands."""
    tasks.resume(campaign_id, by=current_user.email)
    return _back(campaign_id)


@room.post("/campaigns/<int:campaign_id>/cancel")
def cancel(campaign_id: int) -> BaseResponse:
    """End it for good."""
    actions.cancel(campaign_id, by=current_user.email)
    return _back(campaign_id)


@room.post("/campaigns/<int:campaign_id>/send-again")
def send_again(campaign_id: int) -> BaseResponse:
    """Try those again that failed, or of which nobody knows: one, those of a cause, or all."""
    try:
        again = tasks.send_again(campaign_id, _which(request.form), by=current_user.email)
    except DomainError as error:
        return _decided(campaign_id, error.message, "warning")
    words = f"{web.number(again.mails)} {'mail goes' if again.mails == 1 else 'mails go'} out again."
    if again.left_out:
        words += f" {web.number(again.left_out)} not: the address must not be mailed any more."
    return _decided(campaign_id, words, "success")


@room.post("/campaigns/<int:campaign_id>/leave")
def leave(campaign_id: int) -> BaseResponse:
    """Let uncertain mails be: one, or all."""
    try:
        n = issue_actions.leave(campaign_id, _which(request.form), by=current_user.email)
    except DomainError as error:
        return _decided(campaign_id, error.message, "warning")
    words = "The mail is left as it is." if n == 1 else f"{web.number(n)} mails are left as they are."
    return _decided(campaign_id, words, "success")


def _decided(campaign_id: int, words: str, tone: str) -> BaseResponse:
    """Back to the list that the decision came from, if any."""
    _campaign(campaign_id)
    flash(words, tone)
    if request.form.get("back") in recipient_queries.ISSUES:
        return redirect(url_for("staff.campaigns.recipients", campaign_id=campaign_id, state=request.form["back"]))
    return redirect(url_for("staff.campaigns.show", campaign_id=campaign_id))


def _which(given: Mapping[str, str]) -> Which:
    """The mails that an address or a form means; nonsense means none in particular."""
    state = given.get("state", "")
    code, customer = given.get("code", ""), given.get("customer", "")
    return Which(
        state if state in (*recipient_queries.ISSUES, *recipient_queries.PLACES) else "",
        customer_id=_row_id(customer) if _ID.fullmatch(customer) else None,
        code=int(code) if _CODE.fullmatch(code) else None,
        cause=given["cause"].replace("\0", "") if "cause" in given else None,
    )


def _who_values(campaign: Campaign) -> dict[str, Any]:
    """Whom was asked for, and what became of the mail."""
    typed = request.args.get("email", "").strip()
    customer, error = None, ""
    if typed:
        try:
            customer = customers.by_email(normalise_email(typed))
        except Invalid as invalid:
            error = invalid.errors[0].message if invalid.errors else invalid.message
        if customer is None and not error:
            error = "There is no customer with this e-mail."
    return {
        "who": typed,
        "who_error": error,
        "fate": recipient_queries.of_one(campaign, customer) if customer is not None else None,
    }


def _back(campaign_id: int) -> BaseResponse:
    if web.is_htmx():
        return progress(campaign_id)
    return redirect(url_for("staff.campaigns.show", campaign_id=campaign_id))


def _progress_values(campaign: Campaign) -> dict[str, Any]:
    counts = queries.counts(campaign.id)
    causes = [cause for cause in counts.causes if cause.state != "sent_later"]
    shown = causes[:CAUSES]
    return {
        "campaign": campaign,
        "counts": counts,
        "causes": [
            (cause, replies.meaning(cause.code, cause.cause), words)
            for cause, words in zip(shown, queries.examples(campaign.id, shown), strict=True)
        ],
        "causes_too": len(causes) - len(shown),
        "is_live": campaign.status in LIVE or counts.is_being_sent,
    }


def _stored(campaign: Campaign) -> MailText:
    return MailText(campaign.subject, campaign.text, campaign.html)


def _audience(audience_id: int | None) -> str:
    if audience_id is None:
        return "Everyone"
    return next((audience.name for audience in customers.audiences() if audience.id == audience_id), "–")


def _offer(offer_id: int) -> Offer:
    offer = offers.by_id(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    return offer


def _campaign(campaign_id: int) -> Campaign:
    campaign = queries.by_id(campaign_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign


def _row_id(text: str) -> int:
    number = int(text)
    if not 0 < number < 1 << 63:
        raise ValueError(text)
    return number
