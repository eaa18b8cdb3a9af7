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


def _parse_rfc3339(given: object) -> datetime:
    if not isinstance(given, str) or not _RFC3339_PATTERN.fullmatch(given):
        raise ValueError("give a time as RFC 3339 has it, such as 2026-06-01T00:00:00Z")
    try:
        return datetime.fromisoformat(given.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time") from None


def require_storable_text(text: str) -> str:
    """Text that the database can hold.

    :raises ValueError: when it has a NUL or half of a surrogate pair.
    """
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("leave out NUL and unpaired surrogates")
    return text


Rfc3339Time = Annotated[
    datetime,
    BeforeValidator(_parse_rfc3339, json_schema_input_type=str),
    Field(json_schema_extra={"type": "string", "format": "date-time", "examples": ["2026-06-01T00:00:00Z"]}),
]
StorableText = Annotated[StrictStr, AfterValidator(require_storable_text)]


class RequestBody(BaseModel):
    """A body knows its fields; another one is a typing error."""

    model_config = ConfigDict(extra="forbid")


class PercentOut(BaseModel):
    type: Literal["percent"]
    percent: str


class AmountOut(BaseModel):
    type: Literal["amount"]
    amount: int
    currency: str


def discount_json(discount: Discount) -> dict[str, Any]:
    """A discount as JSON gives it."""
    if discount.type == "percent" and discount.percent is not None:
        return {"type": "percent", "percent": format(discount.percent.normalize(), "f")}
    return {"type": "amount", "amount": discount.amount, "currency": discount.currency}
