"""What people and programs do with campaigns, and the rules. How mails then go out: batch_actions, delivery."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts.actions import record_audit_entry
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


def create_offer_with_announcement(values: OfferValues, mail: EmailContent | None, by: str) -> Offer:
    """An offer and the draft of its announcement, in one transaction.

    :param mail: None leaves the mail to be written later; the default stands in until then.
    :raises Invalid: with the errors of the offer and of the mail together (`mail.subject`, `mail.text`, `mail.html`).
    """
    wrong: list[FieldError] = []
    try:
        validate_content(mail or EmailContent(), field_prefix="mail")
    except InvalidInput as error:
        wrong += error.errors
    try:
        offer = offer_actions.insert_offer(values, by)
    except InvalidInput as error:
        db.session.rollback()
        raise InvalidInput(*error.errors, *wrong) from error
    if wrong:
        db.session.rollback()
        raise InvalidInput(*wrong)
    if mail is not None:
        insert_draft(offer.id, mail, "announcement")
    db.session.commit()
    return offer


class EditConflict(DomainError):
    """Somebody has saved other words since these were opened. `fields` differ from what was opened."""

    def __init__(self, campaign: Campaign, fields: list[str]) -> None:
        super().__init__("conflict", "Somebody has changed this mail since you opened it. Nothing was saved.")
        self.campaign, self.fields = campaign, fields


def save_offer_draft(
    offer_id: int, mail: EmailContent, policy: str, by: str, kind: str = "announcement", seen: str | None = None
) -> Campaign:
    """Write the announcement or the next reminder of an offer; it can be written anew until it is launched.

    :param policy: what becomes of a mail that was on its way when a worker died: `resend` or `hold`.
    :param seen: see `save`.
    :raises NotFound: when there is no such offer.
    :raises Invalid: when the mail can't be sent as it is.
    :raises DomainError: `conflict` when it has been launched, or it is a reminder of what was never announced.
    :raises ChangedMeanwhile: see `save`.
    """
    if offer_queries.find_offer(offer_id) is None:
        raise NotFound("There is no such offer.")
    _validate_draft(mail, policy)
    if kind == "reminder":
        require_launched_announcement(offer_id)
    made = insert_draft(offer_id, mail, kind)
    draft = campaign_queries.find_open_campaign(offer_id, kind)
    if draft is None:
        db.session.rollback()
        raise NotFound("There is no such campaign.")
    return update_draft(draft.id, mail, policy, by, seen if made is None else None)


def update_draft(campaign_id: int, mail: EmailContent, policy: str, by: str, seen: str | None = None) -> Campaign:
    """Write the mail of a draft. See `save_draft`.

    :param seen: the version (`versions.of`) that was open while these words were written; None asks for none.
    :raises NotFound: when there is no such campaign.
    :raises Invalid: when the mail can't be sent as it is.
    :raises ChangedMeanwhile: when other words than those of `seen` are stored, and not these already.
    :raises DomainError: `conflict` when it is no draft any more.
    """
    _validate_draft(mail, policy)
    # Locked, so that of two who save at once the second is told of the first.
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True, with_for_update=True)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    kind = campaign.kind
    if seen is not None and campaign.status == "draft":
        _require_expected_version(campaign, seen, {**_content_values(mail, kind), "uncertain_policy": policy})
    saved = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status == "draft")
        .values(**_content_values(mail, kind), uncertain_policy=policy)
        .returning(Campaign)
        .execution_options(populate_existing=True)
    )
    if saved is None:
        db.session.rollback()
        if get_campaign(campaign_id).status == "scheduled":
            raise DomainError(
                "conflict", "This mail waits for its time. Take the mailing back to the drafts to change it."
            )
        raise DomainError("conflict", "This mail has been launched, so it can't be changed any more.")
    record_audit_entry(by, "mail.saved", str(saved.id), offer=saved.offer_id)
    db.session.commit()
    return saved


def _validate_draft(mail: EmailContent, policy: str) -> None:
    validate_content(mail)
    if policy not in UNCERTAIN_POLICIES:
        raise InvalidInput(FieldError("uncertain_policy", "policy_unknown", "Choose one of the two."))


def _require_expected_version(campaign: Campaign, seen: str, words: dict[str, str]) -> None:
    fields = draft_versions.find_changed_fields(seen, campaign)
    if fields and any(getattr(campaign, name) != value for name, value in words.items()):
        db.session.rollback()
        raise EditConflict(get_campaign(campaign.id), fields)


def _content_values(mail: EmailContent, kind: str) -> dict[str, str]:
    """What is kept of a mail."""
    full = with_default_content(mail, kind)
    return {"subject": full.subject or str(DEFAULT_SUBJECT), "text": full.text, "html": full.html}


def insert_draft(offer_id: int, mail: EmailContent, kind: str) -> int | None:
    """The draft of an offer's announcement or reminder; None if it has one that is open, or more than a draft."""
    return db.session.scalar(
        insert(Campaign)
        .values(offer_id=offer_id, kind=kind, **_content_values(mail, kind))
        .on_conflict_do_nothing()
        .returning(Campaign.id)
    )


def require_launched_announcement(offer_id: int) -> None:
    if not any(
        c.kind == "announcement" and c.launched_at is not None for c in campaign_queries.list_offer_campaigns(offer_id)
    ):
        db.session.rollback()
        raise DomainError(
            "conflict", "Nobody has been told of this offer yet. Launch the mail that announces it first."
        )
