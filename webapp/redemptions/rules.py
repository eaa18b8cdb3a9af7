"""The rule: may this customer redeem this offer now? One pure function over facts; nothing else decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.money import Discount

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
CheckName = Literal["code", "customer", "unused", "window", "status", "audience", "personal_code", "room"]
PersonalCodeStatus = Literal["none", "right", "wrong"]


@dataclass(frozen=True, slots=True)
class OfferFacts:
    """The offer as the rule sees it."""

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
    redeemed: int
    is_frozen: bool


@dataclass(frozen=True, slots=True)
class RedemptionRow:
    """A redemption as its row says, perhaps undone since."""

    redeemed_at: datetime
    channel: str
    api_key_id: int | None = None
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
    """All that the rule needs to know of one (code, e-mail) pair at one moment.

    `undone` is the redemption that was rolled back and that this very request, if it is a repeat, had made. A code that
    was closed is known to nobody; that it was one of `offer` counts for repeats of what was done with it before.
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


class EligibilityCheck(NamedTuple):
    """One question with its answer; None where it can't be asked, because an earlier one failed."""

    name: CheckName
    reason: RefusalReason
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every check in order. `reason` is that of the first that failed; None means it may be redeemed."""

    checks: tuple[EligibilityCheck, ...]

    @property
    def reason(self) -> RefusalReason | None:
        return next((check.reason for check in self.checks if check.passed is False), None)

    @property
    def public_reason(self) -> RefusalReason | None:
        """The reason a stranger may hear: what fails for the person is one answer, `customer_not_eligible`.

        What fails for everybody is said first, so that on an offer that nobody can use no e-mail stands out. Only
        that it is used up comes after "already redeemed": whoever took part of it shall hear that it was them.
        """
        failed = {check.reason for check in self.checks if check.passed is False}
        personal = failed & CUSTOMER_REASONS
        for reason in OFFER_REASONS:
            if reason in failed:
                return reason
        if "already_redeemed" in failed and not personal:
            return "already_redeemed"
        if "offer_exhausted" in failed:
            return "offer_exhausted"
        return "customer_not_eligible" if personal else None


CUSTOMER_REASONS = frozenset({"customer_unknown", "customer_not_eligible", "personal_code_required"})
OFFER_REASONS: tuple[RefusalReason, ...] = (
    "not_found",
    "offer_not_started",
    "offer_expired",
    "offer_paused",
)


def evaluate(facts: RedemptionFacts) -> Evaluation:
    """Judge the facts: every check, in the order in which its reason is given."""
    offer, at = None if facts.is_code_closed else facts.offer, facts.evaluated_at
    known = facts.customer_id is not None
    checks: list[EligibilityCheck] = [
        EligibilityCheck("code", "not_found", offer is not None),
        EligibilityCheck("customer", "customer_unknown", known),
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
    started = offer.starts_at <= at
    open_now = started and (offer.ends_at is None or at < offer.ends_at)
    full = offer.max_redemptions is not None and offer.redeemed >= offer.max_redemptions
    checks += [
        EligibilityCheck("unused", "already_redeemed", facts.redemption is None if known else None),
        EligibilityCheck("window", "offer_expired" if started else "offer_not_started", open_now),
        EligibilityCheck("status", "offer_paused", not offer.is_paused),
        EligibilityCheck("audience", "customer_not_eligible", facts.is_in_audience if known else None),
        EligibilityCheck(
            "personal_code", "personal_code_required", _is_personal_code_accepted(facts, offer) if known else None
        ),
        EligibilityCheck("room", "offer_exhausted", not full),
    ]
    return Evaluation(tuple(checks))


def _is_personal_code_accepted(facts: RedemptionFacts, offer: OfferFacts) -> bool:
    if facts.personal_code_status == "none":
        return not offer.personal_code_required
    return facts.personal_code_status == "right"


@dataclass(frozen=True, slots=True)
class Order:
    """The order a discount is for, in minor units of its currency."""

    id: str
    amount: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class RedemptionRequest:
    """One request to redeem or to validate, as a door has understood it.

    Offer and customer are named by a normalised `code` and a normalised `email` (or `source_id`), or, where they are
    proven by a personal link or looked up by us, by their ids.
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
    idempotency_key: str | None = None
    body_hash: bytes | None = None


def find_replayed_redemption(ask: RedemptionRequest, facts: RedemptionFacts) -> RedemptionRow | None:
    """The first redemption, if this is the same request again: by its Idempotency-Key or by its order.

    :raises Invalid: `idempotency_key_reused` when the key came with another body then.
    """
    live = facts.redemption if facts.redemption is not None and facts.redemption.api_key_id == ask.api_key_id else None
    if live is not None and _has_same_key(ask, live):
        use: RedemptionRow | None = live
    elif live is not None and _has_same_order(ask, live) and not (ask.idempotency_key and facts.rolled_back_redemption):
        use = live
    else:
        # Found only by the key of this very request or, where it has none, by its order.
        use = facts.rolled_back_redemption
    if use is not None and _has_same_key(ask, use) and use.body_hash != ask.body_hash:
        raise InvalidInput(
            FieldError(
                "Idempotency-Key",
                "idempotency_key_reused",
                "This Idempotency-Key was sent before with another body. Use a new key for a new request.",
            )
        )
    return use


def _has_same_key(ask: RedemptionRequest, use: RedemptionRow) -> bool:
    return ask.idempotency_key is not None and ask.idempotency_key == use.idempotency_key


def _has_same_order(ask: RedemptionRequest, use: RedemptionRow) -> bool:
    return ask.order is not None and ask.order.id == use.order_id


def calculate_discount_amount(order: Order | None, discount: Discount) -> int | None:
    """What is taken off the order, if its amount is known.

    :raises Invalid: `currency_missing`, `currency_mismatch`.
    """
    if order is None:
        return None
    if discount.type == "amount" and order.currency is None and order.amount is not None:
        raise InvalidInput(
            FieldError(
                "order.currency",
                "currency_missing",
                f"Say the currency of the order; this offer is for orders in {discount.currency}.",
            )
        )
    if order.amount is None:
        if order.currency is not None:
            discount.amount_off(0, order.currency)
        return None
    return discount.amount_off(order.amount, order.currency or "")
