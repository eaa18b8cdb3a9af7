"""Staff screens of a mail until it is on its way: writing it, and launching it now or at a time."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import queries as account_queries
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content import validation
from webapp.campaigns.content.mail_merge import MailMerge, Preview
from webapp.campaigns.content.placeholders import PLACEHOLDERS, EmailContent, parse_template, with_default_content
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.drafts import versions as draft_versions
from webapp.campaigns.drafts.actions import EditConflict
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import sender
from webapp.core import formatting
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail import addresses
from webapp.mail.template import Placeholder
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import personal_links
from webapp.views import rendering
from webapp.views.staff.blueprint import allow_form_size, preserve_form_data, require_role
from webapp.views.staff.forms.campaigns import EmailContentForm, LaunchForm

blueprint = Blueprint("campaign_editor", __name__)

# A body of five megabytes, should every character of it be written as three in the form.
CONTENT_FORM_SIZE_MAX = 16 * 1024 * 1024


# --- writing ----------------------------------------------------------------------------------------


@blueprint.get("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@blueprint.get("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@require_role("manager")
def new(offer_id: int, kind: str) -> BaseResponse:
    """The mail that an offer has now; while it has none, one to begin."""
    offer = get_offer_or_404(offer_id)
    found = campaign_queries.find_open_campaign(offer_id, kind)
    if found is not None:
        return redirect(campaign_url(found), 303)
    return _render_stored_draft(offer, kind, None)


@blueprint.post("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@allow_form_size(CONTENT_FORM_SIZE_MAX)
@preserve_form_data(subject="Subject", text="Text", html="HTML of your own")
def create(offer_id: int, kind: str) -> BaseResponse:
    """Keep what was typed as a new draft, or in the one that has come into being meanwhile."""
    return _save_form(get_offer_or_404(offer_id), kind, None)


@blueprint.get("/campaigns/<int:campaign_id>/mail")
@require_role("manager")
def edit(campaign_id: int) -> BaseResponse:
    """Write the mail of a draft and see what it looks like."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status != "draft":
        return redirect(campaign_url(campaign), 303)
    return _render_stored_draft(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/campaigns/<int:campaign_id>/mail")
@allow_form_size(CONTENT_FORM_SIZE_MAX)
@preserve_form_data(subject="Subject", text="Text", html="HTML of your own")
def save(campaign_id: int) -> BaseResponse:
    """Keep what was typed; then stay, go on to the launch, or send a test."""
    campaign = get_campaign_or_404(campaign_id)
    return _save_form(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/offers/<int:offer_id>/mail/preview", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder/preview", defaults={"kind": "reminder"})
@allow_form_size(CONTENT_FORM_SIZE_MAX)
def preview_new(offer_id: int, kind: str) -> Response:
    """The piece with the preview of a mail that has not been saved yet; nothing is kept."""
    return _render_preview(get_offer_or_404(offer_id), kind, None)


@blueprint.post("/campaigns/<int:campaign_id>/mail/preview")
@allow_form_size(CONTENT_FORM_SIZE_MAX)
def preview(campaign_id: int) -> Response:
    """The piece with the preview, as the mail would be with what is typed; nothing is kept."""
    campaign = get_campaign_or_404(campaign_id)
    return _render_preview(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
@allow_form_size(CONTENT_FORM_SIZE_MAX)
def frame_typed(offer_id: int, kind: str) -> Response:
    """The mail as it is typed, alone, for the frame of the preview; nothing is kept."""
    form = EmailContentForm()
    validation.validate_content(form.to_content())
    seen = preview_email(
        with_default_content(form.to_content(), kind), get_offer_or_404(offer_id), form.seen_as.data or ""
    )
    return rendering.sandboxed_response(seen.html)


@blueprint.get("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@blueprint.get("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
def frame_new(offer_id: int, kind: str) -> Response:
    """What a new mail starts from, alone, for the frame of the preview."""
    offer = get_offer_or_404(offer_id)
    latest = _find_latest_campaign(offer_id, kind)
    mail = campaign_content(latest) if latest else with_default_content(EmailContent(), kind)
    return rendering.sandboxed_response(preview_email(mail, offer, request.args.get("seen_as", "")).html)


@blueprint.get("/campaigns/<int:campaign_id>/mail/frame")
def frame(campaign_id: int) -> Response:
    """The saved mail as one customer sees it, alone, for the frame of the preview."""
    campaign = get_campaign_or_404(campaign_id)
    return rendering.sandboxed_response(
        preview_email(
            campaign_content(campaign), get_offer_or_404(campaign.offer_id), request.args.get("seen_as", "")
        ).html
    )


def _render_stored_draft(offer: Offer, kind: str, campaign: Campaign | None) -> Response:
    form = EmailContentForm(formdata=None)
    form.load_content(campaign or _find_latest_campaign(offer.id, kind), kind)
    form.version.data = draft_versions.draft_version(campaign)
    form.seen_as.data = request.args.get("seen_as", "")
    form.view.data = request.args.get("view", "wide")
    return _render_editor(form, offer, kind, campaign)


def _save_form(offer: Offer, kind: str, campaign: Campaign | None) -> BaseResponse:
    form = EmailContentForm()
    try:
        if not form.validate_on_submit():
            return _render_editor(form, offer, kind, campaign, 422)
        # Who was shown what somebody else has saved, and wants their own words nevertheless, says over which.
        seen = request.form.get("over", form.version.data)
        words = form.to_content(), form.uncertain_policy.data, current_user.email
        if campaign is None:
            campaign = draft_actions.save_offer_draft(offer.id, *words, kind, seen)
        else:
            campaign = draft_actions.update_draft(campaign.id, *words, seen)
        if "test" in request.form:
            form.version.data = draft_versions.draft_version(campaign)
            suppression_actions.check_not_suppressed(current_user.email)
            sender.send_test_email(
                with_default_content(form.to_content(), kind), offer, current_user.email, current_user.name
            )
            flash(f"A test is on its way to {current_user.email}.", "success")
    except EditConflict as error:
        return _render_editor(form, offer, kind, error.campaign, error.status, error)
    except DomainError as error:
        if campaign is not None:
            campaign = get_campaign_or_404(campaign.id)
        rendering.add_form_errors(form, error)
        return _render_editor(form, offer, kind, campaign, error.status)
    if "launch" in request.form:
        return redirect(url_for("staff.campaign_editor.review", campaign_id=campaign.id))
    if "test" not in request.form:
        flash("The mail is saved.", "success")
    looked_at = {name: form[name].data for name in ("seen_as", "view") if form[name].data}
    return redirect(url_for("staff.campaign_editor.edit", campaign_id=campaign.id, **looked_at))


def _render_editor(
    form: EmailContentForm,
    offer: Offer,
    kind: str,
    campaign: Campaign | None,
    status: int = 200,
    conflict: EditConflict | None = None,
) -> Response:
    page = rendering.render(
        "campaigns/mail.html",
        status=status,
        placeholders=PLACEHOLDERS,
        campaign=campaign,
        conflict=conflict and _conflict_values(conflict, form),
        **_preview_values(form, offer, kind, campaign, typed=status != 200),
    )
    return rendering.allow_frames(page)


def _conflict_values(conflict: EditConflict, form: EmailContentForm) -> dict[str, Any]:
    """What a page says of words that somebody else has saved meanwhile."""
    mail = campaign_content(conflict.campaign)
    theirs = {"subject": mail.subject, "text": mail.text, "html": mail.html}
    mine = form.to_content()
    return {
        "saved": account_queries.find_last_audit_entry("mail.saved", str(conflict.campaign.id)),
        "version": draft_versions.draft_version(conflict.campaign),
        "labels": [form[name].label.text for name in conflict.fields],
        "theirs": [
            (form[name].label.text, words)
            for name, words in theirs.items()
            if name in conflict.fields and words != getattr(mine, name)
        ],
    }


def _render_preview(offer: Offer, kind: str, campaign: Campaign | None) -> Response:
    form = EmailContentForm()
    values = _preview_values(form, offer, kind, campaign, typed=True)
    status = 200 if values["preview"] else 422
    return rendering.render("campaigns/_preview.html", status=status, **values)


def _preview_values(
    form: EmailContentForm, offer: Offer, kind: str, campaign: Campaign | None, typed: bool = False
) -> dict[str, Any]:
    """What the preview shows: the mail as typed, or nothing while it can't be read."""
    preview = None
    seen_as = form.seen_as.data or ""
    try:
        validation.validate_content(form.to_content())
        preview = preview_email(with_default_content(form.to_content(), kind), offer, seen_as)
    except InvalidInput as error:
        if not form.errors:
            rendering.add_form_errors(form, error)
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
        "save_url": url_for(f"staff.campaign_editor.{save}", **here),
        "preview_url": url_for(f"staff.campaign_editor.{look}", **here),
        "frame_url": url_for(f"staff.campaign_editor.{show}", **here, seen_as=seen_as).removesuffix("?seen_as="),
        # Words that are kept nowhere can't be asked for by an address: the form itself is sent into the frame.
        "typed_url": url_for("staff.campaign_editor.frame_typed", **first) if typed else None,
    }


def _find_latest_campaign(offer_id: int, kind: str) -> Campaign | None:
    """What a new mail starts from: the latest of its kind, which was cancelled or, of a reminder, is through."""
    return next(
        (campaign for campaign in campaign_queries.list_offer_campaigns(offer_id) if campaign.kind == kind), None
    )


def preview_email(mail: EmailContent, offer: Offer, typed: str) -> Preview:
    """A mail as a customer would get it: whose e-mail was typed, else the first of the audience.

    :raises Invalid: when nobody has this e-mail.
    """
    return MailMerge(mail, offer, 0).preview(_find_preview_customer(offer, typed))


def _find_preview_customer(offer: Offer, typed: str) -> Customer:
    """The customer asked for, else the first of the audience, else somebody who is none.

    :raises Invalid: when nobody has this e-mail.
    """
    if typed.strip():
        try:
            customer = customer_queries.find_customer_by_email(normalise_email(typed))
        except InvalidInput:
            customer = None
        if customer is None or customer.erased_at is not None:
            raise InvalidInput(FieldError("seen_as", "customer_unknown", "There is no customer with this e-mail."))
        return customer
    first = customer_queries.list_customer_ids_after(offer.audience_id, 0, 1)
    customer = customer_queries.find_customer(first[0]) if first else None
    return customer or Customer(
        id=personal_links.PREVIEW_CUSTOMER_ID,
        email="ada@example.com",
        email_as_given="ada@example.com",
        name="Ada Lovelace",
    )


# --- launching --------------------------------------------------------------------------------------


@blueprint.get("/offers/<int:offer_id>/launch")
@require_role("manager")
def review_announcement(offer_id: int) -> BaseResponse:
    """Where the launch of an offer's announcement stood before each campaign had a page of its own."""
    get_offer_or_404(offer_id)
    found = campaign_queries.find_announcement(offer_id)
    if found is None:
        return redirect(url_for("staff.campaign_editor.new", offer_id=offer_id, kind="announcement"), 303)
    return redirect(campaign_url(found, launching=True), 303)


@blueprint.post("/offers/<int:offer_id>/launch")
def launch_announcement(offer_id: int) -> BaseResponse:
    """Launch an offer's announcement now, from a page of the old kind that is still open."""
    offer = get_offer_or_404(offer_id)
    try:
        launched = launch_actions.launch_announcement(offer_id, by=current_user.email)
    except DomainError as error:
        found = campaign_queries.find_announcement(offer_id)
        if found is None or found.status not in ("draft", "scheduled"):
            raise
        form = LaunchForm(formdata=None)
        form.load_campaign(found, offer.time_zone)
        rendering.add_form_errors(form, error)
        return _render_review(offer, found, form, error.status)
    return _redirect_after_launch(launched)


@blueprint.get("/campaigns/<int:campaign_id>/launch")
@require_role("manager")
def review(campaign_id: int) -> BaseResponse:
    """Who will get it, once more before it goes out; and when, as long as it waits."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status not in ("draft", "scheduled"):
        return redirect(campaign_url(campaign), 303)
    offer = get_offer_or_404(campaign.offer_id)
    form = LaunchForm(formdata=None)
    form.load_campaign(campaign, offer.time_zone)
    return _render_review(offer, campaign, form)


@blueprint.post("/campaigns/<int:campaign_id>/launch")
def launch(campaign_id: int) -> BaseResponse:
    """Launch it now, or have it start at a time."""
    campaign = get_campaign_or_404(campaign_id)
    offer = get_offer_or_404(campaign.offer_id)
    form = LaunchForm()
    try:
        if not form.validate_on_submit():
            return _render_review(offer, campaign, form, 422)
        at = form.start_time(offer.time_zone)
        if at is None:
            launched = launch_actions.launch_campaign(
                campaign_id, current_user.email, form.include_already_mailed(), form.seen_status()
            )
        else:
            launched = launch_actions.schedule_campaign(
                campaign_id, at, current_user.email, form.include_already_mailed(), form.seen_status()
            )
    except DomainError as error:
        campaign = get_campaign_or_404(campaign_id)
        if campaign.status not in ("draft", "scheduled"):
            # Somebody else was faster, so this page is out of date; that of the mailing says how it stands.
            flash(error.message, "error")
            return redirect(campaign_url(campaign), 303)
        rendering.add_form_errors(form, error)
        # What is sent from here is sent by somebody who has seen how it stands now.
        form.seen.data = campaign.status
        return _render_review(get_offer_or_404(campaign.offer_id), campaign, form, error.status)
    return _redirect_after_launch(launched)


@blueprint.post("/campaigns/<int:campaign_id>/draft")
def unschedule(campaign_id: int) -> BaseResponse:
    """Make a draft again of what waits for its time."""
    try:
        campaign = launch_actions.unschedule_campaign(campaign_id, by=current_user.email)
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
        return redirect(campaign_url(get_campaign_or_404(campaign_id)), 303)
    flash("It is a draft again and does not start by itself.", "success")
    return redirect(url_for("staff.campaign_editor.edit", campaign_id=campaign.id), 303)


@blueprint.get("/campaigns/<int:campaign_id>/waits")
@require_role("manager")
def launch_status(campaign_id: int) -> Response:
    """Asked by the page of a mailing that waits for its time: nothing, until it has started and has another page."""
    campaign = get_campaign_or_404(campaign_id)
    answer = Response(status=204)
    if campaign.status not in ("draft", "scheduled"):
        answer.headers["HX-Redirect"] = campaign_url(campaign)
    return answer


def _redirect_after_launch(launched: launch_actions.LaunchResult) -> BaseResponse:
    campaign = launched.campaign
    if campaign.status == "scheduled":
        offer = get_offer_or_404(campaign.offer_id)
        flash(
            f"It starts on {formatting.format_datetime(campaign.scheduled_at, offer.time_zone)}, by itself.", "success"
        )
    elif launched.changed:
        flash("Launched. You can leave this page: the mails go out in the background.", "success")
    else:
        flash("It had been launched already; nothing was sent twice.", "info")
    return redirect(campaign_url(campaign), 303)


def _render_review(offer: Offer, campaign: Campaign, form: LaunchForm, status: int = 200) -> Response:
    return rendering.render(
        "campaigns/launch.html",
        status=status,
        form=form,
        offer=offer,
        campaign=campaign,
        preview=preview_email(campaign_content(campaign), offer, ""),
        is_sample=any(
            isinstance(p, Placeholder) and p.name.startswith("customer.") for p in parse_template(campaign.subject)
        ),
        mail_is_sink=current_app.config["SETTINGS"].uses_mail_sink,
        sender=addresses.format_sender(),
        reach=launch_audience.count_campaign_recipients(campaign, offer),
        audience=audience_name(offer.audience_id),
        others=_format_start_in_other_zones(campaign, offer),
        at=offer_queries.database_now(),
    )


def _format_start_in_other_zones(campaign: Campaign, offer: Offer) -> list[str]:
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
            words.append(f"{formatting.format_datetime(at, zone)}{words_after}")
    return words


def campaign_url(campaign: Campaign, launching: bool = False) -> str:
    """The page on which a campaign is to be found as it stands now."""
    if campaign.status == "scheduled" or (launching and campaign.status == "draft"):
        return url_for("staff.campaign_editor.review", campaign_id=campaign.id)
    if campaign.status == "draft":
        return url_for("staff.campaign_editor.edit", campaign_id=campaign.id)
    return url_for("staff.campaigns.show", campaign_id=campaign.id)


def campaign_content(campaign: Campaign) -> EmailContent:
    """The mail of a campaign as it was written."""
    return EmailContent(campaign.subject, campaign.text, campaign.html)


def audience_name(audience_id: int | None) -> str:
    """What an audience is called on screens; None is everyone."""
    if audience_id is None:
        return "Everyone"
    return next((audience.name for audience in customer_queries.list_audiences() if audience.id == audience_id), "–")


def get_offer_or_404(offer_id: int) -> Offer:
    """The offer of a page.

    :raises NotFound: when there is none.
    """
    offer = offer_queries.find_offer(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    return offer


def get_campaign_or_404(campaign_id: int) -> Campaign:
    """The campaign of a page.

    :raises NotFound: when there is none.
    """
    campaign = campaign_queries.find_campaign(campaign_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign
