"""Pause, resume and cancel a campaign."""

from __future__ import annotations

from typing import Any

from flask_babel import gettext as _
from sqlalchemy import and_, func, update

from webapp.accounts.audit import record_audit_entry
from webapp.campaigns import stats_queries
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch.actions import set_launched
from webapp.campaigns.launch.preconditions import require_usable_offer
from webapp.campaigns.models import STAFF_PAUSE_PREFIX, Campaign
from webapp.campaigns.queries import get_campaign
from webapp.campaigns.states import require_status
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.offers import queries as offer_queries


def pause_campaign(campaign_id: int, by: str) -> Campaign:
    """Pause a campaign before its next send window. Idempotent. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not in progress.
    """
    # Not translated: `monitoring.queries` and the pages detect pauses by staff by this prefix.
    return _change_status(
        campaign_id,
        ("preparing", "sending"),
        {"status": "paused", "pause_reason": f"{STAFF_PAUSE_PREFIX}{by}", "delivery_warning": None},
        "campaign.paused",
        by,
        _("It can't be paused."),
    )


def resume_campaign(campaign_id: int, by: str) -> Campaign:
    """Resume a paused campaign where it stopped. Idempotent. Commits.

    A campaign that could not be launched at its scheduled time is launched now. Enqueues the next task.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not paused; `offer_expired`, `offer_paused` or `offer_exhausted` when the
        code cannot be redeemed; as `launch_campaign` when it has not been launched.
    """
    campaign = get_campaign(campaign_id)
    if campaign.status == "paused" and campaign.launched_at is None:
        return _launch_overdue_campaign(campaign, by)
    if campaign.status == "paused":
        offer = offer_queries.find_offer(campaign.offer_id)
        if offer is not None:
            require_usable_offer(offer)
    status = "preparing" if campaign.prepared_at is None else "sending"
    rate_baseline = {"sending_since": func.now(), "sent_before": stats_queries.get_campaign_stats(campaign_id).sent}
    columns = {"status": status, "pause_reason": None, **rate_baseline}
    campaign = _change_status(
        campaign_id, ("paused",), columns, "campaign.resumed", by, _("It can't be resumed."), ("preparing", "sending")
    )
    next_tasks.enqueue_next_task(campaign)
    return campaign


def _launch_overdue_campaign(campaign: Campaign, by: str) -> Campaign:
    """Launch a paused campaign that could not be launched at its scheduled time."""
    set_launched(campaign, and_(Campaign.status == "paused", Campaign.launched_at.is_(None)), by)
    # It may have been launched or cancelled concurrently.
    campaign = get_campaign(campaign.id)
    require_status(campaign, ("preparing", "sending"), _("It can't be resumed."))
    next_tasks.enqueue_next_task(campaign)
    return campaign


def cancel_campaign(campaign_id: int, by: str) -> Campaign:
    """Cancel a campaign before its next send window. Idempotent. Commits.

    The remaining recipients do not receive it. The cost does not depend on its size: a task cleans up (see
    `cancellation`).

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
            "delivery_warning": None,
        },
        "campaign.cancelled",
        by,
        _("It can't be cancelled."),
    )
    task_queue.enqueue("campaigns.clean_up_cancelled")
    return campaign


def _change_status(
    campaign_id: int,
    allowed_statuses: tuple[str, ...],
    columns: dict[str, Any],
    audit_action: str,
    by: str,
    refusal: str,
    unchanged_statuses: tuple[str, ...] = (),
) -> Campaign:
    """Change the status if it is one of `allowed_statuses`; record `audit_action`.

    Does nothing if the campaign already has the new status, or one of `unchanged_statuses`.

    :raises DomainError: `conflict` for any other status, with the translated sentence `refusal`.
    """
    updated_id = db.session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.status.in_(allowed_statuses))
        .values(**columns)
        .returning(Campaign.id)
        .execution_options(synchronize_session=False)
    )
    if updated_id is not None:
        record_audit_entry(by, audit_action, str(campaign_id))
    db.session.commit()
    campaign = get_campaign(campaign_id)
    if updated_id is None:
        require_status(campaign, (columns["status"], *unchanged_statuses), refusal)
    return campaign
