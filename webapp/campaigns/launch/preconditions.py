"""Conditions for launching or scheduling a campaign.

Each function raises an error when its condition is not met.
"""

from __future__ import annotations

from datetime import datetime

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.models import Campaign
from webapp.core import database_clock
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.offers.models import Offer

OFFER_STATE_REFUSALS = {
    "ended": (
        "offer_expired",
        _l("This offer has ended, so its code would not work. Choose a later end date for the offer first."),
    ),
    "paused": ("offer_paused", _l("This offer is paused, so its code would not work. Resume the offer first.")),
    "used_up": (
        "offer_exhausted",
        _l("This offer has reached its limit, so its code would not work. Raise the limit first."),
    ),
}


def require_usable_offer(offer: Offer) -> None:
    """Reject an offer whose code cannot be redeemed, now or later.

    :raises DomainError: `offer_expired`, `offer_paused` or `offer_exhausted`.
    """
    state = offer.state(database_clock.get_database_time())
    if state in OFFER_STATE_REFUSALS:
        raise DomainError(*OFFER_STATE_REFUSALS[state])


def require_expected_status(campaign: Campaign, expected_status: str | None) -> None:
    """Reject a launch when the campaign was scheduled or unscheduled concurrently.

    :param expected_status: the status that was shown to the user; None accepts any.
    :raises DomainError: `conflict`.
    """
    if expected_status and campaign.status in ("draft", "scheduled") and campaign.status != expected_status:
        db.session.rollback()
        if expected_status == "scheduled":
            message = _(
                "This campaign has been unscheduled since you opened this page. Review it before you launch it."
            )
        else:
            message = _("This campaign has been scheduled since you opened this page. Review it before you launch it.")
        raise DomainError("conflict", message)


def require_finished_announcement(offer_id: int) -> None:
    """Reject the launch of a reminder while the announcement is not finished.

    :raises DomainError: `conflict`.
    """
    announcement = launch_queries.find_announcement_in_progress(offer_id)
    if announcement is not None:
        if announcement.status == "paused":
            message = _(
                "The announcement of this offer is paused. Launch the reminder after it has finished, or schedule it "
                "now."
            )
        else:
            message = _(
                "The announcement of this offer is still being sent. Launch the reminder after it has finished, or "
                "schedule it now."
            )
        raise DomainError("conflict", message)


def require_recipients(offer: Offer, kind: str) -> None:
    """Reject a launch without recipients.

    :raises DomainError: `audience_empty`.
    """
    if not campaign_queries.has_unsuppressed_customers(offer.audience_id):
        raise DomainError(
            "audience_empty",
            _(
                "There are no recipients: the audience has no customers, or all of them are on the suppression list. "
                "Import customers first."
            ),
        )
    if kind == "reminder" and not launch_audience.has_customers_to_remind(offer):
        raise DomainError(
            "audience_empty", _("There are no recipients: every customer who can be emailed has redeemed.")
        )


def validate_launch_time(at: datetime, offer: Offer) -> None:
    """Reject a launch time out of range, in the past or after the end of the offer.

    :raises InvalidInput: with the error of the field `at`.
    """
    error = None
    if at.year not in offer_actions.OFFER_YEARS:
        error = (
            "time_out_of_range",
            _(
                "Choose a year from %(first)s to %(last)s.",
                first=offer_actions.OFFER_YEARS[0],
                last=offer_actions.OFFER_YEARS[-1],
            ),
        )
    elif at <= database_clock.get_database_time():
        error = "time_past", _("This time is in the past. Choose a later time, or launch the campaign now.")
    elif offer.ends_at is not None and at >= offer.ends_at:
        error = (
            "time_after_end",
            _(
                "The offer will have ended, so its code would not work. Choose an earlier time, "
                "or a later end date for the offer."
            ),
        )
    if error:
        db.session.rollback()
        raise InvalidInput(FieldError("at", *error))
