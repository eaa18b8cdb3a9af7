"""API schemas for offers."""

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
from webapp.core.money import CURRENCY_PATTERN, PERCENT_PATTERN, Discount
from webapp.offers.models import Offer, OfferCode, OfferState
from webapp.views.api.schemas.types import (
    AmountOut,
    PercentOut,
    RequestBody,
    Rfc3339Time,
    StorableText,
    discount_json,
)


class DiscountIn(RequestBody):
    """A percentage of the order or a fixed amount.

    Either `percent`, a decimal string, or an `amount` in minor units of a `currency`.
    """

    type: Literal["percent", "amount"]
    percent: Annotated[StrictStr, Field(pattern=PERCENT_PATTERN, examples=["25", "12.5"])] | None = None
    amount: Annotated[StrictInt, Field(examples=[500])] | None = None
    currency: Annotated[StrictStr, Field(pattern=CURRENCY_PATTERN, examples=["EUR"])] | None = None

    @model_validator(mode="after")
    def require_fields_of_type(self) -> DiscountIn:
        """Require `percent` or both `amount` and `currency`, as `type` says.

        :raises ValueError: when a field is missing or does not belong to the type.
        """
        has_percent = self.percent is not None
        has_amount, has_currency = self.amount is not None, self.currency is not None
        if self.type == "percent" and (not has_percent or has_amount or has_currency):
            raise ValueError("send percent, without amount and currency")
        if self.type == "amount" and (has_percent or not has_amount or not has_currency):
            raise ValueError("send amount and currency, without percent")
        return self

    def to_discount(self) -> Discount:
        """Return the discount; its limits are checked by `offers.actions`."""
        if self.percent is not None:
            return Discount("percent", percent=Decimal(self.percent))
        return Discount("amount", amount=self.amount, currency=self.currency)


class Mail(RequestBody):
    """The email of a campaign. Omitted fields get default texts."""

    subject: StorableText | None = None
    text: StorableText | None = None
    html: StorableText | None = None


class NewOffer(RequestBody):
    """An offer to create.

    Without a code, one is generated; without `starts_at`, the offer starts now.
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


# The default of fields that cannot be null. pydantic does not validate defaults: a null in the body is rejected, an
# omitted field is not.
_UNSET: Any = None


class OfferChange(RequestBody):
    """Changes of an offer.

    Omitted fields stay unchanged; `ends_at`, `max_redemptions` and `audience` can be null.
    """

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
    """The code or an alias of an offer; case, spaces and dashes are ignored."""

    code: str


class CodePath(OfferPath):
    """An offer and one of its earlier codes."""

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
    """A page of offers."""

    offers: list[OfferOut]
    next_cursor: str | None


def offer_json(
    offer: Offer, now: datetime, audience: str | None, redeemed: int, codes: Sequence[OfferCode]
) -> dict[str, Any]:
    """Return an offer as `OfferOut`."""
    return {
        "code": offer.code_as_written,
        "aliases": [code.code_as_written for code in codes if code.closed_at is None and code.code != offer.code],
        "name": offer.name,
        "discount": discount_json(offer.discount),
        "starts_at": format_rfc3339(offer.starts_at),
        "ends_at": format_rfc3339(offer.ends_at),
        "time_zone": offer.time_zone,
        "state": offer.state(now),
        "paused": offer.paused_at is not None,
        "audience": audience,
        "personal_code_required": offer.personal_code_required,
        "max_redemptions": offer.max_redemptions,
        "redeemed": redeemed,
        "frozen": offer.frozen_at is not None,
        "created_at": format_rfc3339(offer.created_at),
    }
