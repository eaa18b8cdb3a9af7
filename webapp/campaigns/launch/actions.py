"""Launch, schedule and unschedule campaigns.

Each step is one update that is conditional on the previous status.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import ColumnElement, and_, func, or_, update

from webapp.accounts.audit import record_audit_entry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.content.validation import validate_content
from webapp.campaigns.drafts.actions import insert_draft, require_launched_announcement
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.launch.preconditions import (
    require_expected_status,
    require_finished_announcement,
    require_recipients,
    require_usable_offer,
    validate_launch_time,
)
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import get_campaign
from webapp.campaigns.states import STATUS_SENTENCES, require_status
from webapp.core import task_queue
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer

# Statuses of a campaign that has not been launched; one that could not be launched at its scheduled time is paused.
_NOT_LAUNCHED = or_(Campaign.status == "scheduled", and_(Campaign.status == "paused", Campaign.launched_at.is_(None)))


@dataclass(frozen=True)
class LaunchResult:
    """The campaign, and whether this call launched or scheduled it."""

    campaign: Campaign
    changed: bool


def launch_campaign(
    campaign_id: int, by: str, include_earlier_recipients: bool | None = None, expected_status: str | None = None
) -> LaunchResult:
    """Launch a draft or a scheduled campaign now. Commits.

    Idempotent: `LaunchResult.changed` is False for a launched campaign. The cost does not depend on the size of the
    audience. Enqueues the task that prepares the campaign; when that task is lost, the sweep enqueues it again.

    :param include_earlier_recipients: whether it also goes to recipients of a cancelled campaign of this kind; None
        keeps the stored choice.
    :param expected_status: `draft` or `scheduled`, as shown to the user; None accepts both.
    :raises NotFound: when there is no such campaign.
    :raises DomainError: `audience_empty` when it would have no recipients; `offer_expired`, `offer_paused` or
        `offer_exhausted` when the code could not be redeemed; `conflict` when it was cancelled, its status is not the
        expected one, or it is a reminder of an announcement that is not finished.
    """
    campaign = get_campaign(campaign_id)
    require_expected_status(campaign, expected_status)
    if campaign.status == "cancelled":
        message = _("This campaign was cancelled. Create a new announcement.")
        if campaign.kind == "reminder":
            message = _("This campaign was cancelled. Create a new reminder.")
        raise DomainError("conflict", message)
    if campaign.status not in ("draft", "scheduled"):
        db.session.rollback()
        return LaunchResult(get_campaign(campaign_id), False)
    values: dict[str, Any] = {"scheduled_at": None} | (
        {} if include_earlier_recipients is None else {"mails_again": include_earlier_recipients}
    )
    statuses = (expected_status,) if expected_status else ("draft", "scheduled")
    if not set_launched(campaign, Campaign.status.in_(statuses), by, **values):
        # It was launched, cancelled, scheduled or unscheduled concurrently.
        return launch_campaign(campaign_id, by, include_earlier_recipients, expected_status)
    return _enqueue_if_changed(get_campaign(campaign_id), changed=True)


def schedule_campaign(
    campaign_id: int,
    at: datetime,
    by: str,
    include_earlier_recipients: bool | None = None,
    expected_status: str | None = None,
) -> LaunchResult:
    """Schedule a draft, or reschedule a scheduled campaign. Commits.

    Idempotent. The offer can be edited until then: the campaign uses the offer as it is at the launch.

    :param at: the time of the launch, with a time zone.
    :param include_earlier_recipients: see `launch_campaign`.
    :param expected_status: see `launch_campaign`.
    :raises NotFound: when there is no such campaign.
    :raises InvalidInput: at `at`, when the time is in the past, out of range, or not before the offer's end.
    :raises DomainError: `conflict` when it has been launched or cancelled, or its status is not the expected one.
    """
    campaign = get_campaign(campaign_id)
    require_expected_status(campaign, expected_status)
    require_status(campaign, ("draft", "scheduled"), _("It can't be scheduled."))
    offer = _lock_offer(campaign.offer_id)
    validate_launch_time(at, offer)
    unchanged = [Campaign.status == "scheduled", Campaign.scheduled_at == at]
    values: dict[str, Any] = {"status": "scheduled", "scheduled_at": at, "launched_by": by}
    if include_earlier_recipients is not None:
        unchanged.append(Campaign.mails_again == include_earlier_recipients)
        values["mails_again"] = include_earlier_recipients
    statuses = (expected_status,) if expected_status else ("draft", "scheduled")
    changed = _update_campaign_if(campaign_id, and_(Campaign.status.in_(statuses), ~and_(*unchanged)), values)
    if changed:
        record_audit_entry(
            by, "campaign.scheduled", offer.code_as_written, campaign=campaign_id, at=at.astimezone(UTC).isoformat()
        )
    db.session.commit()
    campaign = get_campaign(campaign_id)
    if not changed:
        # It was launched, cancelled, scheduled or unscheduled concurrently.
        require_expected_status(campaign, expected_status)
        require_status(campaign, ("scheduled",), _("It can't be scheduled."))
    return _enqueue_if_changed(campaign, changed)


def unschedule_campaign(campaign_id: int, by: str) -> Campaign:
    """Turn a scheduled campaign back into a draft. Idempotent. Commits.

    The same applies to one that could not be launched at its scheduled time.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it has been launched.
    """
    values = {"status": "draft", "scheduled_at": None, "launched_by": None, "pause_reason": None}
    if _update_campaign_if(campaign_id, _NOT_LAUNCHED, values):
        record_audit_entry(by, "campaign.taken_back", str(campaign_id))
    db.session.commit()
    campaign = get_campaign(campaign_id)
    require_status(campaign, ("draft",), _("It can't be returned to draft."))
    return campaign


def launch_due_campaigns() -> list[int]:
    """Launch every scheduled campaign that is due; return their ids.

    It includes those that became due while no worker ran. Safe to run concurrently. Commits each campaign separately.
    When the code could not be redeemed, or there are no recipients, the campaign is paused with the reason; staff fix
    the cause and resume it.
    """
    launched_ids = [
        campaign_id for campaign_id in launch_queries.list_due_campaign_ids() if _launch_due_campaign(campaign_id)
    ]
    for campaign_id in launched_ids:
        task_queue.enqueue("campaigns.prepare", campaign_id)
    return launched_ids


def _launch_due_campaign(campaign_id: int) -> bool:
    campaign = get_campaign(campaign_id)
    is_due = and_(Campaign.status == "scheduled", Campaign.scheduled_at <= func.now())
    try:
        return set_launched(campaign, is_due, campaign.launched_by or "")
    except DomainError as error:
        reason = _("it could not be launched at the scheduled time. %(cause)s", cause=error.message).rstrip(".")
        if _update_campaign_if(campaign_id, is_due, {"status": "paused", "pause_reason": reason}):
            record_audit_entry(campaign.launched_by or "", "campaign.not_started", str(campaign_id), reason=error.key)
        db.session.commit()
        return False


def set_launched(campaign: Campaign, condition: ColumnElement[bool], by: str, **values: Any) -> bool:
    """Set a campaign to `preparing` if a condition still holds. Commits.

    :param values: further columns to set.
    :returns: False when the condition no longer holds, because of a concurrent change.
    :raises DomainError: as `launch_campaign`; then nothing is changed and the transaction has ended.
    """
    campaign_id, kind = campaign.id, campaign.kind
    # Locked, so that no edit of the offer comes between these checks and the launch.
    offer = _lock_offer(campaign.offer_id)
    try:
        require_usable_offer(offer)
        if kind == "reminder":
            require_finished_announcement(offer.id)
        require_recipients(offer, kind)
    except DomainError:
        db.session.rollback()
        raise
    # This statement is atomic: the second of two concurrent launches updates no row.
    is_launched = _update_campaign_if(
        campaign_id,
        condition,
        {
            "status": "preparing",
            "pause_reason": None,
            "launched_at": func.now(),
            "launched_by": by,
            "audience_id": offer.audience_id,
            **values,
        },
    )
    if is_launched:
        offer_actions.freeze_offer(offer.id)
        record_audit_entry(by, "campaign.launched", offer.code_as_written, campaign=campaign_id)
    db.session.commit()
    return is_launched


def _lock_offer(offer_id: int) -> Offer:
    """Lock the offer, before the campaign.

    The foreign key of an inserted draft locks the offer too, but more weakly.
    """
    offer = offer_queries.lock_offer(offer_id)
    if offer is None:
        raise NotFound(_("This offer does not exist."))
    return offer


def _update_campaign_if(campaign_id: int, condition: ColumnElement[bool], values: dict[str, Any]) -> bool:
    updated_id = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, condition)
        .values(**values)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    return updated_id is not None


def launch_announcement(offer_id: int, by: str, at: datetime | None = None) -> LaunchResult:
    """Launch the announcement of an offer. See `launch_campaign`.

    It has the default content if none was saved.

    :param at: when to launch it; None launches it now. A launched announcement is not changed.
    :raises NotFound: when there is no such offer.
    :raises DomainError: as `launch_campaign` or `schedule_campaign`; `conflict` when the announcement was cancelled and
        there is no new draft.
    """
    # Lock order: offer, then campaign, as in `launch_campaign` (see `_lock_offer`).
    if offer_queries.lock_offer(offer_id) is None:
        raise NotFound(_("This offer does not exist."))
    # One query: with two, a concurrent first launch between them could be mistaken for a cancelled campaign.
    campaigns = campaign_queries.list_offer_campaigns(offer_id)
    announcements = [campaign for campaign in campaigns if campaign.kind == "announcement"]
    campaign = next((announcement for announcement in announcements if announcement.status != "cancelled"), None)
    if campaign is None:
        if announcements:
            raise DomainError("conflict", _("The announcement of this offer was cancelled. Create a new announcement."))
        insert_draft(offer_id, EmailContent(), "announcement")
        campaign = campaign_queries.find_announcement(offer_id)
    if campaign is None:
        raise NotFound(_("This campaign does not exist."))
    if at is None:
        return launch_campaign(campaign.id, by)
    if campaign.status not in ("draft", "scheduled"):
        return LaunchResult(campaign, False)
    return schedule_campaign(campaign.id, at, by)


def launch_reminder(offer_id: int, content: EmailContent, by: str, at: datetime | None = None) -> LaunchResult:
    """Create a reminder and launch it, in one transaction.

    Customers who have redeemed do not receive it.

    :param at: when to launch it; None launches it now.
    :raises NotFound: when there is no such offer.
    :raises InvalidInput: when the content (`mail.subject`, …) or the time (`at`) is not valid.
    :raises DomainError: `conflict` while another reminder is unfinished, or before the offer was announced; otherwise
        as `launch_campaign`.
    """
    validate_content(content, field_prefix="mail")
    if offer_queries.lock_offer(offer_id) is None:
        raise NotFound(_("This offer does not exist."))
    require_launched_announcement(offer_id)
    campaign_id = insert_draft(offer_id, content, "reminder")
    if campaign_id is None:
        unfinished_reminder = campaign_queries.find_current_campaign(offer_id, "reminder")
        db.session.rollback()
        if unfinished_reminder is None:
            message = _(
                "This offer already has an unfinished reminder. You can create another one after it has finished."
            )
        else:
            message = _(
                "Campaign %(id)s is an unfinished reminder for this offer. %(status)s You can create another one after "
                "it has finished.",
                id=unfinished_reminder.id,
                status=STATUS_SENTENCES[unfinished_reminder.status],
            )
        raise DomainError("conflict", message)
    return launch_campaign(campaign_id, by) if at is None else schedule_campaign(campaign_id, at, by)


def _enqueue_if_changed(campaign: Campaign, changed: bool) -> LaunchResult:
    if changed:
        next_tasks.enqueue_next_task(campaign)
    return LaunchResult(campaign, changed)
