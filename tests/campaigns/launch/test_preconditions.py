"""Start times at the edges of what is allowed, and what a refusal leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import create_customers
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db
from webapp.offers.models import Offer

ENDS_AT = datetime(2150, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def make_draft(app: Flask, make_offer: Callable[..., Offer]) -> Callable[..., Campaign]:
    """Creates drafts, each of an offer of its own: `make_draft("CODE1", ends_at=…)`."""
    create_customers(1)

    def make(code: str = "SUMMER25", **values: object) -> Campaign:
        offer = make_offer(code, **values)
        return draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")

    return make


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (ENDS_AT - timedelta(microseconds=1), None),
        (ENDS_AT, "time_after_end"),
        (ENDS_AT + timedelta(microseconds=1), "time_after_end"),
    ],
)
def test_a_campaign_starts_before_its_offer_ends(
    make_draft: Callable[..., Campaign], at: datetime, reason: str | None
) -> None:
    campaign = make_draft(ends_at=ENDS_AT)
    if reason is None:
        assert launch_actions.schedule_campaign(campaign.id, at, "mia").campaign.scheduled_at == at
        return
    with pytest.raises(InvalidInput) as raised:
        launch_actions.schedule_campaign(campaign.id, at, "mia")
    assert [error.key for error in raised.value.errors] == [reason]


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (datetime(1999, 12, 31, 23, 59, tzinfo=UTC), "time_out_of_range"),
        (datetime(2000, 1, 1, tzinfo=UTC), "time_past"),
        (datetime(2199, 12, 31, 23, 59, tzinfo=UTC), None),
        (datetime(2200, 1, 1, tzinfo=UTC), "time_out_of_range"),
    ],
)
def test_the_first_and_the_last_year_are_in_range(
    make_draft: Callable[..., Campaign], at: datetime, reason: str | None
) -> None:
    campaign = make_draft(ends_at=None)
    if reason is None:
        assert launch_actions.schedule_campaign(campaign.id, at, "mia").changed
        return
    with pytest.raises(InvalidInput) as raised:
        launch_actions.schedule_campaign(campaign.id, at, "mia")
    assert [error.key for error in raised.value.errors] == [reason]


def test_a_refused_time_leaves_no_lock_on_the_offer(make_draft: Callable[..., Campaign]) -> None:
    campaign = make_draft(ends_at=ENDS_AT)
    with pytest.raises(InvalidInput):
        launch_actions.schedule_campaign(campaign.id, ENDS_AT, "mia")
    assert not db.session().in_transaction()


def test_a_refused_launch_leaves_no_lock_on_the_offer(make_draft: Callable[..., Campaign]) -> None:
    campaign = make_draft(paused_at=datetime.now(UTC))
    with pytest.raises(DomainError):
        launch_actions.launch_campaign(campaign.id, "mia")
    assert not db.session().in_transaction()


def test_a_launch_from_an_old_page_leaves_no_transaction_open(make_draft: Callable[..., Campaign]) -> None:
    campaign = make_draft(ends_at=ENDS_AT)
    with pytest.raises(DomainError):
        launch_actions.launch_campaign(campaign.id, "mia", expected_status="scheduled")
    assert not db.session().in_transaction()


# --- due campaigns ----------------------------------------------------------------------------------


def schedule(campaign: Campaign, seconds_from_now: int) -> None:
    db.session.execute(
        text(
            "update campaign set status = 'scheduled', scheduled_at = now() + make_interval(secs => :s) where id = :id"
        ),
        {"id": campaign.id, "s": seconds_from_now},
    )
    db.session.commit()


def test_due_campaigns_start_earliest_first(make_draft: Callable[..., Campaign]) -> None:
    drafts = [make_draft(f"CODE{n}") for n in range(4)]
    for draft, seconds in zip(drafts, (-20, -30, 60, -10), strict=True):
        schedule(draft, seconds)
    assert launch_actions.launch_due_campaigns() == [drafts[1].id, drafts[0].id, drafts[3].id]
    assert launch_queries.list_due_campaign_ids() == []


def test_campaigns_due_at_the_same_time_start_in_the_order_of_their_creation(
    make_draft: Callable[..., Campaign],
) -> None:
    drafts = [make_draft(f"CODE{n}") for n in range(3)]
    for draft in reversed(drafts):
        # Stored in the opposite order.
        schedule(draft, 60)
    db.session.execute(text("update campaign set scheduled_at = timestamptz '2020-01-01 00:00Z' where id = 2"))
    db.session.execute(text("update campaign set scheduled_at = timestamptz '2020-01-01 00:00Z' where id = 3"))
    db.session.execute(text("update campaign set scheduled_at = timestamptz '2020-01-01 00:00Z' where id = 1"))
    db.session.commit()
    assert launch_queries.list_due_campaign_ids() == [1, 2, 3]


@pytest.mark.parametrize(("seconds", "least", "most"), [(40, 0, 40), (-5, 0, 0), (600, None, None)])
def test_a_start_within_a_minute_is_waited_for(
    make_draft: Callable[..., Campaign], seconds: int, least: float | None, most: float | None
) -> None:
    schedule(make_draft("NEXT1"), seconds)
    schedule(make_draft("LATER1"), 3600)
    wait = launch_queries.seconds_until_next_launch()
    if least is None or most is None:
        assert wait is None
    else:
        assert wait is not None
        assert least <= wait <= most


def test_no_start_is_waited_for_when_none_is_scheduled(make_draft: Callable[..., Campaign]) -> None:
    schedule(make_draft(), 40)
    db.session.execute(text("update campaign set status = 'draft'"))
    db.session.commit()
    assert launch_queries.seconds_until_next_launch() is None
