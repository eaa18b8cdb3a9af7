"""Letting a campaign go: now, at its time, or not after all. Each step is one update that asks for the old status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, update

from webapp.accounts.actions import record_audit_entry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.content.validation import validate_content
from webapp.campaigns.drafts.actions import insert_draft, require_launched_announcement
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import get_campaign
from webapp.campaigns.states import STATUS_PHRASES, require_status
from webapp.core import task_queue
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer

OFFER_STATE_REFUSALS = {
    "ended": ("offer_expired", "This offer has ended, so its code would not work. Give it a later end first."),
    "paused": ("offer_paused", "This offer is paused, so its code would not work. Resume the offer first."),
    "used_up": ("offer_exhausted", "This offer is used up, so its code would not work. Raise its limit first."),
}
# Not launched so far. One that could not start at its time is paused without ever having been.
_NOT_LAUNCHED = or_(Campaign.status == "scheduled", and_(Campaign.status == "paused", Campaign.launched_at.is_(None)))


@dataclass(frozen=True)
class LaunchResult:
    """The campaign, and whether this very call launched it, or set its time."""

    campaign: Campaign
    changed: bool


def launch_campaign(campaign_id: int, by: str, again: bool | None = None, seen: str | None = None) -> LaunchResult:
    """Start a draft, or one that waits for its time, now. It costs the same for any audience; launching it again
    changes nothing and says so. Commits.

    Enqueues the task that prepares it; when that is lost, the sweep enqueues it again.

    :param again: whether it also goes to those who got a cancelled one before; None leaves that as it is.
    :param seen: `draft` or `scheduled`, as it stood on the page that was looked at; None asks for neither.
    :raises NotFound: when there is no such campaign.
    :raises DomainError: `audience_empty` when there is nobody to mail; `offer_expired`, `offer_paused` or
        `offer_exhausted` when the code would not work; `conflict` when it was cancelled, has been taken back or given
        a time since it was looked at, or is a reminder of an announcement that is still going out.
    """
    campaign = get_campaign(campaign_id)
    _require_expected_status(campaign, seen)
    if campaign.status == "cancelled":
        raise DomainError("conflict", "This mailing was cancelled. Write a new mail to start again.")
    if campaign.status not in ("draft", "scheduled"):
        db.session.rollback()
        return LaunchResult(get_campaign(campaign_id), False)
    chosen: dict[str, Any] = {"scheduled_at": None} | ({} if again is None else {"mails_again": again})
    changed = start_campaign(campaign, Campaign.status.in_((seen,) if seen else ("draft", "scheduled")), by, **chosen)
    return _enqueue_if_changed(get_campaign(campaign_id), changed)


def schedule_campaign(
    campaign_id: int, at: datetime, by: str, again: bool | None = None, seen: str | None = None
) -> LaunchResult:
    """Have a draft start by itself at a time, or change the time of one that waits. Saying the same time again changes
    nothing. The offer can be changed until then: it is mailed as it stands at the start. Commits.

    :param at: with a time zone.
    :param again: as in `launch`; so is `seen`.
    :raises NotFound: when there is no such campaign.
    :raises Invalid: at `at`, when the time has passed, is beyond all reason, or is after the offer's end.
    :raises DomainError: `conflict` when it is on its way, paused, cancelled or done, or stands otherwise than `seen`.
    """
    campaign = get_campaign(campaign_id)
    _require_expected_status(campaign, seen)
    require_status(campaign, ("draft", "scheduled"), "it can't be given a time")
    offer = _lock_offer(campaign.offer_id)
    _validate_start_time(at, offer)
    same = [Campaign.status == "scheduled", Campaign.scheduled_at == at]
    values: dict[str, Any] = {"status": "scheduled", "scheduled_at": at, "launched_by": by}
    if again is not None:
        same.append(Campaign.mails_again == again)
        values["mails_again"] = again
    changed = _update_campaign_if(
        campaign_id, and_(Campaign.status.in_((seen,) if seen else ("draft", "scheduled")), ~and_(*same)), values
    )
    if changed:
        record_audit_entry(
            by, "campaign.scheduled", offer.code_as_written, campaign=campaign_id, at=at.astimezone(UTC).isoformat()
        )
    db.session.commit()
    campaign = get_campaign(campaign_id)
    if not changed:
        # Somebody launched or stopped it since it was looked at.
        require_status(campaign, ("scheduled",), "it can't be given a time")
    return _enqueue_if_changed(campaign, changed)


def unschedule_campaign(campaign_id: int, by: str) -> Campaign:
    """Make a draft again of one that waits for its time, or could not start at it. Again changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it has been launched.
    """
    back = {"status": "draft", "scheduled_at": None, "launched_by": None, "pause_reason": None}
    if _update_campaign_if(campaign_id, _NOT_LAUNCHED, back):
        record_audit_entry(by, "campaign.taken_back", str(campaign_id))
    db.session.commit()
    campaign = get_campaign(campaign_id)
    require_status(campaign, ("draft",), "it can't become a draft again")
    return campaign


def start_due_campaigns() -> list[int]:
    """Start every campaign whose time has come, also if it came while no worker ran; returns which. Harmless when two
    workers do it at once. Commits each by itself.

    Where the offer's code would not work, or there is nobody to mail, the campaign is paused with the reason instead;
    staff mend it and resume.
    """
    started = [
        campaign_id for campaign_id in launch_queries.list_due_campaign_ids() if _start_due_campaign(campaign_id)
    ]
    for campaign_id in started:
        task_queue.enqueue("campaigns.prepare", campaign_id)
    return started


def _start_due_campaign(campaign_id: int) -> bool:
    campaign = get_campaign(campaign_id)
    is_due = and_(Campaign.status == "scheduled", Campaign.scheduled_at <= func.now())
    try:
        return start_campaign(campaign, is_due, campaign.launched_by or "")
    except DomainError as refusal:
        reason = f"it could not start at its time. {refusal.message}".rstrip(".")
        if _update_campaign_if(campaign_id, is_due, {"status": "paused", "pause_reason": reason}):
            record_audit_entry(campaign.launched_by or "", "campaign.not_started", str(campaign_id), reason=refusal.key)
        db.session.commit()
        return False


def start_campaign(campaign: Campaign, old: ColumnElement[bool], by: str, **values: Any) -> bool:
    """Flip a campaign to `preparing`, if `old` still holds of it; False when somebody was faster. Commits.

    :raises DomainError: as `launch`; then nothing is changed and the transaction is over.
    """
    campaign_id, kind = campaign.id, campaign.kind
    # Locked, so that no edit comes between what is checked here and what is mailed.
    offer = _lock_offer(campaign.offer_id)
    try:
        require_usable_offer(offer)
        if kind == "reminder":
            _require_finished_announcement(offer.id)
        _require_recipients(offer, kind)
    except DomainError:
        db.session.rollback()
        raise
    # The one statement that decides: of two launches at once, the second finds nothing to flip.
    flipped = _update_campaign_if(
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
        offer_actions.freeze_offer(offer.id)
        record_audit_entry(by, "campaign.launched", offer.code_as_written, campaign=campaign_id)
    db.session.commit()
    return flipped


def require_usable_offer(offer: Offer) -> None:
    """:raises DomainError: when the offer's code would not work for anybody now, and not by itself later."""
    state = offer.state(datetime.now(UTC))
    if state in OFFER_STATE_REFUSALS:
        raise DomainError(*OFFER_STATE_REFUSALS[state])


def _lock_offer(offer_id: int) -> Offer:
    """The offer before the campaign, everywhere: a draft's foreign key would lock it otherwise, only weaker."""
    offer = offer_queries.lock_offer(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    return offer


def _require_expected_status(campaign: Campaign, seen: str | None) -> None:
    """What waits again, or does not any more, since somebody looked at it."""
    if seen and campaign.status in ("draft", "scheduled") and campaign.status != seen:
        db.session.rollback()
        now = "was taken back to the drafts" if seen == "scheduled" else "was given a time at which it starts by itself"
        raise DomainError(
            "conflict", f"This mailing {now} since you opened this page. Look at it again before it goes."
        )


def _require_finished_announcement(offer_id: int) -> None:
    """A reminder does not overtake what it reminds of."""
    going = launch_queries.find_announcement_in_progress(offer_id)
    if going is not None:
        how = "is paused" if going.status == "paused" else "is still going out"
        raise DomainError(
            "conflict",
            f"The mail that announces this offer {how}. The reminder can be launched when it is done, or now be given "
            "a time to start by itself.",
        )


def _require_recipients(offer: Offer, kind: str) -> None:
    if not campaign_queries.has_mailable_customers(offer.audience_id):
        raise DomainError(
            "audience_empty",
            "There is nobody to mail: the audience has no customers, or all of them must not be mailed. "
            "Import customers first.",
        )
    if kind == "reminder" and not launch_audience.has_customers_to_remind(offer):
        raise DomainError("audience_empty", "There is nobody to remind: everybody who may be mailed has redeemed.")


def _validate_start_time(at: datetime, offer: Offer) -> None:
    wrong = None
    if at.year not in offer_actions.VALID_YEARS:
        wrong = (
            "time_out_of_range",
            f"Choose a day from {offer_actions.VALID_YEARS[0]} to {offer_actions.VALID_YEARS[-1]}.",
        )
    elif at <= offer_queries.database_now():
        wrong = "time_past", "This time has passed. Choose a later one, or launch it now."
    elif offer.ends_at is not None and at >= offer.ends_at:
        wrong = (
            "time_after_end",
            "The offer has ended by then, so its code would not work. Choose an earlier time, or give it a later end.",
        )
    if wrong:
        db.session.rollback()
        raise InvalidInput(FieldError("at", *wrong))


def _update_campaign_if(campaign_id: int, old: ColumnElement[bool], values: dict[str, Any]) -> bool:
    flipped = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, old)
        .values(**values)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    return flipped is not None


def launch_announcement(offer_id: int, by: str, at: datetime | None = None) -> LaunchResult:
    """Launch the announcement of an offer, with the default mail if none has been written. See `launch`.

    :param at: when it shall start by itself; None starts it now. What has been launched stays so.
    :raises NotFound: when there is no such offer.
    :raises DomainError: as `launch` or `schedule`; `conflict` when its mailing was cancelled and no new mail has been
        written.
    """
    # The offer before the campaign, here and in `launch`: a draft's foreign key would lock it otherwise, only weaker.
    if offer_queries.lock_offer(offer_id) is None:
        raise NotFound("There is no such offer.")
    # One look: between two, somebody else's first launch would pass for a cancelled one.
    earlier = [c for c in campaign_queries.list_offer_campaigns(offer_id) if c.kind == "announcement"]
    campaign = next((c for c in earlier if c.status != "cancelled"), None)
    if campaign is None:
        if earlier:
            raise DomainError("conflict", "The mailing of this offer was cancelled. Write a new mail to start again.")
        insert_draft(offer_id, EmailContent(), "announcement")
        campaign = campaign_queries.find_announcement(offer_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    if at is None:
        return launch_campaign(campaign.id, by)
    if campaign.status not in ("draft", "scheduled"):
        return LaunchResult(campaign, False)
    return schedule_campaign(campaign.id, at, by)


def launch_reminder(offer_id: int, mail: EmailContent, by: str, at: datetime | None = None) -> LaunchResult:
    """Write a reminder and launch it, in one transaction: to those of the offer's audience who have not redeemed.

    :param at: when it shall start by itself; None starts it now.
    :raises NotFound: when there is no such offer.
    :raises Invalid: when the mail can't be sent as it is (`mail.subject` …), or the time is none (`at`).
    :raises DomainError: `conflict` while another reminder is open, or before the offer was announced; as `launch`.
    """
    validate_content(mail, field_prefix="mail")
    if offer_queries.lock_offer(offer_id) is None:
        raise NotFound("There is no such offer.")
    require_launched_announcement(offer_id)
    made = insert_draft(offer_id, mail, "reminder")
    if made is None:
        found = campaign_queries.find_open_campaign(offer_id, "reminder")
        db.session.rollback()
        named = (
            f"Campaign {found.id} is a reminder of this offer, which {STATUS_PHRASES[found.status]}." if found else ""
        )
        raise DomainError("conflict", f"{named} There can be another one when it is through.".strip())
    return launch_campaign(made, by) if at is None else schedule_campaign(made, at, by)


def _enqueue_if_changed(campaign: Campaign, changed: bool) -> LaunchResult:
    if changed:
        next_tasks.enqueue_next_task(campaign)
    return LaunchResult(campaign, changed)
