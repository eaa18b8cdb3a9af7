"""Queries for launches."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from webapp.campaigns.models import Campaign
from webapp.core.extensions import db


def find_announcement_in_progress(offer_id: int) -> Campaign | None:
    """Return the launched announcement of an offer unless it is done or cancelled."""
    return db.session.scalar(
        select(Campaign).where(
            Campaign.offer_id == offer_id,
            Campaign.kind == "announcement",
            Campaign.status.in_(("preparing", "sending", "paused")),
        )
    )


def list_due_campaign_ids() -> Sequence[int]:
    """Return the ids of campaigns that are due to be launched, earliest first."""
    statement = select(Campaign.id).where(Campaign.status == "scheduled", Campaign.scheduled_at <= func.now())
    return db.session.scalars(statement.order_by(Campaign.scheduled_at, Campaign.id)).all()


def seconds_until_next_launch() -> float | None:
    """Return the seconds until the next scheduled launch; None if over a minute."""
    statement = select(func.extract("epoch", func.min(Campaign.scheduled_at) - func.clock_timestamp())).where(
        Campaign.status == "scheduled"
    )
    seconds = db.session.scalar(statement)
    return max(0.0, float(seconds)) if seconds is not None and seconds <= 60 else None
