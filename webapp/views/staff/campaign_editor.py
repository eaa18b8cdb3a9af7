"""Email editor for campaigns: drafts, previews and test emails."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, flash, redirect, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import audit_queries
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content import validation
from webapp.campaigns.content.placeholders import PLACEHOLDERS, EmailContent, with_default_content
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.drafts import versions as draft_versions
from webapp.campaigns.drafts.actions import EditConflict
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import test_emails
from webapp.core import database_clock
from webapp.core.errors import DomainError, InvalidInput
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer
from webapp.views import rendering
from webapp.views.staff.blueprint import allow_form_size, preserve_form_data, require_role
from webapp.views.staff.campaign_pages import (
    campaign_content,
    campaign_url,
    check_preview_customer,
    get_campaign_or_404,
    get_offer_or_404,
    preview_email,
)
from webapp.views.staff.forms.campaigns import EmailContentForm

blueprint = Blueprint("campaign_editor", __name__)

# Five megabytes of content, percent-encoded. This is more than may be saved, so that the error is shown at its field.
MAX_CONTENT_FORM_BYTES = 16 * 1024 * 1024


@blueprint.get("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@blueprint.get("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@require_role("manager")
def new(offer_id: int, kind: str) -> BaseResponse:
    """Open the offer's current campaign, or the editor of a new one."""
    offer = get_offer_or_404(offer_id)
    campaign = campaign_queries.find_current_campaign(offer_id, kind)
    if campaign is not None:
        return redirect(campaign_url(campaign), 303)
    return _render_stored_draft(offer, kind, None)


@blueprint.post("/offers/<int:offer_id>/mail", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder", defaults={"kind": "reminder"})
@allow_form_size(MAX_CONTENT_FORM_BYTES)
@preserve_form_data(subject=_l("Subject"), text=_l("Text"), html=_l("Custom HTML"))
def create(offer_id: int, kind: str) -> BaseResponse:
    """Save the form as a new draft, or to the draft that was created concurrently."""
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
@allow_form_size(MAX_CONTENT_FORM_BYTES)
@preserve_form_data(subject=_l("Subject"), text=_l("Text"), html=_l("Custom HTML"))
def save(campaign_id: int) -> BaseResponse:
    """Save the form; then stay, continue to the launch page or send a test email."""
    campaign = get_campaign_or_404(campaign_id)
    return _save_form(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/offers/<int:offer_id>/mail/preview", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder/preview", defaults={"kind": "reminder"})
@allow_form_size(MAX_CONTENT_FORM_BYTES)
def preview_new(offer_id: int, kind: str) -> Response:
    """Render the preview fragment of an unsaved new email; nothing is stored."""
    return _render_preview(get_offer_or_404(offer_id), kind, None)


@blueprint.post("/campaigns/<int:campaign_id>/mail/preview")
@allow_form_size(MAX_CONTENT_FORM_BYTES)
def preview(campaign_id: int) -> Response:
    """Render the preview fragment of the email as entered; nothing is stored."""
    campaign = get_campaign_or_404(campaign_id)
    return _render_preview(get_offer_or_404(campaign.offer_id), campaign.kind, campaign)


@blueprint.post("/offers/<int:offer_id>/mail/frame", defaults={"kind": "announcement"})
@blueprint.post("/offers/<int:offer_id>/reminder/frame", defaults={"kind": "reminder"})
@allow_form_size(MAX_CONTENT_FORM_BYTES)
def frame_typed(offer_id: int, kind: str) -> Response:
    """Render only the email as entered, for the preview iframe; nothing is stored."""
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
    form.fill_from_campaign(campaign or _find_latest_campaign(offer.id, kind), kind)
    form.version.data = draft_versions.draft_version(campaign)
    form.seen_as.data = request.args.get("seen_as", "")
    form.view.data = request.args.get("view", "wide")
    return _render_editor(form, offer, kind, campaign)


def _save_form(offer: Offer, kind: str, campaign: Campaign | None) -> BaseResponse:
    form, is_saved = EmailContentForm(), False
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
        is_saved = True
        if "launch" not in request.form:
            form.version.data = draft_versions.draft_version(campaign)
            check_preview_customer(form.seen_as.data or "")
        if "test" in request.form:
            _send_test_email(with_default_content(form.to_content(), kind), offer)
    except EditConflict as error:
        return _render_editor(form, offer, kind, error.campaign, error.status, error)
    except DomainError as error:
        if campaign is not None:
            campaign = get_campaign_or_404(campaign.id)
        rendering.add_form_errors(form, error)
        if is_saved and "test" in request.form:
            form.errors_title = _("The email was saved, but no test email was sent.")
        elif is_saved:
            form.errors_title = _("The email was saved, but there is no preview.")
        return _render_editor(form, offer, kind, campaign, error.status)
    if "launch" in request.form:
        return redirect(url_for("staff.campaign_editor.review", campaign_id=campaign.id))
    if "test" not in request.form:
        flash(_("The email was saved."), "success")
    preview_args = {name: form[name].data for name in ("seen_as", "view") if form[name].data}
    return redirect(url_for("staff.campaign_editor.edit", campaign_id=campaign.id, **preview_args))


def _send_test_email(content: EmailContent, offer: Offer) -> None:
    suppression_actions.check_not_suppressed(current_user.email)
    test_emails.send_test_email(content, offer, current_user.email, current_user.name, shop=rendering.load_shop())
    flash(_("A test email was sent to %(email)s.", email=current_user.email), "success")


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
        is_ended=offer.state(database_clock.get_database_time()) == "ended",
        conflict=conflict and _conflict_values(conflict, form),
        **_preview_values(form, offer, kind, campaign, is_unsaved=status != 200),
    )
    return rendering.allow_frames(page)


def _conflict_values(conflict: EditConflict, form: EmailContentForm) -> dict[str, Any]:
    """Return the template values of an edit conflict."""
    saved = campaign_content(conflict.campaign)
    saved_values = {"subject": saved.subject, "text": saved.text, "html": saved.html}
    content = form.to_content()
    return {
        "audit_entry": audit_queries.find_last_audit_entry("mail.saved", str(conflict.campaign.id)),
        "version": draft_versions.draft_version(conflict.campaign),
        "labels": [form[name].label.text for name in conflict.fields],
        "saved_values": [
            (form[name].label.text, value)
            for name, value in saved_values.items()
            if name in conflict.fields and value != getattr(content, name)
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
