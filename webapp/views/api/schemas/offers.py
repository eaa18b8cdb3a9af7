"""Request and response bodies of offers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from webapp.core.formatting import format_rfc3339
from webapp.core.money import Discount
from webapp.offers.models import Offer, OfferCode, OfferState
from webapp.views.api.schemas.types import AmountOut, PercentOut, RequestBody, Rfc3339Time, StorableText, discount_json


class DiscountIn(RequestBody):
    """A percentage of the order or a fixed amount.

    Either `percent`, a decimal string, or an `amount` in minor units of a `currency`.
    """

    type: Literal["percent", "amount"]
    percent: Annotated[StrictStr, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,2})?$", examples=["25", "12.5"])] | None = None
    amount: Annotated[StrictInt, Field(examples=[500])] | None = None
    currency: Annotated[StrictStr, Field(pattern=r"^[A-Z]{3}$", examples=["EUR"])] | None = None

    @model_validator(mode="after")
    def require_one_kind(self) -> DiscountIn:
        has_percent, has_amount = self.percent is not None, (self.amount is not None, self.currency is not None)
        if self.type == "percent" and (not has_percent or any(has_amount)):
            raise ValueError("give percent, and neither amount nor currency")
        if self.type == "amount" and (has_percent or not all(has_amount)):
            raise ValueError("give amount and currency, and no percent")
        return self

    def to_discount(self) -> Discount:
        if self.percent is not None:
            return Discount("percent", percent=Decimal(self.percent))
        return Discount("amount", amount=self.amount, currency=self.currency)


class Mail(RequestBody):
    """The email that announces the offer. Omitted parts get a default text."""

    subject: StorableText | None = None
    text: StorableText | None = None
    html: StorableText | None = None


class NewOffer(RequestBody):
    """An offer to create.

    Without a code, one is generated; without a start, it starts now.
    """

    name: StorableText
    discount: DiscountIn
    code: StorableText | None = None
    starts_at: Rfc3339Time | None = None
    ends_at: Rfc3339Time | None = None
    time_zone: StorableText = "UTC"
    max_redemptions: StrictInt | None = None
    audience: Annotated[StorableText | None, Field(description="The name of an audience; null for all customers.")] = (
        None
    )
    personal_code_required: StrictBool = False
    mail: Mail | None = None


# pydantic does not validate defaults: a null in the body is refused, an omitted field is not.
_UNSET: Any = None


class OfferChange(RequestBody):
    """Changes of an offer. Omitted fields stay unchanged; only three can be null."""

    name: StorableText = _UNSET
    discount: DiscountIn = _UNSET
    code: StorableText = _UNSET
    starts_at: Rfc3339Time = _UNSET
    ends_at: Rfc3339Time | None = None
    time_zone: StorableText = _UNSET
    max_redemptions: StrictInt | None = None
    audience: StorableText | None = None
    personal_code_required: StrictBool = _UNSET
    paused: StrictBool = _UNSET


class OfferPath(BaseModel):
    """The code of an offer or an alias, in any spelling."""

    code: str


class CodePath(OfferPath):
    """An earlier code of an offer."""

    alias: str


class NewCode(RequestBody):
    """The new code of an offer; omitted or null to generate one."""

    code: StorableText | None = None


class OfferListQuery(BaseModel):
    """A page of offers, newest first."""

    model_config = ConfigDict(extra="forbid")
    state: OfferState | None = None
    q: Annotated[str, Field(max_length=200)] = ""
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class OfferOut(BaseModel):
    """An offer."""

    code: str
    aliases: Annotated[list[str], Field(description="Earlier codes that are still valid, newest first.")]
    name: str
    discount: PercentOut | AmountOut
    starts_at: str
    ends_at: str | None
    time_zone: str
    state: OfferState
    paused: bool
    audience: str | None
    personal_code_required: bool
    max_redemptions: int | None
    redeemed: int
    frozen: bool
    created_at: str


class OfferPage(BaseModel):
    offers: list[OfferOut]
    next_cursor: str | None


def offer_json(
    offer: Offer, at: datetime, audience: str | None, redeemed: int, codes: Sequence[OfferCode]
) -> dict[str, Any]:
    """Return the JSON of an offer."""
    return {
        "code": offer.code_as_written,
        "aliases": [row.code_as_written for row in codes if row.closed_at is None and row.code != offer.code],
        "name": offer.name,
        "discount": discount_json(offer.discount),
        "starts_at": format_rfc3339(offer.starts_at),
        "ends_at": format_rfc3339(offer.ends_at),
        "time_zone": offer.time_zone,
        "state": offer.state(at),
        "paused": offer.paused_at is not None,
        "audience": audience,
        "personal_code_required": offer.personal_code_required,
        "max_redemptions": offer.max_redemptions,
        "redeemed": redeemed,
        "frozen": offer.frozen_at is not None,
        "created_at": format_rfc3339(offer.created_at),
    }
