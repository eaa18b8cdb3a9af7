"""Sentences about single deliveries: what happens next, or why a customer is no recipient."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Row, text

from tests.support.campaigns import LaunchCampaign, create_customers, delivery_status, refresh
from webapp.campaigns.deliveries.status import to_delivery_status
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember, Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(minutes=1), NOW - timedelta(minutes=1)
RESOLVE = "It has to be resolved: resend it or dismiss it."
RESENT_LATER = "It will be resent automatically."
RESENT_NOW = "It is being resent now."
RETRIED_NOW = "It is being retried now."
NOT_RESENT = "The campaign was cancelled, so this email is not resent."


def make_row(**values: object) -> Row[Any]:
    """A row of the recipient at index 4 of a batch whose first ten recipients are processed."""
    row = {
        "campaign_id": 1, "customer_id": 2, "email": "ada@example.com", "name": "Ada", "source_id": "s1",
        "campaign_status": "sending", "launched_at": NOW, "finished_at": None, "uncertain_policy": "hold",
        "batch_position": 5, "status": "pending", "window_start": 10, "window_end": 10,
        "windows": [0, 30, 4, 60, 9, 90], "is_leased": True, "cursor": None, "state": None, "smtp_code": None,
        "text": "", "next_at": None, "attempts": 2, "at": NOW, "doubt": False, "read_at": NOW,
    }  # fmt: skip
    return cast(Row[Any], SimpleNamespace(**(row | values)))


OPEN_WINDOW = {"status": "sending", "window_start": 0, "window_end": 10, "cursor": 4}
QUEUED = {"window_start": 4, "window_end": 4}
RESEND = {"uncertain_policy": "resend"}


@pytest.mark.parametrize(
    ("values", "note", "needs_resolution"),
    [
        ({}, RESOLVE, True),
        ({"next_at": EARLIER}, RESOLVE, True),
        ({"next_at": NOW}, RESOLVE, True),
        (RESEND, RESOLVE, True),
        (RESEND | {"next_at": EARLIER}, RESENT_LATER, False),
        (RESEND | {"next_at": EARLIER, "campaign_status": "paused"}, RESENT_LATER, False),
        (RESEND | {"next_at": EARLIER, "campaign_status": "done"}, RESOLVE, True),
        (RESEND | {"next_at": EARLIER, "campaign_status": "cancelled"}, NOT_RESENT, True),
        ({"campaign_status": "cancelled"}, NOT_RESENT, True),
        ({"campaign_status": "cancelled", "next_at": LATER}, RETRIED_NOW, False),
        (OPEN_WINDOW, RESENT_NOW, False),
        (OPEN_WINDOW | {"next_at": LATER}, RESENT_NOW, False),
        (OPEN_WINDOW | {"cursor": 5}, RESOLVE, True),
        (OPEN_WINDOW | {"cursor": None}, RESENT_NOW, False),
        (QUEUED, RESENT_LATER, False),
        (QUEUED | {"campaign_status": "cancelled"}, NOT_RESENT, True),
    ],
)
def test_an_uncertain_email_says_who_resends_it(values: dict[str, Any], note: str, needs_resolution: bool) -> None:
    status = to_delivery_status(make_row(state="uncertain", **values))
    assert (status.state, status.note, status.needs_resolution) == ("uncertain", note, needs_resolution)
    assert (status.next_at, status.attempts) == (values.get("next_at"), 2)


@pytest.mark.parametrize(("attempts", "made"), [(2, 1), (1, 0), (0, 0)])
def test_an_email_that_is_being_retried_is_deferred(attempts: int, made: int) -> None:
    status = to_delivery_status(make_row(state="uncertain", next_at=LATER, attempts=attempts))
    assert (status.state, status.note, status.needs_resolution) == ("deferred", RETRIED_NOW, False)
    assert (status.next_at, status.attempts) == (None, made)


@pytest.mark.parametrize(
    ("values", "code", "next_at", "note"),
    [
        ({"state": "deferred"}, 450, LATER, ""),
        (
            {"state": "deferred", "campaign_status": "cancelled"},
            450, None, "The campaign was cancelled, so this email is not retried.",
        ),
        ({"state": "failed", "doubt": True}, 450, None, ""),
        ({"state": "failed", "campaign_status": "cancelled"}, 450, None, ""),
        ({"state": "skipped"}, None, None, ""),
        ({"state": "left"}, 450, None, ""),
        ({"state": "sent_later"}, None, None, ""),
        (
            {"state": "sent_later", "doubt": True},
            None, None, "An earlier attempt may have succeeded, so the customer may have got it twice.",
        ),
    ],
)  # fmt: skip
def test_a_recorded_email_has_the_reply_and_the_next_attempt(
    values: dict[str, Any], code: int | None, next_at: datetime | None, note: str
) -> None:
    status = to_delivery_status(make_row(smtp_code=450, text="later", next_at=LATER, **values))
    assert (status.state, status.code, status.next_at, status.note) == (values["state"], code, next_at, note)
    assert (status.text, status.at, status.attempts, status.needs_resolution) == ("later", NOW, 2, False)
    assert (status.email, status.name, status.source_id) == ("ada@example.com", "Ada", "s1")


@pytest.mark.parametrize(
    ("values", "state", "seconds", "note"),
    [
        ({}, "sent", 60, ""),
        ({"batch_position": 4}, "sent", 30, ""),
        ({"batch_position": 10}, "sent", 90, ""),
        ({"windows": []}, "sent", None, "The exact time is unknown; it was before 2026-05-01 12:00 UTC."),
        ({"launched_at": None}, "sent", None, "The exact time is unknown; it was before 2026-05-01 12:00 UTC."),
        (
            {"windows": [5, 30], "finished_at": datetime(2026, 4, 30, 9, 5, tzinfo=UTC)},
            "sent", None, "The exact time is unknown; it was before 2026-04-30 09:05 UTC.",
        ),
        (OPEN_WINDOW, "sending", 60, ""),
        (OPEN_WINDOW | {"cursor": 5}, "sent", 60, ""),
        (
            OPEN_WINDOW | {"is_leased": False},
            "sending", 60, "Sending was interrupted. It resumes automatically within a minute.",
        ),
        (OPEN_WINDOW | {"window_end": 5}, "sending", 60, ""),
        (OPEN_WINDOW | {"window_end": 4}, "waiting", None, ""),
        (QUEUED, "waiting", None, ""),
        (QUEUED | {"status": "cancelled"}, "cancelled", None, "The campaign was cancelled before this email was sent."),
        (
            QUEUED | {"campaign_status": "cancelled"},
            "cancelled", None, "The campaign was cancelled before this email was sent.",
        ),
    ],
)  # fmt: skip
def test_the_state_of_an_unrecorded_email_follows_from_its_batch(
    values: dict[str, Any], state: str, seconds: int | None, note: str
) -> None:
    status = to_delivery_status(make_row(**values))
    assert (status.state, status.note) == (state, note)
    assert status.at == (None if seconds is None else NOW + timedelta(seconds=seconds))
    assert status.attempts == (1 if state == "sent" else 0)


# --- queued emails and customers who are no recipients ------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        ("bounced", "Will be skipped: the address has bounced."),
        ("unsubscribed", "Will be skipped: the customer has unsubscribed."),
        ("complained", "Will be skipped: the customer has complained."),
        (None, ""),
    ],
)
def test_a_queued_email_says_why_it_will_be_skipped(
    launch_campaign: LaunchCampaign, reason: str | None, note: str
) -> None:
    ids = create_customers(3)
    campaign = launch_campaign()
    suppression_actions.add_suppression("c0@example.com", "bounced", campaign.id)
    if reason:
        suppression_actions.add_suppression("c1@example.com", reason, campaign.id)
    db.session.commit()
    status = delivery_status(campaign, ids[1])
    assert (status.state, status.note, status.ahead) == ("waiting", note, 1)


def test_a_customer_is_queued_while_recipients_are_selected(
    launch_campaign: LaunchCampaign, make_customer: Callable[..., Customer]
) -> None:
    passed, late = create_customers(2)
    campaign = launch_campaign(prepare=False)
    db.session.execute(text("update campaign set prepared_to = :id"), {"id": passed})
    db.session.commit()
    refresh(campaign)
    statuses = [delivery_status(campaign, customer_id) for customer_id in (passed, late)]
    assert [(status.state, status.note) for status in statuses] == [
        ("not_recipient", "The customer was not among the recipients at the launch."),
        ("waiting", "The recipients are still being selected."),
    ]
    transitions.cancel_campaign(campaign.id, "tests")
    refresh(campaign)
    statuses = [delivery_status(campaign, customer_id) for customer_id in (passed, late)]
    assert [(status.state, status.note) for status in statuses] == [
        ("not_recipient", "The customer was not among the recipients at the launch."),
        ("cancelled", "The campaign was cancelled before this email was sent."),
    ]


def test_a_customer_who_is_no_recipient_sees_why(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    vips, others = Audience(name="VIPs"), Audience(name="Others")
    db.session.add_all([vips, others])
    db.session.flush()
    launched_at = datetime.now(UTC) - timedelta(hours=1)
    before, after = launched_at - timedelta(minutes=1), launched_at + timedelta(minutes=1)
    campaign = Campaign(
        offer_id=make_offer(audience_id=vips.id).id, audience_id=vips.id, subject="s", text="t", status="done",
        launched_at=launched_at, prepared_at=launched_at, sending_since=launched_at,
    )  # fmt: skip
    db.session.add(campaign)
    db.session.commit()
    customers = {
        "The customer was erased before the recipients were selected.": (vips, before, before, before),
        "The customer is not in the audience of the campaign.": (others, before, before, None),
        "The customer was created after the launch.": (vips, after, after, None),
        "The customer joined the audience after the launch.": (vips, before, after, None),
        "The customer was not among the recipients at the launch.": (vips, before, before, None),
    }
    for n, (note, (audience, created_at, joined_at, erased_at)) in enumerate(customers.items()):
        customer = make_customer(f"c{n}@example.com", created_at=created_at, erased_at=erased_at)
        db.session.add(AudienceMember(audience_id=audience.id, customer_id=customer.id, joined_at=joined_at))
        db.session.commit()
        status = delivery_status(campaign, customer.id)
        assert (status.state, status.note, status.name) == ("not_recipient", note, customer.name)


def test_only_a_redemption_of_this_offer_explains_why_no_reminder_was_sent(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    """A reminder of another offer went to customers who redeemed this one."""
    launched_at = datetime.now(UTC)
    redeemed, other = make_offer("FIRST"), make_offer("SECOND")
    customer = make_customer(created_at=launched_at - timedelta(hours=1))
    db.session.add(Redemption(offer_id=redeemed.id, customer_id=customer.id, channel="form"))
    notes = []
    for offer, kind in ((redeemed, "reminder"), (other, "reminder"), (redeemed, "announcement")):
        campaign = Campaign(
            offer_id=offer.id, kind=kind, subject="s", text="t", status="done", launched_at=launched_at,
            prepared_at=launched_at, sending_since=launched_at, sent_in_batches=0,
        )  # fmt: skip
        db.session.add(campaign)
        db.session.commit()
        notes.append(delivery_status(campaign, customer.id).note)
    assert notes == [
        "The customer has already redeemed, so no reminder was sent.",
        "The customer was not among the recipients at the launch.",
        "The customer was not among the recipients at the launch.",
    ]
