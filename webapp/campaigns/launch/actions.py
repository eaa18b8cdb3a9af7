"""Letting a campaign go: now, at its time, or not after all. Each step is one update that asks for the old status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, update

from webapp.accounts.actions import record
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer

REFUSALS = {
    "ended": ("offer_expired", "This offer has ended, so its code would not work. Give it a later end first."),
    "paused": ("offer_paused", "This offer is paused, so its code would not work. Resume the offer first."),
    "used_up": ("offer_exhausted", "This offer is used up, so its code would not work. Raise its limit first."),
}
IS = {
    "draft": "has not been launched yet",
    "scheduled": "waits for its time",
    "preparing": "is on its way already",
    "sending": "is on its way already",
    "paused": "is paused",
    "cancelled": "was cancelled",
    "done": "is done already",
}
# Not launched so far. One that could not start at its time is paused without ever having been.
_WAITS = or_(Campaign.status == "scheduled", and_(Campaign.status == "paused", Campaign.launched_at.is_(None)))


@dataclass(frozen=True)
class Launched:
    """The campaign, and whether this very call launched it, or set its time."""

    campaign: Campaign
    changed: bool


def launch(campaign_id: int, by: str, again: bool | None = None, seen: str | None = None) -> Launched:
    """Start a draft, or one that waits for its time, now. It costs the same for any audience; launching it again
    changes nothing and says so. Commits.

    The caller rings `tasks.prepare` afterwards; a lost bell is rung again by the sweep.

    :param again: whether it also goes to those who got a cancelled one before; None leaves that as it is.
    :param seen: `draft` or `scheduled`, as it stood on the page that was looked at; None asks for neither.
    :raises NotFound: when there is no such campaign.
    :raises DomainError: `audience_empty` when there is nobody to mail; `offer_expired`, `offer_paused` or
        `offer_exhausted` when the code would not work; `conflict` when it was cancelled, has been taken back or given
        a time since it was looked at, or is a reminder of an announcement that is still going out.
    """
    campaign = existing(campaign_id)
    _refuse_unseen(campaign, seen)
    if campaign.status == "cancelled":
        raise DomainError("conflict", "This mailing was cancelled. Write a new mail to start again.")
    if campaign.status not in ("draft", "scheduled"):
        db.session.rollback()
        return Launched(existing(campaign_id), False)
    chosen: dict[str, Any] = {"scheduled_at": None} | ({} if again is None else {"mails_again": again})
    changed = start(campaign, Campaign.status.in_((seen,) if seen else ("draft", "scheduled")), by, **chosen)
    return Launched(existing(campaign_id), changed)


def schedule(campaign_id: int, at: datetime, by: str, again: bool | None = None, seen: str | None = None) -> Launched:
    """Have a draft start by itself at a time, or change the time of one that waits. Saying the same time again changes
    nothing. The offer can be changed until then: it is mailed as it stands at the start. Commits.

    :param at: with a time zone.
    :param again: as in `launch`; so is `seen`.
    :raises NotFound: when there is no such campaign.
    :raises Invalid: at `at`, when the time has passed, is beyond all reason, or is after the offer's end.
    :raises DomainError: `conflict` when it is on its way, paused, cancelled or done, or stands otherwise than `seen`.
    """
    campaign = existing(campaign_id)
    _refuse_unseen(campaign, seen)
    refuse_unless(campaign, ("draft", "scheduled"), "it can't be given a time")
    offer = _locked(campaign.offer_id)
    _check_time(at, offer)
    same = [Campaign.status == "scheduled", Campaign.scheduled_at == at]
    values: dict[str, Any] = {"status": "scheduled", "scheduled_at": at, "launched_by": by}
    if again is not None:
        same.append(Campaign.mails_again == again)
        values["mails_again"] = again
    changed = _flip(
        campaign_id, and_(Campaign.status.in_((seen,) if seen else ("draft", "scheduled")), ~and_(*same)), values
    )
    if changed:
        record(by, "campaign.scheduled", offer.code_as_written, campaign=campaign_id, at=at.astimezone(UTC).isoformat())
    db.session.commit()
    campaign = existing(campaign_id)
    if not changed:
        # Somebody launched or stopped it since it was looked at.
        refuse_unless(campaign, ("scheduled",), "it can't be given a time")
    return Launched(campaign, changed)


def take_back(campaign_id: int, by: str) -> Campaign:
    """Make a draft again of one that waits for its time, or could not start at it. Again changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it has been launched.
    """
    back = {"status": "draft", "scheduled_at": None, "launched_by": None, "pause_reason": None}
    if _flip(campaign_id, _WAITS, back):
        record(by, "campaign.taken_back", str(campaign_id))
    db.session.commit()
    campaign = existing(campaign_id)
    refuse_unless(campaign, ("draft",), "it can't become a draft again")
    return campaign


def start_due() -> list[int]:
    """Start every campaign whose time has come, also if it came while no worker ran; returns which. Harmless when two
    workers do it at once. Commits each by itself.

    Where the offer's code would not work, or there is nobody to mail, the campaign is paused with the reason instead;
    staff mend it and resume.
    """
    return [campaign_id for campaign_id in launch_queries.due() if _start_due(campaign_id)]


def _start_due(campaign_id: int) -> bool:
    campaign = existing(campaign_id)
    is_due = and_(Campaign.status == "scheduled", Campaign.scheduled_at <= func.now())
    try:
        return start(campaign, is_due, campaign.launched_by or "")
    except DomainError as refusal:
        reason = f"it could not start at its time. {refusal.message}".rstrip(".")
        if _flip(campaign_id, is_due, {"status": "paused", "pause_reason": reason}):
            record(campaign.launched_by or "", "campaign.not_started", str(campaign_id), reason=refusal.key)
        db.session.commit()
        return False


def start(campaign: Campaign, old: ColumnElement[bool], by: str, **values: Any) -> bool:
    """Flip a campaign to `preparing`, if `old` still holds of it; False when somebody was faster. Commits.

    :raises DomainError: as `launch`; then nothing is changed and the transaction is over.
    """
    campaign_id, kind = campaign.id, campaign.kind
    # Locked, so that no edit comes between what is checked here and what is mailed.
    offer = _locked(campaign.offer_id)
    try:
        refuse_unusable(offer)
        if kind == "reminder":
            _refuse_unfinished(offer.id)
        _refuse_nobody(offer, kind)
    except DomainError:
        db.session.rollback()
        raise
    # The one statement that decides: of two launches at once, the second finds nothing to flip.
    flipped = _flip(
        campaign_id,
        old,
        {
            "status": "preparing",
            "pause_reason": None,
            "launched_at": func.now(),
            "launched_by": by,
            "audience_id": offer.audience_id,
            **values,
        },
    )
    if flipped:
        offer_actions.freeze(offer.id)
        record(by, "campaign.launched", offer.code_as_written, campaign=campaign_id)
    db.session.commit()
    return flipped


def refuse_unusable(offer: Offer) -> None:
    """:raises DomainError: when the offer's code would not work for anybody now, and not by itself later."""
    state = offer.state(datetime.now(UTC))
    if state in REFUSALS:
        raise DomainError(*REFUSALS[state])


def refuse_unless(campaign: Campaign, statuses: tuple[str, ...], words: str) -> None:
    """:raises DomainError: `conflict`, saying how the campaign stands now, when that is not one of `statuses`."""
    if campaign.status not in statuses:
        db.session.rollback()
        raise DomainError("conflict", f"This mailing {IS[campaign.status]}, so {words}.")


def existing(campaign_id: int) -> Campaign:
    """The campaign as it stands on disk.

    :raises NotFound: when there is none.
    """
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign


def _locked(offer_id: int) -> Offer:
    """The offer before the campaign, everywhere: a draft's foreign key would lock it otherwise, only weaker."""
    offer = offer_queries.locked(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    return offer


def _refuse_unseen(campaign: Campaign, seen: str | None) -> None:
    """What waits again, or does not any more, since somebody looked at it."""
    if seen and campaign.status in ("draft", "scheduled") and campaign.status != seen:
        db.session.rollback()
        now = "was taken back to the drafts" if seen == "scheduled" else "was given a time at which it starts by itself"
        raise DomainError(
            "conflict", f"This mailing {now} since you opened this page. Look at it again before it goes."
        )


def _refuse_unfinished(offer_id: int) -> None:
    """A reminder does not overtake what it reminds of."""
    going = launch_queries.announcement_under_way(offer_id)
    if going is not None:
        how = "is paused" if going.status == "paused" else "is still going out"
        raise DomainError(
            "conflict",
            f"The mail that announces this offer {how}. The reminder can be launched when it is done, or now be given "
            "a time to start by itself.",
        )


def _refuse_nobody(offer: Offer, kind: str) -> None:
    if not campaign_queries.anyone_to_mail(offer.audience_id):
        raise DomainError(
            "audience_empty",
            "There is nobody to mail: the audience has no customers, or all of them must not be mailed. "
            "Import customers first.",
        )
    if kind == "reminder" and not launch_audience.anyone_to_remind(offer):
        raise DomainError("audience_empty", "There is nobody to remind: everybody who may be mailed has redeemed.")


def _check_time(at: datetime, offer: Offer) -> None:
    wrong = None
    if at.year not in offer_actions.YEARS:
        wrong = "time_out_of_range", f"Choose a day from {offer_actions.YEARS[0]} to {offer_actions.YEARS[-1]}."
    elif at <= offer_queries.clock():
        wrong = "time_past", "This time has passed. Choose a later one, or launch it now."
    elif offer.ends_at is not None and at >= offer.ends_at:
        wrong = (
            "time_after_end",
            "The offer has ended by then, so its code would not work. Choose an earlier time, or give it a later end.",
        )
    if wrong:
        db.session.rollback()
        raise Invalid(FieldError("at", *wrong))


def _flip(campaign_id: int, old: ColumnElement[bool], values: dict[str, Any]) -> bool:
    flipped = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, old)
        .values(**values)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    return flipped is not None
