"""API schemas for redemptions."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Annotated, Any, Literal

from flask_babel import gettext as _
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.formatting import format_rfc3339
from webapp.core.money import CURRENCY_PATTERN
from webapp.customers.models import ERASED_EMAIL_PLACEHOLDER
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order
from webapp.views.api.schemas.types import (
    AmountOut,
    PercentOut,
    RequestBody,
    Rfc3339Time,
    discount_json,
    require_storable_text,
)

MAX_METADATA_BYTES = 4096
MAX_METADATA_DEPTH = 5
MAX_ORDER_AMOUNT = 10**15


def _validate_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Check that metadata is small, shallow and storable in the database."""
    level: list[Any] = [metadata]
    for _depth in range(MAX_METADATA_DEPTH):
        level = [child for value in level for child in _child_values(value)]
        if not level:
            break
    else:
        raise ValueError(f"send at most {MAX_METADATA_DEPTH} levels")
    try:
        size = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise ValueError("numbers must be finite and text must be valid Unicode") from None
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"send at most {MAX_METADATA_BYTES} bytes")
    return metadata


def _child_values(value: Any) -> list[Any]:
    if isinstance(value, str):
        require_storable_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    if isinstance(value, int) and abs(value) >= 10**100:
        raise ValueError("numbers must have at most 100 digits")
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


ShortText = Annotated[StrictStr, Field(min_length=1, max_length=200), AfterValidator(require_storable_text)]


class CustomerReference(RequestBody):
    """A customer, by email address or by the id in your system (`source_id`)."""

    email: Annotated[StrictStr, Field(max_length=320, examples=["ada@example.com"])] | None = None
    source_id: ShortText | None = None

    @model_validator(mode="after")
    def require_one_identifier(self) -> CustomerReference:
        """Require an email address or a source id.

        :raises ValueError: when both are present or missing.
        """
        if (self.email is None) == (self.source_id is None):
            raise ValueError("send either email or source_id")
        return self


class OrderIn(RequestBody):
    """An order: its id, and its amount in minor units of its currency."""

    id: ShortText
    amount: Annotated[StrictInt, Field(ge=0, le=MAX_ORDER_AMOUNT)] | None = None
    currency: Annotated[StrictStr, Field(pattern=CURRENCY_PATTERN, examples=["EUR"])] | None = None

    def to_order(self) -> Order:
        """Return the order for `redemptions.actions`."""
        return Order(self.id, self.amount, self.currency)


class NewValidation(RequestBody):
    """The redemption to validate."""

    code: Annotated[StrictStr, Field(max_length=200, examples=["summer25"])]
    customer: CustomerReference
    order: OrderIn | None = None


class NewRedemption(NewValidation):
    """The redemption to make. `metadata` is stored unchanged."""

    metadata: Annotated[dict[StrictStr, Any], AfterValidator(_validate_metadata)] | None = None

    def compute_body_hash(self) -> bytes:
        """Return a hash of the body that is independent of key order and white space.

        It is short, because it is stored in the row.
        """
        body = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).digest()[:8]


class NewRollback(RequestBody):
    """The reason for a rollback."""

    reason: StrictStr = Field(examples=["order cancelled"])


class RedemptionPath(BaseModel):
    """The id of a redemption."""

    id: str


class RedemptionListQuery(BaseModel):
    """A page of redemptions, newest first, with filters."""

    model_config = ConfigDict(extra="forbid")
    offer: Annotated[str | None, Field(description="The offer's code.")] = None
    email: str | None = None
    source_id: str | None = None
    channel: Literal["form", "link", "api", "staff"] | None = None
    since: Rfc3339Time | None = None
    until: Rfc3339Time | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class CustomerEmailPath(BaseModel):
    """The email address of a customer."""

    email: str


class UsableOffersQuery(BaseModel):
    """Options of the list; `used` includes offers that the customer has redeemed."""

    model_config = ConfigDict(extra="forbid")
    used: bool = False


class RedemptionCustomerOut(BaseModel):
    """The customer of a redemption; the email address of an erased customer is null."""

    email: str | None


class OrderOut(BaseModel):
    """The order of a redemption."""

    id: str
    amount: int | None
    currency: str | None


class RedemptionOut(BaseModel):
    """A redemption; `rolled_back_at` is set after a rollback.

    `entered_by` is the email address of the user who entered it, for the channel `staff`. Keys without the scope
    `manage` get null.
    """

    id: str
    code: str
    offer: str
    customer: RedemptionCustomerOut
    discount: PercentOut | AmountOut
    discount_amount: int | None
    order: OrderOut | None
    metadata: dict[str, Any] | None
    channel: str
    entered_by: str | None = None
    redeemed_at: str
    rolled_back_at: str | None
    rollback_reason: str | None


class RedemptionPage(BaseModel):
    """A page of redemptions."""

    redemptions: list[RedemptionOut]
    next_cursor: str | None


class ValidationOut(BaseModel):
    """The result of a validation: the discount, or the reason for the refusal."""

    valid: bool
    discount: PercentOut | AmountOut | None = None
    discount_amount: int | None = None
    code: str | None = None
    offer: str | None = None
    reason: str | None = None
    detail: str | None = None


class UsableOfferOut(BaseModel):
    """An offer that the customer can redeem now.

    With `used=true`, this is also an offer that the customer has redeemed (`redeemed_at`).
    """

    code: str
    personal_code: str
    name: str
    discount: PercentOut | AmountOut
    ends_at: str | None
    redeemed_at: str | None = None


class UsableOffersOut(BaseModel):
    """The offers that a customer can redeem."""

    offers: list[UsableOfferOut]


def hash_idempotency_key(key: str | None) -> str | None:
    """Return the stored form of an Idempotency-Key.

    It consists of the first 72 bits of the SHA-256 hash, as 12 Base64 characters. That is enough, because it is only
    compared with the key of a redemption of the same offer by the same customer.

    :raises InvalidInput: unless the key is 1 to 255 printable ASCII characters.
    """
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        message = _("Send 1 to 255 printable ASCII characters.")
        raise InvalidInput(FieldError("Idempotency-Key", "idempotency_key_invalid", message, is_header=True))
    return base64.b64encode(hashlib.sha256(key.encode()).digest()[:9]).decode()


def redemption_json(record: RedemptionRecord, *, names_user: bool) -> dict[str, Any]:
    """Return a redemption as `RedemptionOut`.

    :param names_user: whether `entered_by` may name the user who entered it.
    """
    row = record.row
    order = None
    if row.order_id is not None:
        order = {"id": row.order_id, "amount": row.order_amount, "currency": row.order_currency}
    return {
        "id": record.public_id,
        "code": record.code,
        "offer": record.offer_name,
        "customer": {"email": None if record.email == ERASED_EMAIL_PLACEHOLDER else record.email},
        "discount": discount_json(record.discount),
        "discount_amount": row.discount_amount,
        "order": order,
        "metadata": row.order_metadata,
        "channel": row.channel,
        "entered_by": record.entered_by if names_user else None,
        "redeemed_at": format_rfc3339(row.redeemed_at),
        "rolled_back_at": format_rfc3339(row.rolled_back_at),
        "rollback_reason": row.reason,
    }
