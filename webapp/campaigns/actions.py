"""What people and programs do with campaigns, and the rules. How mails then go out: batch_actions, delivery."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, text, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts.actions import record
from webapp.campaigns import queries
from webapp.campaigns.check import check_mail
from webapp.campaigns.models import Batch, Campaign, MailIssue
from webapp.campaigns.wording import DEFAULT_SUBJECT, MailText
from webapp.errors import DomainError, FieldError, Invalid, NotFound
from webapp.extensions import db
from webapp.offers import actions as offers
from webapp.offers import queries as offer_queries
from webapp.offers.actions import OfferValues
from webapp.offers.models import Offer

__all__ = ["Launched", "MailText", "check_mail"]

POLICIES = ("resend", "hold")
REFUSALS = {
    "ended": ("offer_expired", "This offer has ended, so its code would not work. Give it a later end first."),
    "paused": ("offer_paused", "This offer is paused, so its code would not work. Resume the offer first."),
    "used_up": ("offer_exhausted", "This offer is used up, so its code would not work. Raise its limit first."),
}


@dataclass(frozen=True)
class Launched:
    """The campaign, and whether this very call launched it."""

    campaign: Campaign
    changed: bool


def create_offer(values: OfferValues, mail: MailText | None, by: str) -> Offer:
    """An offer and the draft of its announcement, in one transaction.

    :param mail: None leaves the mail to be written later; the default stands in until then.
    :raises Invalid: with the errors of the offer and of the mail together (`mail.subject`, `mail.text`, `mail.html`).
    """
    wrong: list[FieldError] = []
    try:
        check_mail(mail or MailText(), within="mail")
    except Invalid as error:
        wrong += error.errors
    try:
        offer = offers.add(values, by)
    except Invalid as error:
        db.session.rollback()
        raise Invalid(*error.errors, *wrong) from error
    if wrong:
        db.session.rollback()
        raise Invalid(*wrong)
    if mail is not None:
        _insert_draft(offer.id, mail)
    db.session.commit()
    return offer


def save_draft(offer_id: int, mail: MailText, policy: str, by: str | None) -> Campaign:
    """Write the announcement of an offer; it can be written anew until it is launched.

    :param policy: what becomes of a mail that was on its way when a worker died: `resend` or `hold`.
    :param by: None for what is kept while somebody types, which is no deed for the trail.
    :raises NotFound: when there is no such offer.
    :raises Invalid: when the mail can't be sent as it is.
    :raises DomainError: `conflict` when it has been launched.
    """
    if offer_queries.by_id(offer_id) is None:
        raise NotFound("There is no such offer.")
    check_mail(mail)
    if policy not in POLICIES:
        raise Invalid(FieldError("uncertain_policy", "policy_unknown", "Choose one of the two."))
    _insert_draft(offer_id, mail)
    saved = db.session.scalar(
        update(Campaign)
        .where(Campaign.offer_id == offer_id, Campaign.kind == "announcement", Campaign.status == "draft")
        .values(subject=mail.subject or DEFAULT_SUBJECT, text=mail.text, html=mail.html, uncertain_policy=policy)
        .returning(Campaign)
        .execution_options(populate_existing=True)
    )
    if saved is None:
        db.session.rollback()
        raise DomainError("conflict", "This mail has been launched, so it can't be changed any more.")
    if by is not None:
        record(by, "mail.saved", str(saved.id), offer=offer_id)
    db.session.commit()
    return saved


def launch_offer(offer_id: int, by: str) -> Launched:
    """Launch the announcement of an offer, with the default mail if none has been written. See `launch`.

    :raises NotFound: when there is no such offer.
    :raises DomainError: as `launch`; `conflict` when its mailing was cancelled and no new mail has been written.
    """
    # The offer before the campaign, here and in `launch`: a draft's foreign key would lock it otherwise, only weaker.
    if offer_queries.locked(offer_id) is None:
        raise NotFound("There is no such offer.")
    # One look: between two, somebody else's first launch would pass for a cancelled one.
    earlier = queries.of_offer(offer_id)
    campaign = next((c for c in earlier if c.kind == "announcement" and c.status != "cancelled"), None)
    if campaign is None:
        if earlier:
            raise DomainError("conflict", "The mailing of this offer was cancelled. Write a new mail to start again.")
        _insert_draft(offer_id, MailText())
        campaign = queries.announcement(offer_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return launch(campaign.id, by)


def launch(campaign_id: int, by: str) -> Launched:
    """Start a campaign. It costs the same for any audience; launching it again changes nothing and says so. Commits.

    The caller rings `tasks.prepare` afterwards; a lost bell is rung again by the sweep.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `audience_empty` when there is nobody to mail; `offer_expired`, `offer_paused` or
        `offer_exhausted` when the code would not work; `conflict` when it was cancelled.
    """
    campaign = _existing(campaign_id)
    if campaign.status == "cancelled":
        raise DomainError("conflict", "This mailing was cancelled. Write a new mail to start again.")
    if campaign.status != "draft":
        db.session.rollback()
        return Launched(_existing(campaign_id), False)
    # Locked, so that no edit comes between what is checked here and what is mailed.
    offer = offer_queries.locked(campaign.offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    _refuse_unusable(offer)
    if not queries.anyone_to_mail(offer.audience_id):
        raise DomainError(
            "audience_empty",
            "There is nobody to mail: the audience has no customers, or all of them must not be mailed. "
            "Import customers first.",
        )
    # The one statement that decides: of two launches at once, the second finds no draft.
    flipped = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status == "draft")
        .values(status="preparing", launched_at=func.now(), launched_by=by, audience_id=offer.audience_id)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    if flipped is not None:
        offers.freeze(offer.id)
        record(by, "campaign.launched", offer.code_as_written, campaign=campaign_id)
    db.session.commit()
    return Launched(_existing(campaign_id), flipped is not None)


def pause(campaign_id: int, by: str) -> Campaign:
    """Stop a campaign before its next window of 50. Pausing a paused one changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not under way.
    """
    return _flip(
        campaign_id,
        ("preparing", "sending"),
        "paused",
        {"status": "paused", "pause_reason": f"paused by {by}", "trouble": None},
        "campaign.paused",
        by,
        "Only a mailing that is under way can be paused.",
    )


def resume(campaign_id: int, by: str) -> Campaign:
    """Let a paused campaign go on where it stands. The caller rings `tasks.go_on`. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not paused; `offer_expired` and so on when the code would not work.
    """
    campaign = _existing(campaign_id)
    if campaign.status in ("preparing", "sending"):
        return campaign
    if campaign.status == "paused":
        offer = offer_queries.by_id(campaign.offer_id)
        if offer is not None:
            _refuse_unusable(offer)
    status = "preparing" if campaign.prepared_at is None else "sending"
    return _flip(
        campaign_id,
        ("paused",),
        status,
        {
            "status": status,
            "pause_reason": None,
            "sending_since": func.now(),
            "sent_before": queries.counts(campaign_id).sent,
        },
        "campaign.resumed",
        by,
        "Only a paused mailing can be resumed.",
    )


def cancel(campaign_id: int, by: str) -> Campaign:
    """End a campaign before its next window; who has not been mailed will not be. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it has not been launched, or is done.
    """
    campaign = _flip(
        campaign_id,
        ("preparing", "sending", "paused"),
        "cancelled",
        {
            "status": "cancelled",
            "finished_at": func.now(),
            "cancelled_at": func.now(),
            "pause_reason": None,
            "trouble": None,
        },
        "campaign.cancelled",
        by,
        "Only a mailing that is under way or paused can be cancelled.",
        commit=False,
    )
    db.session.execute(
        update(Batch).where(Batch.campaign_id == campaign_id, Batch.status == "pending").values(status="cancelled")
    )
    db.session.execute(
        update(MailIssue)
        .where(MailIssue.campaign_id == campaign_id, MailIssue.state == "deferred")
        .values(state="skipped", smtp_code=None, text="the mailing was cancelled", next_at=None)
    )
    db.session.commit()
    return campaign


def send_again(campaign_id: int, state: str, by: str) -> int:
    """Try again the mails that failed or that nobody knows about; returns how many. Commits.

    :param state: `failed` or `uncertain`.
    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when there are none, or the campaign was cancelled.
    """
    campaign = _existing(campaign_id)
    if state not in ("failed", "uncertain") or campaign.status not in ("sending", "paused", "done"):
        raise DomainError("conflict", "These mails can't be sent again.")
    due = db.session.execute(
        text(
            "update mail_issue set state = 'deferred', next_at = now(), at = now(), attempts = 0 "
            "where campaign_id = :id and state = :state "
            # A mail whose retry was killed keeps the end of its lease.
            "and (next_at is null or (state = 'uncertain' and next_at <= now()))"
        ),
        {"id": campaign_id, "state": state},
    )
    n = int(due.rowcount)  # type: ignore[attr-defined]
    if not n:
        db.session.rollback()
        raise DomainError("conflict", "There are no such mails any more.")
    db.session.execute(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status == "done")
        .values(status="sending", finished_at=None)
    )
    record(by, "campaign.sent_again", str(campaign_id), state=state, mails=n)
    db.session.commit()
    return n


def _insert_draft(offer_id: int, mail: MailText) -> None:
    """The announcement's draft, unless the offer has one or more than a draft."""
    db.session.execute(
        insert(Campaign)
        .values(offer_id=offer_id, subject=mail.subject or DEFAULT_SUBJECT, text=mail.text, html=mail.html)
        .on_conflict_do_nothing()
    )


def _existing(campaign_id: int) -> Campaign:
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign


def _refuse_unusable(offer: Offer) -> None:
    state = offer.state(datetime.now(UTC))
    if state in REFUSALS:
        raise DomainError(*REFUSALS[state])


def _flip(
    campaign_id: int,
    old: tuple[str, ...],
    new: str,
    values: dict[str, Any],
    deed: str,
    by: str,
    refusal: str,
    commit: bool = True,
) -> Campaign:
    """Change the status, guarded by the old one; when it is the new one already, change nothing."""
    flipped = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status.in_(old))
        .values(**values)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    if flipped is None:
        db.session.rollback()
        campaign = _existing(campaign_id)
        if campaign.status != new:
            raise DomainError("conflict", refusal)
        return campaign
    record(by, deed, str(campaign_id))
    if commit:
        db.session.commit()
    return _existing(campaign_id)
