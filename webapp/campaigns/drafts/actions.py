"""Create and edit the drafts of campaigns.

`webapp.campaigns.launch` launches them.
"""

from __future__ import annotations

from flask_babel import gettext as _
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts.audit import record_audit_entry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, EmailContent, with_default_content
from webapp.campaigns.content.validation import validate_content
from webapp.campaigns.drafts import versions as draft_versions
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import get_campaign
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues

UNCERTAIN_POLICIES = ("resend", "hold")


def create_offer_with_announcement(values: OfferValues, content: EmailContent | None, by: str) -> Offer:
    """Create an offer and the draft of its announcement, in one transaction.

    :param content: None creates no draft; the default content is used until one is saved.
    :raises InvalidInput: with the errors of the offer and the content together (`mail.subject`, `mail.text`,
        `mail.html`).
    """
    content_errors: list[FieldError] = []
    try:
        validate_content(content or EmailContent(), field_prefix="mail")
    except InvalidInput as error:
        content_errors += error.errors
    try:
        offer = offer_actions.insert_offer(values, by)
    except InvalidInput as error:
        db.session.rollback()
        raise InvalidInput(*error.errors, *content_errors) from error
    if content_errors:
        db.session.rollback()
        raise InvalidInput(*content_errors)
    if content is not None:
        insert_draft(offer.id, content, "announcement")
    db.session.commit()
    return offer


class EditConflict(DomainError):
    """The draft was changed since it was opened.

    :param fields: the names of the changed fields.
    """

    def __init__(self, campaign: Campaign, fields: list[str]) -> None:
        super().__init__("conflict", _("This email was changed after you opened it. Nothing was saved."))
        self.campaign, self.fields = campaign, fields


def save_offer_draft(
    offer_id: int,
    content: EmailContent,
    uncertain_policy: str,
    by: str,
    kind: str = "announcement",
    expected_version: str | None = None,
) -> Campaign:
    """Save the announcement or the next reminder of an offer as a draft.

    It can be edited until it is launched.

    :param uncertain_policy: `resend` or `hold` for an email that was being sent when its worker was killed.
    :param expected_version: see `update_draft`.
    :raises NotFound: when there is no such offer.
    :raises InvalidInput: when the content is not valid.
    :raises DomainError: `conflict` when it has been launched, or is a reminder of an offer that was never announced.
    :raises EditConflict: see `update_draft`.
    """
    if offer_queries.find_offer(offer_id) is None:
        raise NotFound(_("This offer does not exist."))
    _validate_draft(content, uncertain_policy)
    if kind == "reminder":
        require_launched_announcement(offer_id)
    inserted_id = insert_draft(offer_id, content, kind)
    draft = campaign_queries.find_current_campaign(offer_id, kind)
    if draft is None:
        db.session.rollback()
        raise NotFound(_("This campaign does not exist."))
    return update_draft(draft.id, content, uncertain_policy, by, expected_version if inserted_id is None else None)


def update_draft(
    campaign_id: int, content: EmailContent, uncertain_policy: str, by: str, expected_version: str | None = None
) -> Campaign:
    """Save the content of a draft. See `save_offer_draft`.

    :param expected_version: the version (`versions.draft_version`) that the edit is based on; None skips the check.
    :raises NotFound: when there is no such campaign.
    :raises InvalidInput: when the content is not valid.
    :raises EditConflict: when the stored draft differs from `expected_version` and from these values.
    :raises DomainError: `conflict` when it is no longer a draft.
    """
    _validate_draft(content, uncertain_policy)
    # Locked, so that the second of two concurrent saves detects the first.
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True, with_for_update=True)
    if campaign is None:
        raise NotFound(_("This campaign does not exist."))
    kind = campaign.kind
    if expected_version is not None and campaign.status == "draft":
        values = {**_content_values(content, kind), "uncertain_policy": uncertain_policy}
        _require_expected_version(campaign, expected_version, values)
    saved = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status == "draft")
        .values(**_content_values(content, kind), uncertain_policy=uncertain_policy)
        .returning(Campaign)
        .execution_options(populate_existing=True)
    )
    if saved is None:
        db.session.rollback()
        if get_campaign(campaign_id).status == "scheduled":
            raise DomainError("conflict", _("This campaign is scheduled. Return it to draft to edit the email."))
        raise DomainError("conflict", _("This campaign has been launched, so the email can't be edited any more."))
    record_audit_entry(by, "mail.saved", str(saved.id), offer=saved.offer_id)
    db.session.commit()
    return saved


def _validate_draft(content: EmailContent, uncertain_policy: str) -> None:
    validate_content(content)
    if uncertain_policy not in UNCERTAIN_POLICIES:
        raise InvalidInput(FieldError("uncertain_policy", "policy_unknown", _("Choose one of the two options.")))


def _require_expected_version(campaign: Campaign, expected_version: str, values: dict[str, str]) -> None:
    fields = draft_versions.find_changed_fields(expected_version, campaign)
    if fields and any(getattr(campaign, name) != value for name, value in values.items()):
        db.session.rollback()
        raise EditConflict(get_campaign(campaign.id), fields)


def _content_values(content: EmailContent, kind: str) -> dict[str, str]:
    """Return the column values of an email's content, with the defaults filled in."""
    completed_content = with_default_content(content, kind)
    subject = completed_content.subject or str(DEFAULT_SUBJECT)
    return {"subject": subject, "text": completed_content.text, "html": completed_content.html}


def insert_draft(offer_id: int, content: EmailContent, kind: str) -> int | None:
    """Insert the draft of an offer's announcement or reminder; return its id.

    :returns: None when the offer already has an unfinished campaign of this kind.
    """
    return db.session.scalar(
        insert(Campaign)
        .values(offer_id=offer_id, kind=kind, **_content_values(content, kind))
        .on_conflict_do_nothing()
        .returning(Campaign.id)
    )


def require_launched_announcement(offer_id: int) -> None:
    """Require that the announcement of an offer was launched.

    :raises DomainError: `conflict`.
    """
    if not any(
        campaign.kind == "announcement" and campaign.launched_at is not None
        for campaign in campaign_queries.list_offer_campaigns(offer_id)
    ):
        db.session.rollback()
        raise DomainError("conflict", _("This offer has not been announced yet. Launch its announcement first."))
