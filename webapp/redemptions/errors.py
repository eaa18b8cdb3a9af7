"""Errors for redemption requests."""

from __future__ import annotations

import logging

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.exc import DBAPIError

from webapp.core.database_connections import CommitRefused
from webapp.core.database_health import is_commit_refused, is_disk_full
from webapp.core.errors import DomainError
from webapp.redemptions import refusals
from webapp.redemptions.rules import Evaluation, RedemptionFacts, RefusalReason

log = logging.getLogger(__name__)


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


# An earlier attempt of the same customer may have been saved without a confirmation, so these texts are about this one.
DATABASE_UNAVAILABLE = _l(
    "Codes can't be redeemed right now. This attempt redeemed nothing. Please try again in a moment."
)
COMMITS_REFUSED = _l(
    "Codes can't be redeemed right now. This attempt redeemed nothing, but an earlier one may have. Please try again "
    "in a moment: the code can't be redeemed twice."
)
OUTCOME_UNKNOWN = _l(
    "We could not confirm whether the code was redeemed. Please try again: it can't be redeemed twice."
)
DISK_FULL = _l(
    "Codes can't be redeemed right now, because the disk of the database is full. This attempt redeemed nothing. "
    "Please try again later."
)
DISK_FULL_FOR_CUSTOMERS = _l(
    "Codes can't be redeemed for some time. This attempt redeemed nothing. Please try again later."
)
# The others may be redemptions, a change of the offer, or a transaction that waits for a standby.
OFFER_BUSY = _l(
    "This offer can't be redeemed right now, because other requests for it are not complete yet. This attempt redeemed "
    "nothing. Please try again in a moment."
)


class RedemptionUnavailable(DomainError):
    """No result came in time (503).

    This request has saved nothing, unless the message is `OUTCOME_UNKNOWN`.
    """

    def __init__(self, message: str = DATABASE_UNAVAILABLE) -> None:
        super().__init__("unavailable", str(message), 503)


class RedemptionDiskFull(RedemptionUnavailable):
    """The disk of the database is full (503). Nothing was saved."""

    def __init__(self) -> None:
        super().__init__(DISK_FULL)
        self.customer_message = str(DISK_FULL_FOR_CUSTOMERS)


class InvalidOfferCounter(DomainError):
    """The offer has no row in `offer_counter`, or one with a cap although the offer has none, or vice versa (500).

    Nothing was redeemed: without its counter the cap could not be enforced.
    """

    def __init__(self, offer_id: int) -> None:
        super().__init__(
            "error", _("Something went wrong on our side, and the error was logged. Please try again."), 500
        )
        log.error("offer %s cannot be redeemed: its row in offer_counter is missing or has another cap", offer_id)


def build_unavailable(error: DBAPIError | CommitRefused, message: str = DATABASE_UNAVAILABLE) -> RedemptionUnavailable:
    """Return the error for requests that a database error prevents.

    :param message: the message unless the disk is full or commits are refused.
    """
    if is_disk_full(error):
        return RedemptionDiskFull()
    return RedemptionUnavailable(COMMITS_REFUSED if is_commit_refused(error) else message)
