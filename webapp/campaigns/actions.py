"""What people and programs do with campaigns, and the rules. How mails then go out: batch_actions, delivery."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts.actions import record
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content import draft_versions
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, MailText, completed
from webapp.campaigns.content.validation import check_mail
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.launch.actions import (
    IS,
    Launched,
    existing,
    launch,
    refuse_unless,
    refuse_unusable,
    schedule,
    start,
    start_due,
    take_back,
)
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues

__all__ = ["Launched", "MailText", "check_mail", "launch", "schedule", "start_due", "take_back"]

POLICIES = ("resend", "hold")


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
        offer = offer_actions.add(values, by)
    except Invalid as error:
        db.session.rollback()
        raise Invalid(*error.errors, *wrong) from error
    if wrong:
        db.session.rollback()
        raise Invalid(*wrong)
    if mail is not None:
        _insert_draft(offer.id, mail, "announcement")
    db.session.commit()
    return offer


class ChangedMeanwhile(DomainError):
    """Somebody has saved other words since these were opened. `fields` differ from what was opened."""

    def __init__(self, campaign: Campaign, fields: list[str]) -> None:
        super().__init__("conflict", "Somebody has changed this mail since you opened it. Nothing was saved.")
        self.campaign, self.fields = campaign, fields


def save_draft(
    offer_id: int, mail: MailText, policy: str, by: str, kind: str = "announcement", seen: str | None = None
) -> Campaign:
    """Write the announcement or the next reminder of an offer; it can be written anew until it is launched.

    :param policy: what becomes of a mail that was on its way when a worker died: `resend` or `hold`.
    :param seen: see `save`.
    :raises NotFound: when there is no such offer.
    :raises Invalid: when the mail can't be sent as it is.
    :raises DomainError: `conflict` when it has been launched, or it is a reminder of what was never announced.
    :raises ChangedMeanwhile: see `save`.
    """
    if offer_queries.by_id(offer_id) is None:
        raise NotFound("There is no such offer.")
    _check(mail, policy)
    if kind == "reminder":
        _refuse_unannounced(offer_id)
    made = _insert_draft(offer_id, mail, kind)
    draft = launch_queries.open_of(offer_id, kind)
    if draft is None:
        db.session.rollback()
        raise NotFound("There is no such campaign.")
    return save(draft.id, mail, policy, by, seen if made is None else None)


def save(campaign_id: int, mail: MailText, policy: str, by: str, seen: str | None = None) -> Campaign:
    """Write the mail of a draft. See `save_draft`.

    :param seen: the version (`versions.of`) that was open while these words were written; None asks for none.
    :raises NotFound: when there is no such campaign.
    :raises Invalid: when the mail can't be sent as it is.
    :raises ChangedMeanwhile: when other words than those of `seen` are stored, and not these already.
    :raises DomainError: `conflict` when it is no draft any more.
    """
    _check(mail, policy)
    # Locked, so that of two who save at once the second is told of the first.
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True, with_for_update=True)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    kind = campaign.kind
    if seen is not None and campaign.status == "draft":
        _refuse_unseen(campaign, seen, {**_words(mail, kind), "uncertain_policy": policy})
    saved = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status == "draft")
        .values(**_words(mail, kind), uncertain_policy=policy)
        .returning(Campaign)
        .execution_options(populate_existing=True)
    )
    if saved is None:
        db.session.rollback()
        if existing(campaign_id).status == "scheduled":
            raise DomainError(
                "conflict", "This mail waits for its time. Take the mailing back to the drafts to change it."
            )
        raise DomainError("conflict", "This mail has been launched, so it can't be changed any more.")
    record(by, "mail.saved", str(saved.id), offer=saved.offer_id)
    db.session.commit()
    return saved


def launch_offer(offer_id: int, by: str, at: datetime | None = None) -> Launched:
    """Launch the announcement of an offer, with the default mail if none has been written. See `launch`.

    :param at: when it shall start by itself; None starts it now. What has been launched stays so.
    :raises NotFound: when there is no such offer.
    :raises DomainError: as `launch` or `schedule`; `conflict` when its mailing was cancelled and no new mail has been
        written.
    """
    # The offer before the campaign, here and in `launch`: a draft's foreign key would lock it otherwise, only weaker.
    if offer_queries.locked(offer_id) is None:
        raise NotFound("There is no such offer.")
    # One look: between two, somebody else's first launch would pass for a cancelled one.
    earlier = [c for c in campaign_queries.of_offer(offer_id) if c.kind == "announcement"]
    campaign = next((c for c in earlier if c.status != "cancelled"), None)
    if campaign is None:
        if earlier:
            raise DomainError("conflict", "The mailing of this offer was cancelled. Write a new mail to start again.")
        _insert_draft(offer_id, MailText(), "announcement")
        campaign = campaign_queries.announcement(offer_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    if at is None:
        return launch(campaign.id, by)
    if campaign.status not in ("draft", "scheduled"):
        return Launched(campaign, False)
    return schedule(campaign.id, at, by)


def remind(offer_id: int, mail: MailText, by: str, at: datetime | None = None) -> Launched:
    """Write a reminder and launch it, in one transaction: to those of the offer's audience who have not redeemed.

    :param at: when it shall start by itself; None starts it now.
    :raises NotFound: when there is no such offer.
    :raises Invalid: when the mail can't be sent as it is (`mail.subject` …), or the time is none (`at`).
    :raises DomainError: `conflict` while another reminder is open, or before the offer was announced; as `launch`.
    """
    check_mail(mail, within="mail")
    if offer_queries.locked(offer_id) is None:
        raise NotFound("There is no such offer.")
    _refuse_unannounced(offer_id)
    made = _insert_draft(offer_id, mail, "reminder")
    if made is None:
        found = launch_queries.open_of(offer_id, "reminder")
        db.session.rollback()
        named = f"Campaign {found.id} is a reminder of this offer, which {IS[found.status]}." if found else ""
        raise DomainError("conflict", f"{named} There can be another one when it is through.".strip())
    return launch(made, by) if at is None else schedule(made, at, by)


def pause(campaign_id: int, by: str) -> Campaign:
    """Stop a campaign before its next window of 50. Pausing a paused one changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not under way.
    """
    return _flip(
        campaign_id,
        ("preparing", "sending"),
        {"status": "paused", "pause_reason": f"paused by {by}", "trouble": None},
        "campaign.paused",
        by,
        "it can't be paused",
    )


def resume(campaign_id: int, by: str) -> Campaign:
    """Let a paused campaign go on where it stands; one that could not start at its time starts now. Resuming one that
    is under way changes nothing. Commits. The caller rings the bells.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not paused; `offer_expired` and so on when the code would not work.
    """
    campaign = existing(campaign_id)
    if campaign.status == "paused" and campaign.launched_at is None:
        start(campaign, and_(Campaign.status == "paused", Campaign.launched_at.is_(None)), by)
        campaign = existing(campaign_id)
        refuse_unless(campaign, ("preparing", "sending"), "it can't be resumed")
        return campaign
    if campaign.status == "paused":
        offer = offer_queries.by_id(campaign.offer_id)
        if offer is not None:
            refuse_unusable(offer)
    status = "preparing" if campaign.prepared_at is None else "sending"
    going = {"sending_since": func.now(), "sent_before": campaign_queries.counts(campaign_id).sent}
    values = {"status": status, "pause_reason": None, **going}
    return _flip(
        campaign_id, ("paused",), values, "campaign.resumed", by, "it can't be resumed", ("preparing", "sending")
    )


def cancel(campaign_id: int, by: str) -> Campaign:
    """End a campaign before its next window; who has not been mailed will not be. It costs the same for any size: its
    batches are closed by the sweep (`closing_actions`). Cancelling a cancelled one changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is a draft, or done.
    """
    return _flip(
        campaign_id,
        ("scheduled", "preparing", "sending", "paused"),
        {
            "status": "cancelled",
            "finished_at": func.now(),
            "cancelled_at": func.now(),
            "pause_reason": None,
            "trouble": None,
        },
        "campaign.cancelled",
        by,
        "it can't be cancelled",
    )


def _check(mail: MailText, policy: str) -> None:
    check_mail(mail)
    if policy not in POLICIES:
        raise Invalid(FieldError("uncertain_policy", "policy_unknown", "Choose one of the two."))


def _refuse_unseen(campaign: Campaign, seen: str, words: dict[str, str]) -> None:
    fields = draft_versions.changed(seen, campaign)
    if fields and any(getattr(campaign, name) != value for name, value in words.items()):
        db.session.rollback()
        raise ChangedMeanwhile(existing(campaign.id), fields)


def _refuse_unannounced(offer_id: int) -> None:
    if not any(c.kind == "announcement" and c.launched_at is not None for c in campaign_queries.of_offer(offer_id)):
        db.session.rollback()
        raise DomainError(
            "conflict", "Nobody has been told of this offer yet. Launch the mail that announces it first."
        )


def _words(mail: MailText, kind: str) -> dict[str, str]:
    """What is kept of a mail."""
    full = completed(mail, kind)
    return {"subject": full.subject or DEFAULT_SUBJECT, "text": full.text, "html": full.html}


def _insert_draft(offer_id: int, mail: MailText, kind: str) -> int | None:
    """The draft of an offer's announcement or reminder; None if it has one that is open, or more than a draft."""
    return db.session.scalar(
        insert(Campaign)
        .values(offer_id=offer_id, kind=kind, **_words(mail, kind))
        .on_conflict_do_nothing()
        .returning(Campaign.id)
    )


def _flip(
    campaign_id: int,
    old: tuple[str, ...],
    values: dict[str, Any],
    deed: str,
    by: str,
    refusal: str,
    already: tuple[str, ...] = (),
) -> Campaign:
    """Change the status, guarded by the old one. When it is the new one already, or one of `already`, change nothing;
    otherwise say how it stands now."""
    flipped = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status.in_(old))
        .values(**values)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    if flipped is not None:
        record(by, deed, str(campaign_id))
    db.session.commit()
    campaign = existing(campaign_id)
    if flipped is None:
        refuse_unless(campaign, (values["status"], *already), refusal)
    return campaign
