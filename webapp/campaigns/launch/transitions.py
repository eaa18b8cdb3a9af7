"""Pause, resume and cancel a campaign."""

from __future__ import annotations

from typing import Any

from flask_babel import gettext as _
from sqlalchemy import and_, func, update

from webapp.accounts.audit import record_audit_entry
from webapp.campaigns import stats_queries
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch.actions import start_campaign
from webapp.campaigns.launch.preconditions import require_usable_offer
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import get_campaign
from webapp.campaigns.states import require_status
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.offers import queries as offer_queries


def pause_campaign(campaign_id: int, by: str) -> Campaign:
    """Pause a campaign before its next window of 50. Pausing a paused campaign changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not in progress.
    """
    # The metric of automatic pauses relies on "paused by", so it is not translated.
    return _change_status(
        campaign_id,
        ("preparing", "sending"),
        {"status": "paused", "pause_reason": f"paused by {by}", "trouble": None},
        "campaign.paused",
        by,
        _("It can't be paused."),
    )


def resume_campaign(campaign_id: int, by: str) -> Campaign:
    """Resume a paused campaign where it stopped; one that failed to start at the scheduled time starts now.

    Resuming a campaign that is in progress changes nothing. Commits, and enqueues the next task.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not paused; otherwise as `require_usable_offer`, when the code would not
        work.
    """
    campaign = get_campaign(campaign_id)
    if campaign.status == "paused" and campaign.launched_at is None:
        start_campaign(campaign, and_(Campaign.status == "paused", Campaign.launched_at.is_(None)), by)
        campaign = get_campaign(campaign_id)
        require_status(campaign, ("preparing", "sending"), _("It can't be resumed."))
        next_tasks.enqueue_next_task(campaign)
        return campaign
    if campaign.status == "paused":
        offer = offer_queries.find_offer(campaign.offer_id)
        if offer is not None:
            require_usable_offer(offer)
    status = "preparing" if campaign.prepared_at is None else "sending"
    rate_start = {"sending_since": func.now(), "sent_before": stats_queries.get_campaign_stats(campaign_id).sent}
    values = {"status": status, "pause_reason": None, **rate_start}
    campaign = _change_status(
        campaign_id, ("paused",), values, "campaign.resumed", by, _("It can't be resumed."), ("preparing", "sending")
    )
    next_tasks.enqueue_next_task(campaign)
    return campaign


def cancel_campaign(campaign_id: int, by: str) -> Campaign:
    """Cancel a campaign before its next window; remaining recipients do not receive it.

    The cost does not depend on its size: a task cancels its batches (see `cancellation`). Cancelling a cancelled
    campaign changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is a draft or done.
    """
    campaign = _change_status(
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
        _("It can't be cancelled."),
    )
    task_queue.enqueue("campaigns.clean_up_cancelled")
    return campaign


def _change_status(
    campaign_id: int,
    from_statuses: tuple[str, ...],
    values: dict[str, Any],
    audit_action: str,
    by: str,
    consequence: str,
    accepted_statuses: tuple[str, ...] = (),
) -> Campaign:
    """Change the status if it is one of `from_statuses`, and record `audit_action`.

    Nothing is changed when the campaign already has the new status, or one of `accepted_statuses`.

    :raises DomainError: `conflict` for any other status, with the translated sentence `consequence`.
    """
    updated_id = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status.in_(from_statuses))
        .values(**values)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    if updated_id is not None:
        record_audit_entry(by, audit_action, str(campaign_id))
    db.session.commit()
    campaign = get_campaign(campaign_id)
    if updated_id is None:
        require_status(campaign, (values["status"], *accepted_statuses), consequence)
    return campaign
