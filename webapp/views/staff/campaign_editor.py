"""Staff screens of a mail until it is on its way: writing it, and launching it now or at a time."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import queries as account_queries
from webapp.campaigns import actions as campaign_actions
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import tasks as campaign_tasks
from webapp.campaigns.actions import ChangedMeanwhile
from webapp.campaigns.content import draft_versions, validation
from webapp.campaigns.content.mail_merge import FormLetter, Preview
from webapp.campaigns.content.placeholders import PLACEHOLDERS, MailText, completed, split
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import sender
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail import addresses
from webapp.mail.template import Slot
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import personal_links
from webapp.views import rendering
from webapp.views.staff.blueprint import keeps_words, needs, takes_up_to
from webapp.views.staff.forms.campaigns import LaunchForm, MailForm

room = Blueprint("writing", __name__)

# A body of five megabytes, should every character of it be written as three in the form.
LARGE_FORM = 16 * 1024 * 1024


# --- writing ----------------------------------------------------------------------------------------


@room.get("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@room.get("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@needs("manager")
def begin(offer_id: int, kind: str) -> BaseResponse:
    """The mail that an offer has now; while it has none, one to begin."""
    offer = find_offer(offer_id)
    found = launch_queries.open_of(offer_id, kind)
    if found is not None:
        return redirect(place(found), 303)
    return _write(offer, kind, None)


@room.post("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@room.post("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@takes_up_to(LARGE_FORM)
@keeps_words(subject="Subject", text="Text", html="HTML of your own")
def keep(offer_id: int, kind: str) -> BaseResponse:
    """Keep what was typed as a new draft, or in the one that has come into being meanwhile."""
    return _save(find_offer(offer_id), kind, None)


@room.get("/campaigns/<int:campaign_id>/mail")
@needs("manager")
def write(campaign_id: int) -> BaseResponse:
    """Write the mail of a draft and see what it looks like."""
    campaign = find_campaign(campaign_id)
    if campaign.status != "draft":
        return redirect(place(campaign), 303)
    return _write(find_offer(campaign.offer_id), campaign.kind, campaign)


@room.post("/campaigns/<int:campaign_id>/mail")
@takes_up_to(LARGE_FORM)
@keeps_words(subject="Subject", text="Text", html="HTML of your own")
def save(campaign_id: int) -> BaseResponse:
    """Keep what was typed; then stay, go on to the launch, or send a test."""
    campaign = find_campaign(campaign_id)
    return _save(find_offer(campaign.offer_id), campaign.kind, campaign)


@room.post("/offers/<int:offer_id>/mail/preview", defaults={"kind": "announcement"})
@room.post("/offers/<int:offer_id>/reminder/preview", defaults={"kind": "reminder"})
@takes_up_to(LARGE_FORM)
def first_preview(offer_id: int, kind: str) -> Response:
    """The piece with the preview of a mail that has not been saved yet; nothing is kept."""
    return _preview(find_offer(offer_id), kind, None)


@room.post("/campaigns/<int:campaign_id>/mail/preview")
@takes_up_to(LARGE_FORM)
def preview(campaign_id: int) -> Response:
    """The piece with the preview, as the mail would be with what is typed; nothing is kept."""
    campaign = find_campaign(campaign_id)
    return _preview(find_offer(campaign.offer_id), campaign.kind, campaign)


@room.post("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@room.post("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
@takes_up_to(LARGE_FORM)
def typed_frame(offer_id: int, kind: str) -> Response:
    """The mail as it is typed, alone, for the frame of the preview; nothing is kept."""
    form = MailForm()
    validation.check_mail(form.mail())
    seen = as_seen(completed(form.mail(), kind), find_offer(offer_id), form.seen_as.data or "")
    return rendering.framed(seen.html)


@room.get("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@room.get("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
def first_frame(offer_id: int, kind: str) -> Response:
    """What a new mail starts from, alone, for the frame of the preview."""
    offer = find_offer(offer_id)
    latest = _latest(offer_id, kind)
    mail = stored(latest) if latest else completed(MailText(), kind)
    return rendering.framed(as_seen(mail, offer, request.args.get("seen_as", "")).html)


@room.get("/campaigns/<int:campaign_id>/mail/frame")
def frame(campaign_id: int) -> Response:
    """The saved mail as one customer sees it, alone, for the frame of the preview."""
    campaign = find_campaign(campaign_id)
    return rendering.framed(
        as_seen(stored(campaign), find_offer(campaign.offer_id), request.args.get("seen_as", "")).html
    )


def _write(offer: Offer, kind: str, campaign: Campaign | None) -> Response:
    form = MailForm(formdata=None)
    form.show(campaign or _latest(offer.id, kind), kind)
    form.version.data = draft_versions.of(campaign)
    form.seen_as.data = request.args.get("seen_as", "")
    form.view.data = request.args.get("view", "wide")
    return _compose(form, offer, kind, campaign)


def _save(offer: Offer, kind: str, campaign: Campaign | None) -> BaseResponse:
    form = MailForm()
    try:
        if not form.validate_on_submit():
            return _compose(form, offer, kind, campaign, 422)
        # Who was shown what somebody else has saved, and wants their own words nevertheless, says over which.
        seen = request.form.get("over", form.version.data)
        words = form.mail(), form.uncertain_policy.data, current_user.email
        if campaign is None:
            campaign = campaign_actions.save_draft(offer.id, *words, kind, seen)
        else:
            campaign = campaign_actions.save(campaign.id, *words, seen)
        if "test" in request.form:
            form.version.data = draft_versions.of(campaign)
            suppression_actions.refuse_listed(current_user.email)
            sender.send_test(completed(form.mail(), kind), offer, current_user.email, current_user.name)
            flash(f"A test is on its way to {current_user.email}.", "success")
    except ChangedMeanwhile as error:
        return _compose(form, offer, kind, error.campaign, error.status, error)
    except DomainError as error:
        if campaign is not None:
            campaign = find_campaign(campaign.id)
        rendering.attach(form, error)
        return _compose(form, offer, kind, campaign, error.status)
    if "launch" in request.form:
        return redirect(url_for("staff.writing.review", campaign_id=campaign.id))
    if "test" not in request.form:
        flash("The mail is saved.", "success")
    looked_at = {name: form[name].data for name in ("seen_as", "view") if form[name].data}
    return redirect(url_for("staff.writing.write", campaign_id=campaign.id, **looked_at))


def _compose(
    form: MailForm,
    offer: Offer,
    kind: str,
    campaign: Campaign | None,
    status: int = 200,
    conflict: ChangedMeanwhile | None = None,
) -> Response:
    page = rendering.render(
        "campaigns/mail.html",
        status=status,
        placeholders=PLACEHOLDERS,
        campaign=campaign,
        conflict=conflict and _told(conflict, form),
        **_preview_values(form, offer, kind, campaign, typed=status != 200),
    )
    return rendering.with_frames(page)


def _told(conflict: ChangedMeanwhile, form: MailForm) -> dict[str, Any]:
    """What a page says of words that somebody else has saved meanwhile."""
    mail = stored(conflict.campaign)
    theirs = {"subject": mail.subject, "text": mail.text, "html": mail.html}
    mine = form.mail()
    return {
        "saved": account_queries.last_entry("mail.saved", str(conflict.campaign.id)),
        "version": draft_versions.of(conflict.campaign),
        "labels": [form[name].label.text for name in conflict.fields],
        "theirs": [
            (form[name].label.text, words)
            for name, words in theirs.items()
            if name in conflict.fields and words != getattr(mine, name)
        ],
    }


def _preview(offer: Offer, kind: str, campaign: Campaign | None) -> Response:
    form = MailForm()
    values = _preview_values(form, offer, kind, campaign, typed=True)
    status = 200 if values["preview"] else 422
    return rendering.render("campaigns/_preview.html", status=status, **values)


def _preview_values(
    form: MailForm, offer: Offer, kind: str, campaign: Campaign | None, typed: bool = False
) -> dict[str, Any]:
    """What the preview shows: the mail as typed, or nothing while it can't be read."""
    preview = None
    seen_as = form.seen_as.data or ""
    try:
        validation.check_mail(form.mail())
        preview = as_seen(completed(form.mail(), kind), offer, seen_as)
    except Invalid as error:
        if not form.errors:
            rendering.attach(form, error)
    first: dict[str, Any] = {"offer_id": offer.id, "kind": kind}
    if campaign is None:
        save, show, look, here = "keep", "first_frame", "first_preview", first
    else:
        save, show, look, here = "save", "frame", "preview", {"campaign_id": campaign.id}
    return {
        "form": form,
        "offer": offer,
        "kind": kind,
        "preview": preview,
        "save_url": url_for(f"staff.writing.{save}", **here),
        "preview_url": url_for(f"staff.writing.{look}", **here),
        "frame_url": url_for(f"staff.writing.{show}", **here, seen_as=seen_as).removesuffix("?seen_as="),
        # Words that are kept nowhere can't be asked for by an address: the form itself is sent into the frame.
        "typed_url": url_for("staff.writing.typed_frame", **first) if typed else None,
    }


def _latest(offer_id: int, kind: str) -> Campaign | None:
    """What a new mail starts from: the latest of its kind, which was cancelled or, of a reminder, is through."""
    return next((campaign for campaign in campaign_queries.of_offer(offer_id) if campaign.kind == kind), None)


def as_seen(mail: MailText, offer: Offer, typed: str) -> Preview:
    """A mail as a customer would get it: whose e-mail was typed, else the first of the audience.

    :raises Invalid: when nobody has this e-mail.
    """
    return FormLetter(mail, offer, 0).preview(_recipient(offer, typed))


def _recipient(offer: Offer, typed: str) -> Customer:
    """The customer asked for, else the first of the audience, else somebody who is none.

    :raises Invalid: when nobody has this e-mail.
    """
    if typed.strip():
        try:
            customer = customer_queries.by_email(normalise_email(typed))
        except Invalid:
            customer = None
        if customer is None or customer.erased_at is not None:
            raise Invalid(FieldError("seen_as", "customer_unknown", "There is no customer with this e-mail."))
        return customer
    first = customer_queries.ids_after(offer.audience_id, 0, 1)
    customer = customer_queries.by_id(first[0]) if first else None
    return customer or Customer(
        id=personal_links.NOBODY, email="ada@example.com", email_as_given="ada@example.com", name="Ada Lovelace"
    )


# --- launching --------------------------------------------------------------------------------------


@room.get("/offers/<int:offer_id>/launch")
@needs("manager")
def review_of_offer(offer_id: int) -> BaseResponse:
    """Where the launch of an offer's announcement stood before each campaign had a page of its own."""
    find_offer(offer_id)
    found = campaign_queries.announcement(offer_id)
    if found is None:
        return redirect(url_for("staff.writing.begin", offer_id=offer_id, kind="announcement"), 303)
    return redirect(place(found, launching=True), 303)


@room.post("/offers/<int:offer_id>/launch")
def launch_of_offer(offer_id: int) -> BaseResponse:
    """Launch an offer's announcement now, from a page of the old kind that is still open."""
    offer = find_offer(offer_id)
    try:
        launched = campaign_tasks.launch_offer(offer_id, by=current_user.email)
    except DomainError as error:
        found = campaign_queries.announcement(offer_id)
        if found is None or found.status not in ("draft", "scheduled"):
            raise
        form = LaunchForm(formdata=None)
        form.show(found, offer.time_zone)
        rendering.attach(form, error)
        return _review(offer, found, form, error.status)
    return _launched(launched)


@room.get("/campaigns/<int:campaign_id>/launch")
@needs("manager")
def review(campaign_id: int) -> BaseResponse:
    """Who will get it, once more before it goes out; and when, as long as it waits."""
    campaign = find_campaign(campaign_id)
    if campaign.status not in ("draft", "scheduled"):
        return redirect(place(campaign), 303)
    offer = find_offer(campaign.offer_id)
    form = LaunchForm(formdata=None)
    form.show(campaign, offer.time_zone)
    return _review(offer, campaign, form)


@room.post("/campaigns/<int:campaign_id>/launch")
def launch(campaign_id: int) -> BaseResponse:
    """Launch it now, or have it start at a time."""
    campaign = find_campaign(campaign_id)
    offer = find_offer(campaign.offer_id)
    form = LaunchForm()
    try:
        if not form.validate_on_submit():
            return _review(offer, campaign, form, 422)
        at = form.moment(offer.time_zone)
        if at is None:
            launched = campaign_tasks.launch(campaign_id, current_user.email, form.again(), form.stood())
        else:
            launched = campaign_tasks.schedule(campaign_id, at, current_user.email, form.again(), form.stood())
    except DomainError as error:
        campaign = find_campaign(campaign_id)
        if campaign.status not in ("draft", "scheduled"):
            # Somebody else was faster, so this page is out of date; that of the mailing says how it stands.
            flash(error.message, "error")
            return redirect(place(campaign), 303)
        rendering.attach(form, error)
        # What is sent from here is sent by somebody who has seen how it stands now.
        form.seen.data = campaign.status
        return _review(find_offer(campaign.offer_id), campaign, form, error.status)
    return _launched(launched)


@room.post("/campaigns/<int:campaign_id>/draft")
def take_back(campaign_id: int) -> BaseResponse:
    """Make a draft again of what waits for its time."""
    try:
        campaign = launch_actions.take_back(campaign_id, by=current_user.email)
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
        return redirect(place(find_campaign(campaign_id)), 303)
    flash("It is a draft again and does not start by itself.", "success")
    return redirect(url_for("staff.writing.write", campaign_id=campaign.id), 303)


@room.get("/campaigns/<int:campaign_id>/waits")
@needs("manager")
def waits(campaign_id: int) -> Response:
    """Asked by the page of a mailing that waits for its time: nothing, until it has started and has another page."""
    campaign = find_campaign(campaign_id)
    answer = Response(status=204)
    if campaign.status not in ("draft", "scheduled"):
        answer.headers["HX-Redirect"] = place(campaign)
    return answer


def _launched(launched: launch_actions.Launched) -> BaseResponse:
    campaign = launched.campaign
    if campaign.status == "scheduled":
        offer = find_offer(campaign.offer_id)
        flash(f"It starts on {rendering.when(campaign.scheduled_at, offer.time_zone)}, by itself.", "success")
    elif launched.changed:
        flash("Launched. You can leave this page: the mails go out in the background.", "success")
    else:
        flash("It had been launched already; nothing was sent twice.", "info")
    return redirect(place(campaign), 303)


def _review(offer: Offer, campaign: Campaign, form: LaunchForm, status: int = 200) -> Response:
    return rendering.render(
        "campaigns/launch.html",
        status=status,
        form=form,
        offer=offer,
        campaign=campaign,
        preview=as_seen(stored(campaign), offer, ""),
        is_sample=any(isinstance(p, Slot) and p.name.startswith("customer.") for p in split(campaign.subject)),
        mail_is_sink=current_app.config["SETTINGS"].mail_is_sink,
        sender=addresses.shown_sender(),
        reach=launch_audience.of(campaign, offer),
        audience=audience_name(offer.audience_id),
        others=_other_zones(campaign, offer),
        at=offer_queries.clock(),
    )


def _other_zones(campaign: Campaign, offer: Offer) -> list[str]:
    """The time at which it starts as other clocks show it: the staff member's and UTC, where they differ."""
    at = campaign.scheduled_at
    if at is None:
        return []
    found = {at.astimezone(ZoneInfo(offer.time_zone)).utcoffset()}
    words = []
    for words_after, zone in ((" for you", current_user.time_zone), ("", "UTC")):
        offset = at.astimezone(ZoneInfo(zone)).utcoffset()
        if offset not in found:
            found.add(offset)
            words.append(f"{rendering.when(at, zone)}{words_after}")
    return words


def place(campaign: Campaign, launching: bool = False) -> str:
    """The page on which a campaign is to be found as it stands now."""
    if campaign.status == "scheduled" or (launching and campaign.status == "draft"):
        return url_for("staff.writing.review", campaign_id=campaign.id)
    if campaign.status == "draft":
        return url_for("staff.writing.write", campaign_id=campaign.id)
    return url_for("staff.campaigns.show", campaign_id=campaign.id)


def stored(campaign: Campaign) -> MailText:
    """The mail of a campaign as it was written."""
    return MailText(campaign.subject, campaign.text, campaign.html)


def audience_name(audience_id: int | None) -> str:
    """What an audience is called on screens; None is everyone."""
    if audience_id is None:
        return "Everyone"
    return next((audience.name for audience in customer_queries.audiences() if audience.id == audience_id), "–")


def find_offer(offer_id: int) -> Offer:
    """The offer of a page.

    :raises NotFound: when there is none.
    """
    offer = offer_queries.by_id(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    return offer


def find_campaign(campaign_id: int) -> Campaign:
    """The campaign of a page.

    :raises NotFound: when there is none.
    """
    campaign = campaign_queries.by_id(campaign_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign
