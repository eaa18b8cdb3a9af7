"""Field types and base classes shared by the API schemas."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
)

from webapp.core.money import Discount

_RFC3339_PATTERN = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _parse_rfc3339(value: object) -> datetime:
    if not isinstance(value, str) or not _RFC3339_PATTERN.fullmatch(value):
        raise ValueError("use an RFC 3339 time such as 2026-06-01T00:00:00Z")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("this time does not exist") from None


def require_storable_text(text: str) -> str:
    """Return the text if PostgreSQL can store it.

    :raises ValueError: when it contains NUL or an unpaired surrogate.
    """
    if "\0" in text or (not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)):
        raise ValueError("remove NUL characters and unpaired surrogates")
    return text


Rfc3339Time = Annotated[
    datetime,
    BeforeValidator(_parse_rfc3339, json_schema_input_type=str),
    Field(json_schema_extra={"type": "string", "format": "date-time", "examples": ["2026-06-01T00:00:00Z"]}),
]
StorableText = Annotated[StrictStr, AfterValidator(require_storable_text)]


class RequestBody(BaseModel):
    """Base of request bodies.

    Unknown fields are rejected, because they are probably typing errors.
    """

    model_config = ConfigDict(extra="forbid")


class PercentOut(BaseModel):
    """A percentage of the order, as a decimal string."""

    type: Literal["percent"]
    percent: str


class AmountOut(BaseModel):
    """A fixed amount in minor units of its currency."""

    type: Literal["amount"]
    amount: int
    currency: str


def discount_json(discount: Discount) -> dict[str, Any]:
    """Return a discount as `PercentOut` or `AmountOut`."""
    if discount.type == "percent" and discount.percent is not None:
        return {"type": "percent", "percent": format(discount.percent.normalize(), "f")}
    return {"type": "amount", "amount": discount.amount, "currency": discount.currency}
