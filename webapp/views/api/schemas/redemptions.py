"""The JSON of redemptions: what is taken and what is given."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.formatting import format_rfc3339
from webapp.customers.models import ERASED_EMAIL_PLACEHOLDER
from webapp.overview.why_not import Explanation
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

METADATA_BYTES = 4096
METADATA_DEPTH = 5
AMOUNT_MAX = 10**15


def _validate_metadata(given: dict[str, Any]) -> dict[str, Any]:
    """Small, shallow, and such that the database can hold it."""
    level: list[Any] = [given]
    for _ in range(METADATA_DEPTH):
        level = [child for value in level for child in _child_values(value)]
        if not level:
            break
    else:
        raise ValueError(f"nest at most {METADATA_DEPTH} levels")
    try:
        size = len(json.dumps(given, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise ValueError("numbers must be finite and text must be valid Unicode") from None
    if size > METADATA_BYTES:
        raise ValueError(f"send at most {METADATA_BYTES} bytes")
    return given


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
    """A customer by e-mail or by your own id."""

    email: Annotated[StrictStr, Field(max_length=320, examples=["ada@example.com"])] | None = None
    source_id: ShortText | None = None

    @model_validator(mode="after")
    def require_one_identifier(self) -> CustomerReference:
        if (self.email is None) == (self.source_id is None):
            raise ValueError("give either email or source_id")
        return self


class OrderIn(RequestBody):
    """The order: its id, and its amount in minor units of its currency."""

    id: ShortText
    amount: Annotated[StrictInt, Field(ge=0, le=AMOUNT_MAX)] | None = None
    currency: Annotated[StrictStr, Field(pattern=r"^[A-Z]{3}$", examples=["EUR"])] | None = None

    def to_order(self) -> Order:
        return Order(self.id, self.amount, self.currency)


class NewValidation(RequestBody):
    """What would be redeemed."""

    code: Annotated[StrictStr, Field(max_length=200, examples=["summer25"])]
    customer: CustomerReference
    order: OrderIn | None = None


class NewRedemption(NewValidation):
    """What to redeem. `metadata` is kept as it is."""

    metadata: Annotated[dict[StrictStr, Any], AfterValidator(_validate_metadata)] | None = None

    def digest(self) -> bytes:
        """The same for the same request, whatever the order and spacing of its JSON. Short: it is kept in the row."""
        body = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).digest()[:8]


class NewExplanation(RequestBody):
    """Whose redeeming of what is to be explained; the code may be a personal one."""

    code: Annotated[StrictStr, Field(max_length=200, examples=["summer25"])]
    customer: CustomerReference


class NewRollback(RequestBody):
    """Why a redemption is undone."""

    reason: StrictStr = Field(examples=["order cancelled"])


class RedemptionPath(BaseModel):
    """A redemption by its id."""

    id: str


class RedemptionListQuery(BaseModel):
    """A page of live redemptions, newest first, narrowed to an offer, a customer, a time."""

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
    """A customer by e-mail."""

    email: str


class UsableOffersQuery(BaseModel):
    """Whether those that were used already are wanted too."""

    model_config = ConfigDict(extra="forbid")
    used: bool = False


class RedemptionCustomerOut(BaseModel):
    """Whose it is; of an erased customer nothing is known any more."""

    email: str | None


class OrderOut(BaseModel):
    id: str
    amount: int | None
    currency: str | None


class RedemptionOut(BaseModel):
    """A redemption; `rolled_back_at` is set when it was undone."""

    id: str
    code: str
    offer: str
    customer: RedemptionCustomerOut
    discount: PercentOut | AmountOut
    discount_amount: int | None
    order: OrderOut | None
    metadata: dict[str, Any] | None
    channel: str
    redeemed_at: str
    rolled_back_at: str | None
    rollback_reason: str | None


class RedemptionPage(BaseModel):
    redemptions: list[RedemptionOut]
    next_cursor: str | None


class ValidationOut(BaseModel):
    """What would happen: the discount, or the reason why not."""

    valid: bool
    discount: PercentOut | AmountOut | None = None
    discount_amount: int | None = None
    code: str | None = None
    offer: str | None = None
    reason: str | None = None
    detail: str | None = None


class CheckOut(BaseModel):
    """One check of the rule: `passed` is null where it can't be asked, `reason` what a refusal by it is called."""

    name: Literal["code", "customer", "unused", "window", "status", "audience", "personal_code", "room"]
    passed: bool | None
    reason: str
    detail: str


class ExplainedOfferOut(BaseModel):
    code: str
    name: str


class ExplainedEmailOut(BaseModel):
    """A mail about the offer to the customer, and what became of it."""

    campaign: int
    kind: str
    status: str
    at: str | None


class ExplanationOut(BaseModel):
    """What redeeming would answer now, with every check in the order of the rule; the first that failed decides.

    `redemption` is the id of the customer's live redemption of this offer.
    """

    redeemable: bool
    reason: str | None
    detail: str
    checks: list[CheckOut]
    offer: ExplainedOfferOut | None
    customer: RedemptionCustomerOut | None
    redemption: str | None
    mails: list[ExplainedEmailOut]


class UsableOfferOut(BaseModel):
    """An offer that the customer can use now; `redeemed_at` is set where it was used already."""

    code: str
    personal_code: str
    name: str
    discount: PercentOut | AmountOut
    ends_at: str | None
    redeemed_at: str | None = None


class UsableOffersOut(BaseModel):
    offers: list[UsableOfferOut]


def hash_idempotency_key(given: str | None) -> str | None:
    """What is kept of the header's value: twelve characters of its hash, whatever its length. It is only ever compared
    with the key of a redemption of the same offer by the same customer.

    :raises Invalid: unless it is 1 to 255 visible ASCII characters.
    """
    if given is not None and (not 1 <= len(given) <= 255 or not given.isascii() or not given.isprintable()):
        raise InvalidInput(
            FieldError("Idempotency-Key", "idempotency_key_invalid", "Send 1 to 255 visible ASCII characters.")
        )
    return None if given is None else base64.b64encode(hashlib.sha256(given.encode()).digest()[:9]).decode()


def explanation_json(told: Explanation) -> dict[str, Any]:
    """An explanation as JSON gives it."""
    offer, facts = told.facts.offer, told.facts
    return {
        "redeemable": told.reason is None,
        "reason": told.reason,
        "detail": told.detail,
        "checks": [
            {"name": line.check.name, "passed": line.check.passed, "reason": line.check.reason, "detail": line.detail}
            for line in told.checks
        ],
        "offer": {"code": offer.code, "name": offer.name} if offer else None,
        "customer": {"email": facts.email} if facts.customer_id is not None else None,
        "redemption": next((done.public_id for done in told.redemptions if done.row.rolled_back_at is None), None),
        "mails": [
            {
                "campaign": mail.campaign.id,
                "kind": mail.campaign.kind,
                "status": mail.state,
                "at": format_rfc3339(mail.at or mail.campaign.launched_at),
            }
            for mail in told.emails
        ],
    }


def redemption_json(done: RedemptionRecord) -> dict[str, Any]:
    """A redemption as JSON gives it."""
    use = done.row
    order = None
    if use.order_id is not None:
        order = {"id": use.order_id, "amount": use.order_amount, "currency": use.order_currency}
    return {
        "id": done.public_id,
        "code": done.code,
        "offer": done.offer_name,
        "customer": {"email": None if done.email == ERASED_EMAIL_PLACEHOLDER else done.email},
        "discount": discount_json(done.discount),
        "discount_amount": use.discount_amount,
        "order": order,
        "metadata": use.order_metadata,
        "channel": use.channel,
        "redeemed_at": format_rfc3339(use.redeemed_at),
        "rolled_back_at": format_rfc3339(use.rolled_back_at),
        "rollback_reason": use.reason,
    }
