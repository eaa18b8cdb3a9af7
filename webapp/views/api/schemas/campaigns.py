"""API schemas for campaigns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from webapp.campaigns.deliveries.status import DeliveryState, DeliveryStatus
from webapp.campaigns.models import Campaign
from webapp.campaigns.stats_queries import CampaignStats
from webapp.views.api.schemas.offers import Mail
from webapp.views.api.schemas.types import RequestBody, Rfc3339Time

CampaignStatus = Literal["draft", "scheduled", "preparing", "sending", "paused", "cancelled", "done"]


class CampaignOfferPath(BaseModel):
    """The offer of a campaign."""

    code: str = Field(description="The offer's code; case, spaces and dashes are ignored.", examples=["SUMMER25"])


class Launch(RequestBody):
    """The launch time; now if there is no body or no time."""

    at: Rfc3339Time | None = Field(
        default=None,
        description="The launch time, in the future and before the offer's end; null for now.",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_missing_body(cls, body: object) -> object:
        """Treat a request without a body like an empty object."""
        return {} if body is None else body


class NewReminder(RequestBody):
    """A reminder to customers who have not redeemed.

    Omitted fields of the email have default texts.
    """

    mail: Mail | None = None
    at: Rfc3339Time | None = Field(
        default=None,
        description="The launch time, in the future and before the offer's end; null for now.",
    )


class CampaignListQuery(BaseModel):
    """A page of campaigns, newest first."""

    model_config = ConfigDict(extra="forbid")
    offer: Annotated[str | None, Field(description="Only campaigns of this offer, by its code or an alias.")] = None
    status: CampaignStatus | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class CampaignPath(BaseModel):
    """The id of a campaign."""

    id: int = Field(description="The campaign's id.", ge=1, lt=1 << 63)


class CampaignOut(BaseModel):
    """A campaign with its progress.

    `total` grows while it is `preparing`. Each recipient is in at most one of the other stats.
    """

    id: int
    offer: str = Field(description="The offer's code.")
    kind: Literal["announcement", "reminder"]
    status: CampaignStatus
    pause_reason: str | None = Field(description="Why it is paused.")
    trouble: str | None = Field(description="What prevents sending at the moment although it is not paused.")
    total: int
    sent: int
    failed: int
    deferred: int = Field(description="Temporarily rejected by the receiving server; retried automatically.")
    uncertain: int = Field(
        description="The connection was lost after the email was transmitted; its delivery is unknown."
    )
    skipped: int = Field(
        description="The address is suppressed, the customer was erased or has redeemed, or the campaign was cancelled "
        "before a retry."
    )
    left: int = Field(description="Uncertain emails that staff dismissed.")
    rate: float | None = Field(description="Recent emails per second; the average if the campaign is done.")
    seconds_left: int | None = Field(description="Estimated remaining seconds at that rate.")
    scheduled_at: datetime | None = Field(description="The scheduled launch time.")
    launched_at: datetime | None
    finished_at: datetime | None


class RecipientPath(CampaignPath):
    """A campaign and one of its recipients."""

    email: str = Field(description="The customer's email address.", max_length=320, examples=["ada@example.com"])


class RecipientOut(BaseModel):
    """The delivery of a campaign's email to one customer."""

    campaign: int
    email: str
    state: DeliveryState = Field(
        description="`sent`: sent at about `at`; `sent_later`: after a retry, and `note` says whether it may have been "
        "sent twice; `left`: uncertain and dismissed; `sending`: being sent now; `waiting`: not sent yet; "
        "`cancelled`: not sent, because the campaign was cancelled."
    )
    at: datetime | None = Field(
        description="The time of the state; null if nothing has happened yet, or an earlier version sent it."
    )
    code: int | None = Field(description="The mail server's reply code (RFC 5321).")
    text: str = Field(description="The server's reply, or why the recipient was skipped.")
    note: str = Field(description="What happens next, or who has to resolve it.")
    next_at: datetime | None = Field(description="When a deferred email is retried.")
    attempts: int = Field(
        description="The number of attempts to send the email; a decision to resend it resets the number to 0."
    )
    ahead: int | None = Field(description="The approximate number of emails before a waiting one.")


class DecisionIn(BaseModel):
    """The resolution of failed or uncertain emails: that of one customer, or all."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["failed", "uncertain"]
    decision: Literal["send_again", "leave"] = Field(
        description="`leave` dismisses uncertain emails: they are not resent, and their delivery stays unknown."
    )
    email: str | None = Field(
        None, max_length=320, description="Only the email to this customer; if omitted, all emails in `state`."
    )


class DecisionOut(BaseModel):
    """The numbers of emails that were resolved and that were not."""

    mails: int = Field(description="The number of resolved emails.")
    left_out: int = Field(description="The number of emails that are not resent because their address is suppressed.")


def recipient_json(delivery: DeliveryStatus) -> dict[str, object]:
    """Return a delivery as `RecipientOut`."""
    return {
        "campaign": delivery.campaign_id,
        "email": delivery.email,
        "state": delivery.state,
        "at": _format_timestamp(delivery.at),
        "code": delivery.code,
        "text": delivery.text,
        "note": delivery.note,
        "next_at": _format_timestamp(delivery.next_at),
        "attempts": delivery.attempts,
        "ahead": delivery.ahead,
    }


class CampaignPage(BaseModel):
    """A page of campaigns."""

    campaigns: list[CampaignOut]
    next_cursor: str | None


def campaign_json(campaign: Campaign, stats: CampaignStats, code: str) -> dict[str, object]:
    """Return a campaign as `CampaignOut`."""
    return {
        "id": campaign.id,
        "offer": code,
        "kind": campaign.kind,
        "status": campaign.status,
        "pause_reason": campaign.pause_reason,
        "trouble": campaign.delivery_warning,
        "total": stats.total,
        "sent": stats.sent,
        "failed": stats.failed,
        "deferred": stats.deferred,
        "uncertain": stats.uncertain,
        "skipped": stats.skipped,
        "left": stats.left,
        "rate": None if stats.rate is None else round(stats.rate, 2),
        "seconds_left": stats.seconds_left,
        "scheduled_at": _format_timestamp(campaign.scheduled_at),
        "launched_at": _format_timestamp(campaign.launched_at),
        "finished_at": _format_timestamp(campaign.finished_at),
    }


def _format_timestamp(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
