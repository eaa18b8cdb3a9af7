"""API schemas for explanations of a customer's eligibility."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictStr

from webapp.core.formatting import format_rfc3339
from webapp.overview.eligibility import Explanation
from webapp.views.api.schemas.redemptions import CustomerReference, RedemptionCustomerOut
from webapp.views.api.schemas.types import RequestBody


class NewExplanation(RequestBody):
    """A customer and a shared or personal code, to explain whether the customer can redeem it."""

    code: Annotated[StrictStr, Field(max_length=200, examples=["summer25"])]
    customer: CustomerReference


class CheckOut(BaseModel):
    """One eligibility check.

    `passed` is null where the check is not possible. `reason` is the refusal that the check guards against: that of the
    response if this is the first check with `passed` false. It says nothing about a check that has passed.
    """

    # "room": redemptions left under the cap.
    name: Literal["code", "customer", "unused", "window", "status", "audience", "personal_code", "room"]
    passed: bool | None
    reason: Annotated[str, Field(description="The refusal that this check guards against, also while it passes.")]
    detail: str


class ExplainedOfferOut(BaseModel):
    """The offer of the code."""

    code: str
    name: str


class ExplainedEmailOut(BaseModel):
    """An email about the offer to the customer, and its delivery status."""

    campaign: int
    kind: str
    status: str
    at: str | None


class ExplanationOut(BaseModel):
    """The result that a redemption would have now, and every check in order.

    The first failed check determines `reason`. `redemption` is the id of the customer's redemption of the offer, unless
    it was rolled back.
    """

    redeemable: bool
    reason: str | None
    detail: str
    checks: list[CheckOut]
    offer: ExplainedOfferOut | None
    customer: RedemptionCustomerOut | None
    redemption: str | None
    mails: list[ExplainedEmailOut]


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as `ExplanationOut`."""
    offer, facts = explanation.facts.offer, explanation.facts
    return {
        "redeemable": explanation.reason is None,
        "reason": explanation.reason,
        "detail": explanation.detail,
        "checks": [
            {
                "name": explained.check.name,
                "passed": explained.check.passed,
                "reason": explained.check.reason,
                "detail": explained.detail,
            }
            for explained in explanation.checks
        ],
        "offer": {"code": offer.code, "name": offer.name} if offer else None,
        "customer": {"email": facts.email} if facts.customer_id is not None else None,
        "redemption": next(
            (record.public_id for record in explanation.redemptions if record.row.rolled_back_at is None), None
        ),
        "mails": [
            {
                "campaign": delivery.campaign.id,
                "kind": delivery.campaign.kind,
                "status": delivery.state,
                "at": format_rfc3339(delivery.at or delivery.campaign.launched_at),
            }
            for delivery in explanation.emails
        ],
    }
