"""What waits to be launched, and when."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from webapp.campaigns.models import Campaign
from webapp.core.extensions import db


def find_announcement_in_progress(offer_id: int) -> Campaign | None:
    """The announcement of an offer that has been launched and is neither done nor cancelled."""
    return db.session.scalar(
        select(Campaign).where(
            Campaign.offer_id == offer_id,
            Campaign.kind == "announcement",
            Campaign.status.in_(("preparing", "sending", "paused")),
        )
    )


def list_due_campaign_ids() -> Sequence[int]:
    """Campaigns whose time has come, the earliest first."""
    wanted = select(Campaign.id).where(Campaign.status == "scheduled", Campaign.scheduled_at <= func.now())
    return db.session.scalars(wanted.order_by(Campaign.scheduled_at, Campaign.id)).all()


def seconds_until_next_start() -> float | None:
    """In how many seconds the next campaign starts by itself, if within a minute."""
    first = select(func.extract("epoch", func.min(Campaign.scheduled_at) - func.clock_timestamp())).where(
        Campaign.status == "scheduled"
    )
    seconds = db.session.scalar(first)
    return max(0.0, float(seconds)) if seconds is not None and seconds <= 60 else None
