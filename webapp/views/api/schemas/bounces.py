"""API schemas for bounces and complaints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from webapp.campaigns.bounces.actions import BounceNotice, BounceOutcome
from webapp.views.api.schemas.customers import StorableStr

BounceText = Annotated[StorableStr, Field(max_length=1000)]


class BounceIn(BaseModel):
    """A bounce or complaint that a relay reports.

    One of `return_path`, `message_id` and `email` is required.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["bounce", "complaint"]
    email: Annotated[BounceText, Field(examples=["ada@example.com"])] = ""
    return_path: Annotated[BounceText, Field(description="The envelope sender of the email.")] = ""
    message_id: Annotated[BounceText, Field(description="The Message-ID of the email.")] = ""
    status: Annotated[
        BounceText, Field(examples=["5.1.1"], description="RFC 3463; an empty one counts as permanent.")
    ] = ""
    detail: Annotated[BounceText, Field(description="The server's reply.")] = ""

    @model_validator(mode="after")
    def _require_recipient(self) -> BounceIn:
        if not (self.email or self.return_path or self.message_id):
            raise ValueError("identify the email by return_path, message_id or email")
        return self

    def to_notice(self) -> BounceNotice:
        """Return the bounce or complaint for `bounces.actions`."""
        return BounceNotice(self.email, self.return_path, self.message_id, self.kind, self.status, self.detail)


class BouncesIn(BaseModel):
    """Up to 1000 bounces and complaints."""

    model_config = ConfigDict(extra="forbid")

    bounces: Annotated[list[BounceIn], Field(min_length=1, max_length=1000)]


class BouncesOut(BaseModel):
    """The number of reports and of newly suppressed addresses, and each outcome."""

    received: int
    suppressed: int
    results: list[BounceOutcome]
