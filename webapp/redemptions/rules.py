"""The eligibility checks: whether a customer may redeem an offer now.

They are one pure function over facts, `evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from flask_babel import gettext as _

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.money import Discount
from webapp.core.request_origin import RequestOrigin

RefusalReason = Literal[
    "not_found",
    "customer_unknown",
    "already_redeemed",
    "offer_not_started",
    "offer_expired",
    "offer_paused",
    "customer_not_eligible",
    "personal_code_required",
    "offer_exhausted",
]
# "room": whether redemptions are left under the cap.
CheckName = Literal["code", "customer", "unused", "window", "status", "audience", "personal_code", "room"]
PersonalCodeStatus = Literal["none", "right", "wrong"]


@dataclass(frozen=True, slots=True)
class OfferFacts:
    """The data about the offer that eligibility depends on.

    :param redeemed: the number of redemptions that count towards the cap; None if it has not been looked up. The check
        of the cap is then passed.
    """

    id: int
    code: str
    name: str
    discount: Discount
    starts_at: datetime
    ends_at: datetime | None
    time_zone: str
    is_paused: bool
    audience_id: int | None
    personal_code_required: bool
    max_redemptions: int | None
    redeemed: int | None
    is_frozen: bool


@dataclass(frozen=True, slots=True)
class RedemptionRow:
    """The row of a redemption, current or rolled back.

    Amounts are in minor units of the currency.
    """

    redeemed_at: datetime
    channel: str
    api_key_id: int | None = None
    staff_user_id: int | None = None
    order_id: str | None = None
    order_amount: int | None = None
    order_currency: str | None = None
    discount_amount: int | None = None
    order_metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    rolled_back_at: datetime | None = None
    rolled_back_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RedemptionFacts:
    """The data that the eligibility of a customer for a code depends on, at one time.

    :param redemption: the customer's current redemption of the offer.
    :param rolled_back_redemption: the rolled-back redemption that an earlier request with the same Idempotency-Key or
        order made.
    :param is_code_closed: the code is closed and so counts as unknown; `offer`, which had it, is used only to recognise
        repeated requests.
    :param locale: the locale of the customer, for the response; no check depends on it.
    """

    evaluated_at: datetime
    offer: OfferFacts | None
    customer_id: int | None
    email: str | None
    is_in_audience: bool
    personal_code_status: PersonalCodeStatus
    redemption: RedemptionRow | None = None
    rolled_back_redemption: RedemptionRow | None = None
    is_code_closed: bool = False
    locale: str | None = None


class EligibilityCheck(NamedTuple):
    """One check and its result.

    The result is None when it could not be made because an earlier one failed.
    """

    name: CheckName
    reason: RefusalReason
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of all checks, in order."""

    checks: tuple[EligibilityCheck, ...]

    @property
    def reason(self) -> RefusalReason | None:
        """The reason of the first check that failed; None when the offer may be redeemed."""
        return next((check.reason for check in self.checks if check.passed is False), None)

    @property
    def public_reason(self) -> RefusalReason | None:
        """The refusal reason that may be shown to an unauthenticated client.

        All reasons that concern the customer become `customer_not_eligible`. Reasons that concern the offer come first,
        so that an offer that no customer can redeem reveals nothing about an email address. Only `offer_exhausted`
        comes after `already_redeemed`, so that customers who have redeemed get that reason.
        """
        failed_reasons = {check.reason for check in self.checks if check.passed is False}
        customer_reasons = failed_reasons & CUSTOMER_REASONS
        for reason in OFFER_REASONS:
            if reason in failed_reasons:
                return reason
        if "already_redeemed" in failed_reasons and not customer_reasons:
            return "already_redeemed"
        if "offer_exhausted" in failed_reasons:
            return "offer_exhausted"
        return "customer_not_eligible" if customer_reasons else None


CUSTOMER_REASONS = frozenset({"customer_unknown", "customer_not_eligible", "personal_code_required"})
OFFER_REASONS: tuple[RefusalReason, ...] = (
    "not_found",
    "offer_not_started",
    "offer_expired",
    "offer_paused",
)


def evaluate(facts: RedemptionFacts) -> Evaluation:
    """Make every check on the facts, in the order of precedence of their reasons."""
    offer, at = None if facts.is_code_closed else facts.offer, facts.evaluated_at
    is_customer_known = facts.customer_id is not None
    checks: list[EligibilityCheck] = [
        EligibilityCheck("code", "not_found", offer is not None),
        EligibilityCheck("customer", "customer_unknown", is_customer_known),
    ]
    if offer is None:
        checks += [
            EligibilityCheck("unused", "already_redeemed", None),
            EligibilityCheck("window", "offer_expired", None),
            EligibilityCheck("status", "offer_paused", None),
            EligibilityCheck("audience", "customer_not_eligible", None),
            EligibilityCheck("personal_code", "personal_code_required", None),
            EligibilityCheck("room", "offer_exhausted", None),
        ]
        return Evaluation(tuple(checks))
    has_started = offer.starts_at <= at
    is_within_window = has_started and (offer.ends_at is None or at < offer.ends_at)
    is_used_up = is_cap_reached(offer)
    checks += [
        EligibilityCheck("unused", "already_redeemed", facts.redemption is None if is_customer_known else None),
        EligibilityCheck("window", "offer_expired" if has_started else "offer_not_started", is_within_window),
        EligibilityCheck("status", "offer_paused", not offer.is_paused),
        EligibilityCheck("audience", "customer_not_eligible", facts.is_in_audience if is_customer_known else None),
        EligibilityCheck(
            "personal_code",
            "personal_code_required",
            _is_personal_code_accepted(facts, offer) if is_customer_known else None,
        ),
        EligibilityCheck("room", "offer_exhausted", not is_used_up),
    ]
    return Evaluation(tuple(checks))


def is_cap_reached(offer: OfferFacts) -> bool:
    """Return whether the offer is known to have no redemptions left under its cap."""
    return offer.max_redemptions is not None and offer.redeemed is not None and offer.redeemed >= offer.max_redemptions


def _is_personal_code_accepted(facts: RedemptionFacts, offer: OfferFacts) -> bool:
    if facts.personal_code_status == "none":
        return not offer.personal_code_required
    return facts.personal_code_status == "right"


@dataclass(frozen=True, slots=True)
class Order:
    """The order that a discount is for.

    `amount` is in minor units of its currency.
    """

    id: str
    amount: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class StaffEntry:
    """The user who enters a redemption for a customer, and the origin of the request."""

    user_id: int
    email: str
    origin: RequestOrigin


@dataclass(frozen=True, slots=True)
class RedemptionRequest:
    """A parsed request to redeem an offer or to validate a redemption.

    Offer and customer are identified by a normalised `code` and a normalised `email` or a `source_id`; or by their ids,
    when a personal link proves them or the application looked them up.
    """

    channel: Literal["form", "link", "api", "staff"]
    code: str | None = None
    email: str | None = None
    source_id: str | None = None
    offer_id: int | None = None
    customer_id: int | None = None
    order: Order | None = None
    metadata: Mapping[str, Any] | None = None
    api_key_id: int | None = None
    staff: StaffEntry | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None


def find_replayed_redemption(request: RedemptionRequest, facts: RedemptionFacts) -> RedemptionRow | None:
    """Return the earlier redemption if this request repeats the one that made it.

    A request is repeated by the same Idempotency-Key or, without one, by the same order id.

    :raises InvalidInput: `idempotency_key_reused` when the key was sent with another body.
    """
    current_row = facts.redemption
    if current_row is not None and current_row.api_key_id != request.api_key_id:
        current_row = None
    has_rolled_back_key = request.idempotency_key is not None and facts.rolled_back_redemption is not None
    if current_row is not None and _has_same_key(request, current_row):
        row: RedemptionRow | None = current_row
    elif current_row is not None and _has_same_order(request, current_row) and not has_rolled_back_key:
        row = current_row
    else:
        # The facts contain it only if it has the key of this request or, without a key, its order.
        row = facts.rolled_back_redemption
    if row is not None and _has_same_key(request, row) and row.body_hash != request.body_hash:
        raise InvalidInput(
            FieldError(
                "Idempotency-Key",
                "idempotency_key_reused",
                _("This Idempotency-Key was sent before with another body. Use a new key for a new request."),
                is_header=True,
            )
        )
    return row


def _has_same_key(request: RedemptionRequest, row: RedemptionRow) -> bool:
    return request.idempotency_key is not None and request.idempotency_key == row.idempotency_key


def _has_same_order(request: RedemptionRequest, row: RedemptionRow) -> bool:
    return request.order is not None and request.order.id == row.order_id


def calculate_discount_amount(order: Order | None, discount: Discount) -> int | None:
    """Return the discount on the order in minor units.

    :returns: None if the amount of the order is not known.
    :raises InvalidInput: `currency_missing`, `currency_mismatch`.
    """
    if order is None:
        return None
    if discount.type == "amount" and order.currency is None and order.amount is not None:
        raise InvalidInput(
            FieldError(
                "order.currency",
                "currency_missing",
                _(
                    "Send the currency of the order. This offer is for orders in %(currency)s.",
                    currency=discount.currency,
                ),
            )
        )
    if order.amount is None:
        if order.currency is not None:
            discount.amount_off(0, order.currency)
        return None
    return discount.amount_off(order.amount, order.currency or "")
