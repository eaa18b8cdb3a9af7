"""The JSON of offers: what is taken and what is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from webapp.offers.models import Discount, Offer, OfferCode, OfferState

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _time(given: object) -> datetime:
    if not isinstance(given, str) or not _RFC3339.fullmatch(given):
        raise ValueError("give a time as RFC 3339 has it, such as 2026-06-01T00:00:00Z")
    try:
        return datetime.fromisoformat(given.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time") from None


def time(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, as every time is given."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def storable(text: str) -> str:
    """Text that the database can hold.

    :raises ValueError: when it has a NUL or half of a surrogate pair.
    """
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("leave out NUL and unpaired surrogates")
    return text


Time = Annotated[
    datetime,
    BeforeValidator(_time, json_schema_input_type=str),
    Field(json_schema_extra={"type": "string", "format": "date-time", "examples": ["2026-06-01T00:00:00Z"]}),
]
Line = Annotated[StrictStr, AfterValidator(storable)]


class Body(BaseModel):
    """A body knows its fields; another one is a typing error."""

    model_config = ConfigDict(extra="forbid")


class DiscountIn(Body):
    """Either a share of the order (`percent`, a decimal string) or an `amount` in minor units of a `currency`."""

    type: Literal["percent", "amount"]
    percent: Annotated[StrictStr, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,2})?$", examples=["25", "12.5"])] | None = None
    amount: Annotated[StrictInt, Field(examples=[500])] | None = None
    currency: Annotated[StrictStr, Field(pattern=r"^[A-Z]{3}$", examples=["EUR"])] | None = None

    @model_validator(mode="after")
    def one_kind(self) -> DiscountIn:
        percent, amount = self.percent is not None, (self.amount is not None, self.currency is not None)
        if self.type == "percent" and (not percent or any(amount)):
            raise ValueError("give percent, and neither amount nor currency")
        if self.type == "amount" and (percent or not all(amount)):
            raise ValueError("give amount and currency, and no percent")
        return self

    def typed(self) -> Discount:
        if self.percent is not None:
            return Discount("percent", percent=Decimal(self.percent))
        return Discount("amount", amount=self.amount, currency=self.currency)


class Mail(Body):
    """The mail that announces the offer; what is left out is a default text."""

    subject: Line | None = None
    text: Line | None = None
    html: Line | None = None


class NewOffer(Body):
    """An offer to set up. Without a code one is generated; without a start it starts now."""

    name: Line
    discount: DiscountIn
    code: Line | None = None
    starts_at: Time | None = None
    ends_at: Time | None = None
    time_zone: Line = "UTC"
    max_redemptions: StrictInt | None = None
    audience: Annotated[Line | None, Field(description="The name of an audience; null is everyone known.")] = None
    personal_code_required: StrictBool = False
    mail: Mail | None = None


# pydantic does not look at defaults, so a null that was sent is refused and one that was not is not seen.
_LEFT_OUT: Any = None


class OfferChange(Body):
    """What to change of an offer; what is left out stays, and only three of them can be null."""

    name: Line = _LEFT_OUT
    discount: DiscountIn = _LEFT_OUT
    code: Line = _LEFT_OUT
    starts_at: Time = _LEFT_OUT
    ends_at: Time | None = None
    time_zone: Line = _LEFT_OUT
    max_redemptions: StrictInt | None = None
    audience: Line | None = None
    personal_code_required: StrictBool = _LEFT_OUT
    paused: StrictBool = _LEFT_OUT


class OfferPath(BaseModel):
    """An offer by its code or an alias, in any spelling."""

    code: str


class CodePath(OfferPath):
    """One code that an offer had before."""

    alias: str


class NewCode(Body):
    """The code that an offer gives out from now on; left out or null has one generated."""

    code: Line | None = None


class OfferList(BaseModel):
    """A page of offers, newest first."""

    model_config = ConfigDict(extra="forbid")
    state: OfferState | None = None
    q: Annotated[str, Field(max_length=200)] = ""
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class PercentOut(BaseModel):
    type: Literal["percent"]
    percent: str


class AmountOut(BaseModel):
    type: Literal["amount"]
    amount: int
    currency: str


class OfferOut(BaseModel):
    """An offer."""

    code: str
    aliases: Annotated[list[str], Field(description="Earlier codes that still work, newest first.")]
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


def discount_json(discount: Discount) -> dict[str, Any]:
    """A discount as JSON gives it."""
    if discount.type == "percent" and discount.percent is not None:
        return {"type": "percent", "percent": format(discount.percent.normalize(), "f")}
    return {"type": "amount", "amount": discount.amount, "currency": discount.currency}


def offer_json(
    offer: Offer, at: datetime, audience: str | None, redeemed: int, codes: Sequence[OfferCode]
) -> dict[str, Any]:
    """An offer as JSON gives it."""
    return {
        "code": offer.code_as_written,
        "aliases": [row.code_as_written for row in codes if row.closed_at is None and row.code != offer.code],
        "name": offer.name,
        "discount": discount_json(offer.discount),
        "starts_at": time(offer.starts_at),
        "ends_at": time(offer.ends_at),
        "time_zone": offer.time_zone,
        "state": offer.state(at),
        "paused": offer.paused_at is not None,
        "audience": audience,
        "personal_code_required": offer.personal_code_required,
        "max_redemptions": offer.max_redemptions,
        "redeemed": redeemed,
        "frozen": offer.frozen_at is not None,
        "created_at": time(offer.created_at),
    }
