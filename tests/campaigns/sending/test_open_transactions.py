"""No transaction stays open while a sender waits for the relay or a slot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers, make_retries_due
from tests.support.smtp_relay import Relay
from webapp.campaigns import timing
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.sending import sender, test_emails
from webapp.campaigns.sending.progress import SendProgress
from webapp.campaigns.sending.throttle import SendThrottle
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import smtp
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.offers import queries as offer_queries

pytestmark = pytest.mark.usefixtures("no_retry_delay")


@pytest.fixture
def open_transactions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a transaction was open, for each connection and each message."""
    observed: list[bool] = []
    connect, deliver = smtp.RelayConnection.open, smtp.RelayConnection.deliver

    def watched_open(self: smtp.RelayConnection) -> None:
        observed.append(db.session().in_transaction())
        connect(self)

    def watched_deliver(self: smtp.RelayConnection, message: OutgoingMessage, *hooks: Callable[[], bool]) -> object:
        observed.append(db.session().in_transaction())
        return deliver(self, message, *hooks)

    monkeypatch.setattr(smtp.RelayConnection, "open", watched_open)
    monkeypatch.setattr(smtp.RelayConnection, "deliver", watched_deliver)
    return observed


def test_a_batch_is_sent_without_an_open_transaction(
    launch_campaign: LaunchCampaign, relay: Relay, open_transactions: list[bool]
) -> None:
    create_customers(2)
    launch_campaign()
    sender.send_pending_emails()
    assert len(relay.recipients) == 2
    assert open_transactions == [False] * len(open_transactions)
    assert len(open_transactions) >= 3


def test_a_rejected_email_leaves_no_transaction_open_for_the_next(
    launch_campaign: LaunchCampaign, relay: Relay, open_transactions: list[bool]
) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c0@example.com"] = "550 5.1.1 unknown"
    relay.behaviour.rcpt["c1@example.com"] = "450 4.2.1 later"
    launch_campaign()
    sender.send_pending_emails()
    assert open_transactions == [False] * len(open_transactions)
    assert len(open_transactions) >= 4


def test_a_retry_is_sent_without_an_open_transaction(
    launch_campaign: LaunchCampaign, relay: Relay, open_transactions: list[bool]
) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 4.2.1 later"
    launch_campaign()
    sender.send_pending_emails()
    make_retries_due()
    relay.behaviour.rcpt.clear()
    open_transactions.clear()
    sender.send_pending_emails()
    assert len(relay.recipients) == 1
    assert open_transactions == [False] * len(open_transactions)
    assert len(open_transactions) >= 2


def test_a_test_email_is_sent_without_an_open_transaction(
    launch_campaign: LaunchCampaign, relay: Relay, open_transactions: list[bool]
) -> None:
    create_customers(1)
    campaign = launch_campaign()
    offer = offer_queries.find_offer(campaign.offer_id)
    assert offer is not None
    test_emails.send_test_email(EmailContent(), offer, "mia@example.com", "Mia")
    assert len(relay.recipients) == 1
    assert open_transactions == [False] * len(open_transactions)
    assert len(open_transactions) >= 2


# --- the rate limit ---------------------------------------------------------------------------------


class WaitingSender(threading.Event):
    """A stop request that records open transactions and then stops the sender."""

    def __init__(self) -> None:
        super().__init__()
        self.open_transactions: list[bool] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.open_transactions.append(db.session().in_transaction())
        self.set()
        return True


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitingSender]:
    event = WaitingSender()
    monkeypatch.setattr(task_queue, "stop_requested", event)
    yield event
    event.clear()


def test_a_batch_waits_for_its_slot_without_an_open_transaction(
    launch_campaign: LaunchCampaign,
    relay: Relay,
    with_settings: Callable[..., Settings],
    waiting: WaitingSender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each renewal of the lease begins a transaction.
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    create_customers(2)
    launch_campaign()
    with_settings(mail_per_second=0.001)
    sender.send_pending_emails()
    assert (len(relay.recipients), waiting.open_transactions) == (1, [False])


def test_a_retry_waits_for_its_slot_without_an_open_transaction(
    launch_campaign: LaunchCampaign, relay: Relay, waiting: WaitingSender
) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 4.2.1 later"
    launch_campaign()
    sender.send_pending_emails()
    make_retries_due()
    with smtp.create_relay_connection() as connection, SendProgress() as progress:
        batch_sender = sender._BatchSender(connection, progress)
        # A slot that was reserved for a batch and is not due yet.
        batch_sender.throttle = SendThrottle(2)
        assert batch_sender.throttle.try_acquire(2) == 0
        batch_sender.throttle._next_slot_at += 1000
        batch_sender._send_due_retries()
    assert waiting.open_transactions == [False]
    assert db.session.execute(text("select state from mail_issue")).scalar_one() == "deferred"


def test_a_sender_waits_for_an_unavailable_relay_without_an_open_transaction(
    launch_campaign: LaunchCampaign, with_settings: Callable[..., Settings], waiting: WaitingSender
) -> None:
    create_customers(1)
    launch_campaign()
    with_settings(mail_port=1)
    sender.send_pending_emails()
    assert waiting.open_transactions == [False]
