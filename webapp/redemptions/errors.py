"""Errors of a redemption request."""

from __future__ import annotations

from webapp.core.errors import DomainError
from webapp.redemptions import refusals
from webapp.redemptions.rules import Evaluation, RedemptionFacts, RefusalReason


class RedemptionRefused(DomainError):
    """The rule says no. `verdict` has every check, `offer` what is known of the offer, `use` the earlier use."""

    def __init__(self, reason: RefusalReason, judged: Evaluation, facts: RedemptionFacts) -> None:
        super().__init__(
            reason, refusals.format_staff_message(reason, facts.offer), 404 if reason == "not_found" else 409
        )
        self.reason = reason
        self.evaluation = judged
        self.facts = facts


DATABASE_UNAVAILABLE = "The database can't be reached just now. Nothing was saved; please try again in a moment."
OUTCOME_UNKNOWN = (
    "The database did not say whether this was saved. Please try again: whatever was saved, it counts once."
)
OFFER_BUSY = "There is a rush on this offer just now. Nothing was saved; please try again in a moment."


class RedemptionUnavailable(DomainError):
    """No answer came in time. Unless the sentence is LOST, nothing was saved."""

    def __init__(self, sentence: str = DATABASE_UNAVAILABLE) -> None:
        super().__init__("unavailable", sentence, 503)
