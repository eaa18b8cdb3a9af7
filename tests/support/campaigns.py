"""Campaigns in tests: create customers, launch, and query deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Connection, Row, event, select, text

from tests.support.smtp_relay import Relay
from webapp.campaigns import stats_queries, timing
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.status import DeliveryStatus
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import sender
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer

LaunchCampaign = Callable[..., Campaign]


def create_customers(n: int, first: int = 0) -> list[int]:
    """Create `n` customers c0@example.com, c1@… and return their ids."""
    rows = db.session.execute(
        text(
            "insert into customer (email, email_as_given, name) select address, address, 'Customer' "
            "from (select 'c' || g || '@example.com' as address from generate_series(cast(:first as int), :last) g) x "
            "returning id"
        ),
        {"first": first, "last": first + n - 1},
    )
    ids = [row.id for row in rows]
    db.session.commit()
    return ids


@pytest.fixture
def launch_campaign(app: Flask, make_offer: Callable[..., Offer]) -> LaunchCampaign:
    """Launches campaigns to all customers: `launch_campaign(policy="hold")`."""

    def launch(code: str = "SUMMER25", policy: str = "resend", prepare: bool = True, **mail: str) -> Campaign:
        offer = make_offer(code)
        draft_actions.save_offer_draft(offer.id, EmailContent(**mail), policy, "tests")
        campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
        if prepare:
            preparation.prepare_campaign(campaign.id)
        return campaign

    return launch


def send_until_idle() -> None:
    """Send the emails of all batches, as a worker does; fail if there is no end."""
    assert any(not sender.send_pending_emails() for _ in range(100))


def refresh(campaign: Campaign) -> Campaign:
    db.session.rollback()
    db.session.refresh(campaign)
    return campaign


def delivery_counts(campaign: Campaign) -> dict[str, int]:
    """Return the counts of a campaign that are not zero."""
    db.session.rollback()
    stats = stats_queries.get_campaign_stats(campaign.id)
    names = ("total", "sent", "failed", "deferred", "uncertain", "skipped")
    return {name: getattr(stats, name) for name in names if getattr(stats, name)}


def make_retries_due() -> None:
    db.session.execute(text("update mail_issue set next_at = now() where next_at is not null"))
    db.session.execute(text("update batch set not_before = null"))
    db.session.commit()


def expire_leases() -> None:
    db.session.execute(text("update batch set lease_until = now() - interval '1 second' where status = 'sending'"))
    db.session.commit()


@pytest.fixture
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes retries immediate."""
    monkeypatch.setattr(timing, "RECONNECT_DELAYS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(timing, "RELAY_PROBE_INTERVAL", 0.05)


@pytest.fixture
def other_worker(app: Flask, database_url: str) -> Iterator[psycopg.Connection[object]]:
    """A connection of another worker that can lock rows.

    A statement of the test that waits for such a lock fails.
    """

    def limit(session: object, transaction: object, connection: Connection) -> None:
        connection.exec_driver_sql("set local lock_timeout = '3s'")

    event.listen(db.session, "after_begin", limit)
    try:
        with psycopg.connect(database_url) as connection:
            yield connection
    finally:
        event.remove(db.session, "after_begin", limit)


def act_after(relay: Relay, n: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call `act` when the relay has accepted the n-th message."""
    accept = relay.accept

    def accept_and_act(message: object) -> None:
        accept(message)  # type: ignore[arg-type]
        if len(relay.messages) == n:
            act()

    monkeypatch.setattr(relay, "accept", accept_and_act)


def in_context(app: Flask, act: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with app.app_context():
            act()

    return run


def launch_to(make_offer: Callable[..., Offer], addresses: list[str]) -> Campaign:
    db.session.execute(
        text("insert into customer (email, email_as_given) select a, a from unnest(cast(:a as text[])) a"),
        {"a": addresses},
    )
    db.session.commit()
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    return campaign


def issue_states(campaign: Campaign) -> dict[str, tuple[str, int | None]]:
    """Return state and SMTP code of each row in `mail_issue` by email."""
    rows = db.session.execute(
        text(
            "select c.email, i.state, i.smtp_code from mail_issue i join customer c on c.id = i.customer_id "
            "where i.campaign_id = :id"
        ),
        {"id": campaign.id},
    )
    return {row.email: (row.state, row.smtp_code) for row in rows}


def list_issues(campaign: Campaign) -> Sequence[Row[str, str, int | None, str, datetime | None]]:
    """Return the rows of the deliveries of a campaign, sorted by customer id."""
    return db.session.execute(
        select(Customer.email, MailIssue.state, MailIssue.smtp_code, MailIssue.text, MailIssue.next_at)
        .join(Customer, Customer.id == MailIssue.customer_id)
        .where(MailIssue.campaign_id == campaign.id)
        .order_by(MailIssue.customer_id)
    ).all()


def campaign_status(campaign: Campaign) -> tuple[str, str | None]:
    db.session.rollback()
    db.session.refresh(campaign)
    return campaign.status, campaign.pause_reason


def delivery_status(campaign: Campaign, customer_id: int) -> DeliveryStatus:
    db.session.rollback()
    customer = db.session.get_one(Customer, customer_id)
    return delivery_queries.find_delivery(campaign, customer)
