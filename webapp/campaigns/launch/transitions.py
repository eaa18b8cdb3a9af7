"""Pause, resume and cancel a campaign."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, func, update

from webapp.accounts.actions import record_audit_entry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch.actions import (
    require_usable_offer,
    start_campaign,
)
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import get_campaign
from webapp.campaigns.states import require_status
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.offers import queries as offer_queries


def pause_campaign(campaign_id: int, by: str) -> Campaign:
    """Stop a campaign before its next window of 50. Pausing a paused one changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not under way.
    """
    return _change_status(
        campaign_id,
        ("preparing", "sending"),
        {"status": "paused", "pause_reason": f"paused by {by}", "trouble": None},
        "campaign.paused",
        by,
        "it can't be paused",
    )


def resume_campaign(campaign_id: int, by: str) -> Campaign:
    """Let a paused campaign go on where it stands; one that could not start at its time starts now. Resuming one that
    is under way changes nothing. Commits, and enqueues its next task.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is not paused; `offer_expired` and so on when the code would not work.
    """
    campaign = get_campaign(campaign_id)
    if campaign.status == "paused" and campaign.launched_at is None:
        start_campaign(campaign, and_(Campaign.status == "paused", Campaign.launched_at.is_(None)), by)
        campaign = get_campaign(campaign_id)
        require_status(campaign, ("preparing", "sending"), "it can't be resumed")
        next_tasks.enqueue_next_task(campaign)
        return campaign
    if campaign.status == "paused":
        offer = offer_queries.find_offer(campaign.offer_id)
        if offer is not None:
            require_usable_offer(offer)
    status = "preparing" if campaign.prepared_at is None else "sending"
    going = {"sending_since": func.now(), "sent_before": campaign_queries.get_campaign_stats(campaign_id).sent}
    values = {"status": status, "pause_reason": None, **going}
    campaign = _change_status(
        campaign_id, ("paused",), values, "campaign.resumed", by, "it can't be resumed", ("preparing", "sending")
    )
    next_tasks.enqueue_next_task(campaign)
    return campaign


def cancel_campaign(campaign_id: int, by: str) -> Campaign:
    """End a campaign before its next window; who has not been mailed will not be. It costs the same for any size: its
    batches are closed by the sweep (`closing_actions`). Cancelling a cancelled one changes nothing. Commits.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when it is a draft, or done.
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
        "it can't be cancelled",
    )
    task_queue.enqueue("campaigns.clean_up_cancelled")
    return campaign


def _change_status(
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
        record_audit_entry(by, deed, str(campaign_id))
    db.session.commit()
    campaign = get_campaign(campaign_id)
    if flipped is None:
        require_status(campaign, (values["status"], *already), refusal)
    return campaign
