"""Staff pages of a campaign before its launch: email editor and launch page."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
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
from webapp.campaigns.sending import test_emails
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

# Five megabytes of content, percent-encoded. This is more than may be saved, so that the error is shown at its field.
CONTENT_FORM_SIZE_MAX = 16 * 1024 * 1024


# --- editor -----------------------------------------------------------------------------------------


@blueprint.get("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@blueprint.get("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@require_role("manager")
def new(offer_id: int, kind: str) -> BaseResponse:
    """Open the offer's current campaign, or the editor of a new one."""
    offer = get_offer_or_404(offer_id)
    found = campaign_queries.find_open_campaign(offer_id, kind)
    if found is not None:
        return redirect(campaign_url(found), 303)
    return _render_stored_draft(offer, kind, None)


@blueprint.post("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@allow_form_size(CONTENT_FORM_SIZE_MAX)
@preserve_form_data(subject=_l("Subject"), text=_l("Text"), html=_l("Custom HTML"))
def create(offer_id: int, kind: str) -> BaseResponse:
    """Save the form as a new draft, or in a draft created in the meantime."""
    return _save_form(get_offer_or_404(offer_id), kind, None)


@blueprint.get("/campaigns/<int:campaign_id>/mail")
@require_role("manager")
def edit(campaign_id: int) -> BaseResponse:
    """Edit and preview the email of a draft."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status != "draft":
        return redirect(campaign_url(campaign), 303)
    return _render_stored_draft(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/campaigns/<int:campaign_id>/mail")
@allow_form_size(CONTENT_FORM_SIZE_MAX)
@preserve_form_data(subject=_l("Subject"), text=_l("Text"), html=_l("Custom HTML"))
def save(campaign_id: int) -> BaseResponse:
    """Save the form; then stay, continue to the launch page or send a test email."""
    campaign = get_campaign_or_404(campaign_id)
    return _save_form(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/offers/<int:offer_id>/mail/preview", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder/preview", defaults={"kind": "reminder"})
@allow_form_size(CONTENT_FORM_SIZE_MAX)
def preview_new(offer_id: int, kind: str) -> Response:
    """Render the preview fragment of an unsaved new email; nothing is stored."""
    return _render_preview(get_offer_or_404(offer_id), kind, None)


@blueprint.post("/campaigns/<int:campaign_id>/mail/preview")
@allow_form_size(CONTENT_FORM_SIZE_MAX)
def preview(campaign_id: int) -> Response:
    """Render the preview fragment of the email as typed; nothing is stored."""
    campaign = get_campaign_or_404(campaign_id)
    return _render_preview(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
@allow_form_size(CONTENT_FORM_SIZE_MAX)
def frame_typed(offer_id: int, kind: str) -> Response:
    """Render only the email as typed, for the preview iframe; nothing is stored."""
    form = EmailContentForm()
    validation.validate_content(form.to_content())
    rendered = preview_email(
        with_default_content(form.to_content(), kind), get_offer_or_404(offer_id), form.seen_as.data or ""
    )
    return rendering.sandboxed_response(rendered.html)


@blueprint.get("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@blueprint.get("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
def frame_new(offer_id: int, kind: str) -> Response:
    """Render only the initial content of a new email, for the preview iframe."""
    offer = get_offer_or_404(offer_id)
    latest = _find_latest_campaign(offer_id, kind)
    content = campaign_content(latest) if latest else with_default_content(EmailContent(), kind)
    return rendering.sandboxed_response(preview_email(content, offer, request.args.get("seen_as", "")).html)


@blueprint.get("/campaigns/<int:campaign_id>/mail/frame")
def frame(campaign_id: int) -> Response:
    """Render only the saved email as one customer sees it, for the preview iframe."""
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
        # After a conflict, `over` is the version that staff chose to overwrite.
        version = request.form.get("over", form.version.data)
        values = form.to_content(), form.uncertain_policy.data, current_user.email
        if campaign is None:
            campaign = draft_actions.save_offer_draft(offer.id, *values, kind, version)
        else:
            campaign = draft_actions.update_draft(campaign.id, *values, version)
        if "test" in request.form:
            form.version.data = draft_versions.draft_version(campaign)
            suppression_actions.check_not_suppressed(current_user.email)
            test_emails.send_test_email(
                with_default_content(form.to_content(), kind), offer, current_user.email, current_user.name
            )
            flash(_("A test email has been sent to %(email)s.", email=current_user.email), "success")
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
        flash(_("The email has been saved."), "success")
    preview_args = {name: form[name].data for name in ("seen_as", "view") if form[name].data}
    return redirect(url_for("staff.campaign_editor.edit", campaign_id=campaign.id, **preview_args))


def _render_editor(
    form: EmailContentForm,
    offer: Offer,
    kind: str,
    campaign: Campaign | None,
    status: int = 200,
    conflict: EditConflict | None = None,
) -> Response:
    page = rendering.render(
        "campaigns/editor.html",
        status=status,
        placeholders=PLACEHOLDERS,
        campaign=campaign,
        conflict=conflict and _conflict_values(conflict, form),
        **_preview_values(form, offer, kind, campaign, is_unsaved=status != 200),
    )
    return rendering.allow_frames(page)


def _conflict_values(conflict: EditConflict, form: EmailContentForm) -> dict[str, Any]:
    """Return the template values of an edit conflict."""
    saved = campaign_content(conflict.campaign)
    saved_values = {"subject": saved.subject, "text": saved.text, "html": saved.html}
    typed = form.to_content()
    return {
        "audit_entry": account_queries.find_last_audit_entry("mail.saved", str(conflict.campaign.id)),
        "version": draft_versions.draft_version(conflict.campaign),
        "labels": [form[name].label.text for name in conflict.fields],
        "saved_values": [
            (form[name].label.text, value)
            for name, value in saved_values.items()
            if name in conflict.fields and value != getattr(typed, name)
        ],
    }


def _render_preview(offer: Offer, kind: str, campaign: Campaign | None) -> Response:
    form = EmailContentForm()
    values = _preview_values(form, offer, kind, campaign, is_unsaved=True)
    status = 200 if values["preview"] else 422
    return rendering.render("campaigns/_preview.html", status=status, **values)


def _preview_values(
    form: EmailContentForm, offer: Offer, kind: str, campaign: Campaign | None, is_unsaved: bool = False
) -> dict[str, Any]:
    """Return the template values of the preview.

    There is none while the content is invalid.
    """
    preview = None
    seen_as = form.seen_as.data or ""
    try:
        validation.validate_content(form.to_content())
        preview = preview_email(with_default_content(form.to_content(), kind), offer, seen_as)
    except InvalidInput as error:
        if not form.errors:
            rendering.add_form_errors(form, error)
    new_args: dict[str, Any] = {"offer_id": offer.id, "kind": kind}
    if campaign is None:
        save_view, frame_view, preview_view, args = "create", "frame_new", "preview_new", new_args
    else:
        save_view, frame_view, preview_view, args = "save", "frame", "preview", {"campaign_id": campaign.id}
    return {
        "form": form,
        "offer": offer,
        "kind": kind,
        "preview": preview,
        "save_url": url_for(f"staff.campaign_editor.{save_view}", **args),
        "preview_url": url_for(f"staff.campaign_editor.{preview_view}", **args),
        "frame_url": url_for(f"staff.campaign_editor.{frame_view}", **args, seen_as=seen_as).removesuffix("?seen_as="),
        # Unsaved content has no URL: the form itself is posted into the iframe.
        "typed_url": url_for("staff.campaign_editor.frame_typed", **new_args) if is_unsaved else None,
    }


def _find_latest_campaign(offer_id: int, kind: str) -> Campaign | None:
    """Return the latest campaign of a kind, whose content a new one starts from.

    It was cancelled or, in the case of a reminder, is done.
    """
    return next(
        (campaign for campaign in campaign_queries.list_offer_campaigns(offer_id) if campaign.kind == kind), None
    )


def preview_email(content: EmailContent, offer: Offer, customer_email: str) -> Preview:
    """Render an email as a customer would get it.

    :param customer_email: whose email to render; empty for the first customer of the audience.
    :raises InvalidInput: when there is no customer with this address.
    """
    return MailMerge(content, offer, 0).preview(_find_preview_customer(offer, customer_email))


def _find_preview_customer(offer: Offer, customer_email: str) -> Customer:
    """Return the requested customer, the first of the audience, or a sample.

    :raises InvalidInput: when there is no customer with this address.
    """
    if customer_email.strip():
        try:
            customer = customer_queries.find_customer_by_email(normalise_email(customer_email))
        except InvalidInput:
            customer = None
        if customer is None or customer.erased_at is not None:
            message = _("There is no customer with this email address.")
            raise InvalidInput(FieldError("seen_as", "customer_unknown", message))
        return customer
    first_ids = customer_queries.list_customer_ids_after(offer.audience_id, 0, 1)
    customer = customer_queries.find_customer(first_ids[0]) if first_ids else None
    return customer or Customer(
        id=personal_links.PREVIEW_CUSTOMER_ID,
        email="ada@example.com",
        email_as_given="ada@example.com",
        name="Ada Lovelace",  # no translation
    )


# --- launch -----------------------------------------------------------------------------------------


@blueprint.get("/offers/<int:offer_id>/launch")
@require_role("manager")
def review_announcement(offer_id: int) -> BaseResponse:
    """Redirect the former URL of the launch page to that of the offer's announcement."""
    get_offer_or_404(offer_id)
    found = campaign_queries.find_announcement(offer_id)
    if found is None:
        return redirect(url_for("staff.campaign_editor.new", offer_id=offer_id, kind="announcement"), 303)
    return redirect(campaign_url(found, to_launch=True), 303)


@blueprint.post("/offers/<int:offer_id>/launch")
def launch_announcement(offer_id: int) -> BaseResponse:
    """Launch an offer's announcement now, from a page of an earlier version."""
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
    """Show the number of recipients, and the start time if scheduled."""
    campaign = get_campaign_or_404(campaign_id)
    if campaign.status not in ("draft", "scheduled"):
        return redirect(campaign_url(campaign), 303)
    offer = get_offer_or_404(campaign.offer_id)
    form = LaunchForm(formdata=None)
    form.load_campaign(campaign, offer.time_zone)
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
            # The campaign was launched or cancelled in the meantime: show its current page.
            flash(error.message, "error")
            return redirect(campaign_url(campaign), 303)
        rendering.add_form_errors(form, error)
        # The page now shows the current status, so the next submission refers to it.
        form.seen.data = campaign.status
        return _render_review(get_offer_or_404(campaign.offer_id), campaign, form, error.status)
    return _redirect_after_launch(launched)


@blueprint.post("/campaigns/<int:campaign_id>/draft")
def unschedule(campaign_id: int) -> BaseResponse:
    """Turn a scheduled campaign back into a draft."""
    try:
        campaign = launch_actions.unschedule_campaign(campaign_id, by=current_user.email)
    except NotFound:
        raise
    except DomainError as error:
        flash(error.message, "error")
        return redirect(campaign_url(get_campaign_or_404(campaign_id)), 303)
    flash(_("The campaign is a draft again and does not start automatically."), "success")
    return redirect(url_for("staff.campaign_editor.edit", campaign_id=campaign.id), 303)


@blueprint.get("/campaigns/<int:campaign_id>/waits")
@require_role("manager")
def launch_status(campaign_id: int) -> Response:
    """Redirect the polling page of a scheduled campaign once it has started."""
    campaign = get_campaign_or_404(campaign_id)
    response = Response(status=204)
    if campaign.status not in ("draft", "scheduled"):
        response.headers["HX-Redirect"] = campaign_url(campaign)
    return response


def _redirect_after_launch(launched: launch_actions.LaunchResult) -> BaseResponse:
    campaign = launched.campaign
    if campaign.status == "scheduled":
        offer = get_offer_or_404(campaign.offer_id)
        start_time = formatting.format_datetime(campaign.scheduled_at, offer.time_zone)
        flash(_("The campaign starts automatically on %(time)s.", time=start_time), "success")
    elif launched.changed:
        flash(_("Launched. You can leave this page: the emails are sent in the background."), "success")
    else:
        flash(_("The campaign had already been launched; nothing was sent twice."), "info")
    return redirect(campaign_url(campaign), 303)


def _render_review(offer: Offer, campaign: Campaign, form: LaunchForm, status: int = 200) -> Response:
    return rendering.render(
        "campaigns/launch.html",
        status=status,
        form=form,
        offer=offer,
        campaign=campaign,
        preview=preview_email(campaign_content(campaign), offer, ""),
        is_sample_subject=any(
            isinstance(part, Placeholder) and part.name.startswith("customer.")
            for part in parse_template(campaign.subject)
        ),
        uses_mail_sink=current_app.config["SETTINGS"].uses_mail_sink,
        sender=addresses.format_sender(),
        audience_count=launch_audience.count_campaign_recipients(campaign, offer),
        audience=audience_name(offer.audience_id),
        other_zones=_format_start_in_other_zones(campaign, offer),
        now=offer_queries.database_now(),
    )


def _format_start_in_other_zones(campaign: Campaign, offer: Offer) -> list[str]:
    """Format the start time in the staff member's time zone and in UTC.

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


def campaign_url(campaign: Campaign, to_launch: bool = False) -> str:
    """Return the URL of the page for the campaign's current status.

    :param to_launch: whether that of a draft is its launch page instead of the editor.
    """
    if campaign.status == "scheduled" or (to_launch and campaign.status == "draft"):
        return url_for("staff.campaign_editor.review", campaign_id=campaign.id)
    if campaign.status == "draft":
        return url_for("staff.campaign_editor.edit", campaign_id=campaign.id)
    return url_for("staff.campaigns.show", campaign_id=campaign.id)


def campaign_content(campaign: Campaign) -> EmailContent:
    """Return the content of a campaign's email as it was written."""
    return EmailContent(campaign.subject, campaign.text, campaign.html)


def audience_name(audience_id: int | None) -> str:
    """Return the displayed name of an audience; None is the audience of all customers."""
    if audience_id is None:
        return str(_("All customers"))
    return next((audience.name for audience in customer_queries.list_audiences() if audience.id == audience_id), "–")


def get_offer_or_404(offer_id: int) -> Offer:
    """Load the offer of a page.

    :raises NotFound: when it does not exist.
    """
    offer = offer_queries.find_offer(offer_id)
    if offer is None:
        raise NotFound(_("There is no such offer."))
    return offer


def get_campaign_or_404(campaign_id: int) -> Campaign:
    """Load the campaign of a page.

    :raises NotFound: when it does not exist.
    """
    campaign = campaign_queries.find_campaign(campaign_id)
    if campaign is None:
        raise NotFound(_("There is no such campaign."))
    return campaign
