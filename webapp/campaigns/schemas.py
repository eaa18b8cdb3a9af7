"""The JSON of campaigns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field

from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import Counts

Status = Literal["draft", "preparing", "sending", "paused", "cancelled", "done"]


class OfferPath(BaseModel):
    code: str = Field(description="The offer's code; case, spaces and dashes do not matter.", examples=["SUMMER25"])


class CampaignPath(BaseModel):
    id: int = Field(description="The campaign's number.", ge=1, lt=1 << 63)


class CampaignOut(BaseModel):
    """Where a campaign stands. `total` grows while it is `preparing`; of the other counts each person is in one."""

    id: int
    offer: str = Field(description="The offer's code.")
    kind: Literal["announcement", "reminder"]
    status: Status
    pause_reason: str | None = Field(description="Why it is paused.")
    trouble: str | None = Field(description="What keeps the mails from going out just now although it is not paused.")
    total: int
    sent: int
    failed: int
    deferred: int = Field(description="Put off by the receiving side; tried again for two days.")
    uncertain: int = Field(description="The connection broke after the mail was handed over; nobody knows.")
    skipped: int = Field(description="Unsubscribed, erased, or redeemed already.")
    rate: float | None = Field(description="Mails per second since it last started.")
    seconds_left: int | None = Field(description="What is left at that rate.")
    launched_at: datetime | None
    finished_at: datetime | None


def campaign_json(campaign: Campaign, counts: Counts, code: str) -> dict[str, object]:
    """The JSON of one campaign."""
    return {
        "id": campaign.id,
        "offer": code,
        "kind": campaign.kind,
        "status": campaign.status,
        "pause_reason": campaign.pause_reason,
        "trouble": campaign.trouble,
        "total": counts.total,
        "sent": counts.sent,
        "failed": counts.failed,
        "deferred": counts.deferred,
        "uncertain": counts.uncertain,
        "skipped": counts.skipped,
        "rate": None if counts.rate is None else round(counts.rate, 2),
        "seconds_left": counts.seconds_left,
        "launched_at": _time(campaign.launched_at),
        "finished_at": _time(campaign.finished_at),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
