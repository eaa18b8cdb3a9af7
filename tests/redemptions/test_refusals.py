"""Messages of refusals for staff, for people who claim to be the customer, and for owners of a personal link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import get_args

import pytest
from flask import Flask

from webapp.core.money import Discount
from webapp.redemptions.refusals import format_link_message, format_public_message, format_staff_message
from webapp.redemptions.rules import OfferFacts, RefusalReason

OFFER = OfferFacts(
    id=1,
    code="SUMMER25",
    name="Summer",
    discount=Discount("percent", percent=Decimal(25)),
    starts_at=datetime(2026, 5, 1, tzinfo=UTC),
    ends_at=datetime(2026, 6, 1, tzinfo=UTC),
    time_zone="UTC",
    is_paused=False,
    audience_id=None,
    personal_code_required=False,
    max_redemptions=None,
    redeemed=0,
    is_frozen=True,
)
PUBLIC = {
    "not_found": "We don't recognise this code.",
    "offer_not_started": "This offer starts on 1 May 2026. ",
    "offer_expired": "This offer ended on 31 May 2026. ",
    "offer_paused": "This offer is paused at the moment.",
    "offer_exhausted": "This offer has reached its limit",
    "already_redeemed": "This offer has already been redeemed with this email address.",
    "customer_unknown": "This code can't be redeemed with this email address.",
    "customer_not_eligible": "This code can't be redeemed with this email address.",
    "personal_code_required": "This code can't be redeemed with this email address.",
}
STAFF = {
    "not_found": "No offer has this code.",
    "offer_not_started": "This offer starts on 1 May 2026.",
    "offer_expired": "This offer ended on 31 May 2026.",
    "offer_paused": "This offer is paused.",
    "offer_exhausted": "This offer has reached its redemption limit.",
    "customer_unknown": "This customer does not exist.",
    "customer_not_eligible": "This offer is limited to an audience that the customer is not in.",
    "personal_code_required": "This offer requires the customer's personal code",
    "already_redeemed": "This customer has already redeemed this offer.",
}
LINK = PUBLIC | dict.fromkeys(
    ("customer_unknown", "customer_not_eligible", "personal_code_required"),
    "This offer is no longer available to you.",
)


@pytest.mark.parametrize("reason", get_args(RefusalReason))
def test_each_reason_has_its_message_for_each_reader(app: Flask, reason: RefusalReason) -> None:
    messages = [
        format_(reason, OFFER) for format_ in (format_staff_message, format_public_message, format_link_message)
    ]

    # Times are isolated from text in other directions by invisible characters.
    visible = [message.replace("\u2068", "").replace("\u2069", "") for message in messages]
    for message, expected in zip(visible, (STAFF, PUBLIC, LINK), strict=True):
        assert message.startswith(expected[reason])


@pytest.mark.parametrize("format_message", [format_staff_message, format_public_message, format_link_message])
def test_days_are_those_of_the_time_zone_of_the_offer(app: Flask, format_message: Callable[..., str]) -> None:
    """Midnight in Berlin is on the day before in UTC."""
    starts_at, ends_at = datetime(2026, 4, 30, 22, tzinfo=UTC), datetime(2026, 5, 31, 22, tzinfo=UTC)
    offer = replace(OFFER, time_zone="Europe/Berlin", starts_at=starts_at, ends_at=ends_at)

    assert "1 May 2026" in format_message("offer_not_started", offer)
    assert "31 May 2026" in format_message("offer_expired", offer)
