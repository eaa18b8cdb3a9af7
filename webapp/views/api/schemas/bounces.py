"""The JSON of mails that came back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from webapp.campaigns.bounces.actions import BounceNotice
from webapp.views.api.schemas.customers import StorableStr

BounceText = Annotated[StorableStr, Field(max_length=1000)]


class BounceIn(BaseModel):
    """One mail that came back, as a relay tells of it. One of `return_path`, `message_id` and `email` is needed."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["bounce", "complaint"]
    email: Annotated[BounceText, Field(examples=["ada@example.com"])] = ""
    return_path: Annotated[BounceText, Field(description="The envelope sender that our mail had.")] = ""
    message_id: Annotated[BounceText, Field(description="The Message-ID that our mail had.")] = ""
    status: Annotated[BounceText, Field(examples=["5.1.1"], description="RFC 3463; none counts as permanent.")] = ""
    detail: Annotated[BounceText, Field(description="The server's words.")] = ""

    @model_validator(mode="after")
    def _require_recipient(self) -> BounceIn:
        if not (self.email or self.return_path or self.message_id):
            raise ValueError("say whose mail it is: return_path, message_id or email")
        return self

    def to_notice(self) -> BounceNotice:
        return BounceNotice(self.email, self.return_path, self.message_id, self.kind, self.status, self.detail)


class BouncesIn(BaseModel):
    """Mails that came back, up to 1000."""

    model_config = ConfigDict(extra="forbid")

    bounces: Annotated[list[BounceIn], Field(min_length=1, max_length=1000)]


class BouncesOut(BaseModel):
    """How many were sent and how many addresses are new on the list; what came of each, in their order."""

    received: int
    suppressed: int
    results: list[
        Literal[
            "suppressed",
            "known",
            "soft",
            "ignored",
            "broken",
            "unproven",
            "unknown_customer",
            "own_address",
            "email_invalid",
        ]
    ]
