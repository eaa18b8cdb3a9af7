"""The JSON of campaigns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from webapp.campaigns.deliveries.queries import DeliveryState, DeliveryStatus
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import CampaignStats
from webapp.views.api.schemas.offers import Mail
from webapp.views.api.schemas.types import RequestBody, Rfc3339Time

CampaignStatus = Literal["draft", "scheduled", "preparing", "sending", "paused", "cancelled", "done"]


class CampaignOfferPath(BaseModel):
    code: str = Field(description="The offer's code; case, spaces and dashes do not matter.", examples=["SUMMER25"])


class Launch(RequestBody):
    """When to launch; without a body, or without a time, now."""

    at: Rfc3339Time | None = Field(
        default=None,
        description="When it shall start by itself: after now and before the offer's end. Null is now.",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_missing_body(cls, given: object) -> object:
        """A call without a body means the same as an empty object."""
        return {} if given is None else given


class NewReminder(RequestBody):
    """A reminder to those who have not redeemed; what is left out of the mail is a text of its own."""

    mail: Mail | None = None
    at: Rfc3339Time | None = Field(
        default=None,
        description="When it shall start by itself: after now and before the offer's end. Null is now.",
    )


class CampaignListQuery(BaseModel):
    """A page of campaigns, newest first."""

    model_config = ConfigDict(extra="forbid")
    offer: Annotated[str | None, Field(description="Only those of this offer, by its code or an alias.")] = None
    status: CampaignStatus | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class CampaignPath(BaseModel):
    id: int = Field(description="The campaign's number.", ge=1, lt=1 << 63)


class CampaignOut(BaseModel):
    """Where a campaign stands. `total` grows while it is `preparing`; of the other counts each person is in one."""

    id: int
    offer: str = Field(description="The offer's code.")
    kind: Literal["announcement", "reminder"]
    status: CampaignStatus
    pause_reason: str | None = Field(description="Why it is paused.")
    trouble: str | None = Field(description="What keeps the mails from going out just now although it is not paused.")
    total: int
    sent: int
    failed: int
    deferred: int = Field(description="Put off by the receiving side; tried again for two days.")
    uncertain: int = Field(description="The connection broke after the mail was handed over; nobody knows.")
    skipped: int = Field(description="Unsubscribed, erased, or redeemed already.")
    left: int = Field(description="Uncertain ones that staff left as they are: nobody will know.")
    rate: float | None = Field(description="Mails per second of late; of a campaign that is done, in all.")
    seconds_left: int | None = Field(description="What is left at that rate.")
    scheduled_at: datetime | None = Field(description="When it starts, or started, by itself.")
    launched_at: datetime | None
    finished_at: datetime | None


class RecipientPath(CampaignPath):
    email: str = Field(description="The customer's e-mail.", max_length=320, examples=["ada@example.com"])


class RecipientOut(BaseModel):
    """What became of one customer's mail of a campaign."""

    campaign: int
    email: str
    state: DeliveryState = Field(
        description="`sent` soon after `at`; `sent_later` when it was tried again, and `note` says whether it may "
        "have come twice; `left`: "
        "uncertain for good; `sending`: at this moment; `waiting`: not yet; `cancelled`: never will."
    )
    at: datetime | None = Field(description="When; null where nothing happened yet, or an earlier version sent it.")
    code: int | None = Field(description="The mail server's reply code (RFC 5321).")
    text: str = Field(description="The server's words, or why the mail was left out.")
    note: str = Field(description="What comes next, or who decides.")
    next_at: datetime | None = Field(description="When a mail that was put off is tried again.")
    attempts: int = Field(description="How often a mail that was put off has been tried.")
    ahead: int | None = Field(description="About how many come before one that waits.")


class DecisionIn(BaseModel):
    """What to do about mails that failed or are uncertain: of one customer, or of all."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["failed", "uncertain"]
    decision: Literal["send_again", "leave"] = Field(
        description="`leave` is for uncertain ones: nobody will ever know, and they do not go out again."
    )
    email: str | None = Field(None, max_length=320, description="Only this customer's; without it all in the state.")


class DecisionOut(BaseModel):
    mails: int = Field(description="How many were decided.")
    left_out: int = Field(description="How many do not go out again because the address must not be mailed any more.")


def recipient_json(fate: DeliveryStatus) -> dict[str, object]:
    """The JSON of what became of one mail."""
    return {
        "campaign": fate.campaign_id,
        "email": fate.email,
        "state": fate.state,
        "at": _format_timestamp(fate.at),
        "code": fate.code,
        "text": fate.text,
        "note": fate.note,
        "next_at": _format_timestamp(fate.next_at),
        "attempts": fate.attempts,
        "ahead": fate.ahead,
    }


class CampaignPage(BaseModel):
    campaigns: list[CampaignOut]
    next_cursor: str | None


def campaign_json(campaign: Campaign, counts: CampaignStats, code: str) -> dict[str, object]:
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
        "left": counts.left,
        "rate": None if counts.rate is None else round(counts.rate, 2),
        "seconds_left": counts.seconds_left,
        "scheduled_at": _format_timestamp(campaign.scheduled_at),
        "launched_at": _format_timestamp(campaign.launched_at),
        "finished_at": _format_timestamp(campaign.finished_at),
    }


def _format_timestamp(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
