"""The states of a campaign in sentences, and the rule that an action needs one of them."""

from __future__ import annotations

from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError
from webapp.core.extensions import db

STATUS_PHRASES = {
    "draft": "has not been launched yet",
    "scheduled": "waits for its time",
    "preparing": "is on its way already",
    "sending": "is on its way already",
    "paused": "is paused",
    "cancelled": "was cancelled",
    "done": "is done already",
}


def require_status(campaign: Campaign, statuses: tuple[str, ...], words: str) -> None:
    """:raises DomainError: `conflict`, saying how the campaign stands now, when that is not one of `statuses`."""
    if campaign.status not in statuses:
        db.session.rollback()
        raise DomainError("conflict", f"This mailing {STATUS_PHRASES[campaign.status]}, so {words}.")
