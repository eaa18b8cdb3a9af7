"""Errors for redemption requests."""

from __future__ import annotations

from flask_babel import lazy_gettext as _l

from webapp.core.errors import DomainError
from webapp.redemptions import refusals
from webapp.redemptions.rules import Evaluation, RedemptionFacts, RefusalReason


class RedemptionRefused(DomainError):
    """A redemption request that an eligibility check refuses.

    :param reason: the refusal reason of the first check that failed.
    :param evaluation: the results of all checks.
    :param facts: the data about the offer, the customer and an earlier redemption.
    """

    def __init__(self, reason: RefusalReason, evaluation: Evaluation, facts: RedemptionFacts) -> None:
        super().__init__(
            reason, refusals.format_staff_message(reason, facts.offer), 404 if reason == "not_found" else 409
        )
        self.reason = reason
        self.evaluation = evaluation
        self.facts = facts


DATABASE_UNAVAILABLE = _l("Codes can't be redeemed right now. Nothing was redeemed. Please try again in a moment.")
OUTCOME_UNKNOWN = _l(
    "We could not confirm whether the code was redeemed. Please try again: it can't be redeemed twice."
)
OFFER_BUSY = _l(
    "Too many customers are redeeming this offer right now. Nothing was redeemed. Please try again in a moment."
)


class RedemptionUnavailable(DomainError):
    """No result came in time (503).

    Nothing was saved, unless the message is `OUTCOME_UNKNOWN`.
    """

    def __init__(self, message: str = DATABASE_UNAVAILABLE) -> None:
        super().__init__("unavailable", str(message), 503)
