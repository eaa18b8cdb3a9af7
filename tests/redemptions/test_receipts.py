"""The receipt by email, for customers who enter a code again after redeeming it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import smtp_relay
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.smtp_relay import Relay
from webapp.core import task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.mail import smtp
from webapp.redemptions import customer_emails, group_commit, receipts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.customer_emails import RETRY_DELAYS
from webapp.redemptions.rules import RedemptionRequest


@pytest.fixture
def relay(with_settings: Callable[..., Settings]) -> Iterator[Relay]:
    """A running relay that the app is configured to use."""
    with smtp_relay.running() as server:
        with_settings(mail_port=server.port)
        yield server


@pytest.fixture
def redemption(make_offer: MakeOffer, make_customer: MakeCustomer) -> redemption_queries.RedemptionRecord:
    """Ada's redemption of an offer."""
    make_offer(), make_customer()
    return group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))


def post(client: FlaskClient, code: str = "SUMMER25", email: str = "ada@example.com") -> Any:
    return client.post("/redeem", data={"code": code, "email": email})


def run_queued_tasks() -> int:
    """Run every queued task; return their number."""
    n = 0
    while huey.storage.queue_size():
        huey.execute(huey.dequeue())
        n += 1
    return n


def test_entering_a_redeemed_code_again_emails_the_receipt(
    client: FlaskClient, relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    response = post(client)
    run_queued_tasks()

    assert response.status_code == 409
    assert "We will email you the receipt" in response.text
    mail = relay.message_to("ada@example.com").message
    body = mail.get_content()
    assert mail["Subject"] == "Your receipt: Summer"
    assert (mail["To"], mail["Auto-Submitted"]) == ("ada@example.com", "auto-generated")
    assert body.startswith("Hello Ada Lovelace,\r\n")
    for expected in (redemption.public_id, "25%", "SUMMER25", "http://localhost/r/"):
        assert expected in body


def test_the_receipt_in_the_email_is_in_the_customers_locale(
    relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    db.session.execute(text("update customer set locale = 'de'"))
    db.session.execute(text("update offer set time_zone = 'Europe/Berlin'"))
    db.session.execute(text("update redemption set redeemed_at = '2026-05-31T22:30:00Z'"))
    db.session.commit()

    receipts.send_receipt_email(redemption.offer_id, redemption.customer_id)

    body = relay.message_to("ada@example.com").message.get_content()
    assert "Discount:  25\xa0%\r\n" in body
    assert "Redeemed:  1. Juni 2026, 00:30 CEST\r\n" in body


@pytest.mark.parametrize(
    ("age", "introduction", "note"),
    [
        (
            "4 minutes",
            '"Summer" has just been redeemed with this email address.\r\nHere is the receipt.',
            "The offer was redeemed once. Entering its code again has redeemed nothing.",
        ),
        (
            "6 minutes",
            'The code of "Summer" was entered with this email address, which has already redeemed it.\r\n'
            "Here is the receipt again.",
            "If you did not enter the code, you can ignore this email: nothing was redeemed or changed.",
        ),
    ],
)
def test_a_form_that_was_sent_twice_is_not_explained_as_another_entry(
    client: FlaskClient,
    relay: Relay,
    redemption: redemption_queries.RedemptionRecord,
    age: str,
    introduction: str,
    note: str,
) -> None:
    db.session.execute(text("update redemption set redeemed_at = redeemed_at - cast(:age as interval)"), {"age": age})
    db.session.commit()
    earlier = redemption_queries.find_current_redemption(redemption.offer_id, redemption.customer_id)
    assert earlier is not None

    post(client)
    run_queued_tasks()

    (_hello, first, facts, link, last, _shop) = (
        relay.message_to("ada@example.com").message.get_content().split("\r\n\r\n")
    )
    assert (first, last) == (introduction, note)
    assert f"Reference: {earlier.public_id}" in facts
    assert link.startswith("Your receipt with its QR code:\r\nhttp://localhost/r/")


def test_the_link_in_the_email_shows_the_receipt(
    client: FlaskClient, relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    post(client)
    run_queued_tasks()

    (link,) = [line for line in relay.message_to("ada@example.com").message.get_content().splitlines() if "/r/" in line]

    assert redemption.public_id in client.get(link.removeprefix("http://localhost")).text


def test_the_response_does_not_reveal_whether_an_email_is_sent(
    client: FlaskClient, relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    first, again = post(client), post(client)

    assert (first.status_code, first.text) == (again.status_code, again.text)
    assert redemption.public_id not in first.text
    assert "/r/" not in first.text
    assert run_queued_tasks() == 1


def test_sending_a_receipt_redeems_nothing(
    client: FlaskClient, relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    post(client)
    redemption_rollback.roll_back_redemption(redemption.public_id, "order cancelled", "staff")

    receipts.send_receipt_email(redemption.offer_id, redemption.customer_id)

    assert run_queued_tasks() == 1
    assert relay.messages == []
    assert db.session.execute(text("select count(*) from redemption")).scalar() == 0


def test_at_most_one_receipt_an_hour_per_offer(app: Flask) -> None:
    results = [
        customer_emails.acquire_email_quota("receipt", 1, 7),
        customer_emails.acquire_email_quota("receipt", 1, 7),
        customer_emails.acquire_email_quota("receipt", 2, 7),
        customer_emails.acquire_email_quota("receipt", 1, 8),
    ]
    db.session.execute(text("update rate_hit set expires_at = now() where key = 'receipt:1:7'"))
    db.session.commit()

    assert [*results, customer_emails.acquire_email_quota("receipt", 1, 7)] == [True, False, True, True, True]


def test_at_most_five_receipts_a_day_per_customer(app: Flask) -> None:
    assert [customer_emails.acquire_email_quota("receipt", n, 7) for n in range(6)] == [True] * 5 + [False]

    assert customer_emails.acquire_email_quota("receipt", 1, 8)
    assert customer_emails.acquire_email_quota("personal_link", 1, 7)


def test_requests_within_the_hour_do_not_use_the_quota_of_the_day(app: Flask) -> None:
    assert [customer_emails.acquire_email_quota("receipt", 1, 7) for _ in range(6)] == [True] + [False] * 5

    assert customer_emails.acquire_email_quota("receipt", 2, 7)


def test_the_quotas_end_after_an_hour_and_a_day(app: Flask) -> None:
    customer_emails.acquire_email_quota("receipt", 1, 7)

    rows = db.session.execute(text("select key, expires_at - now() from rate_hit order by expires_at")).all()

    assert [key for key, _ in rows] == ["receipt:1:7", "receipts:7"]
    hour, day = (remaining for _, remaining in rows)
    assert timedelta(minutes=55) < hour <= timedelta(hours=1)
    assert timedelta(hours=23) < day <= timedelta(days=1)


@pytest.mark.parametrize(
    ("typed", "email"),
    [("SUMMER25", "bob@example.com"), ("SUMMER25-7KQ4XM2T", "ada@example.com"), ("WINTER", "ada@example.com")],
    ids=["another customer", "wrong personal code", "no such code"],
)
def test_other_refusals_send_no_email(
    client: FlaskClient,
    redemption: redemption_queries.RedemptionRecord,
    make_customer: MakeCustomer,
    typed: str,
    email: str,
) -> None:
    make_customer("bob@example.com")
    db.session.execute(text("update offer set personal_code_required = true"))
    db.session.commit()

    post(client, typed, email)

    assert run_queued_tasks() == 0


def test_an_unsubscribed_customer_gets_the_receipt(
    client: FlaskClient, relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    db.session.execute(
        text("insert into suppression (email, reason, source) select email, 'unsubscribed', 'tests' from customer")
    )
    db.session.commit()
    post(client)
    run_queued_tasks()

    assert relay.recipients == {"ada@example.com": 1}


def test_an_erased_customer_gets_no_receipt(
    client: FlaskClient, relay: Relay, redemption: redemption_queries.RedemptionRecord
) -> None:
    post(client)
    db.session.execute(
        text(
            "update customer set erased_at = now(), email = 'erased ' || id, email_as_given = 'erased customer',"
            " name = ''"
        )
    )
    db.session.commit()

    receipts.send_receipt_email(redemption.offer_id, redemption.customer_id)

    assert run_queued_tasks() == 1
    assert relay.connections == 0


def test_a_receipt_is_retried_when_the_relay_is_unavailable(
    relay: Relay, redemption: redemption_queries.RedemptionRecord, with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_port=1)
    task_queue.run("redemptions.send_receipt", redemption.offer_id, redemption.customer_id, 0)
    with_settings(mail_port=relay.port)
    (retry,) = huey.pending()
    delay = retry.eta.replace(tzinfo=UTC) - datetime.now(UTC)
    task_queue.run("redemptions.send_receipt", *retry.args)

    assert 50 < delay.total_seconds() <= RETRY_DELAYS[0]
    assert retry.args == (redemption.offer_id, redemption.customer_id, 1)
    assert relay.recipients == {"ada@example.com": 1}


@pytest.mark.parametrize(("attempt", "seconds"), [(0, 60), (1, 600), (2, 3600)])
def test_the_retries_of_a_receipt_come_after_a_minute_ten_minutes_and_an_hour(
    redemption: redemption_queries.RedemptionRecord, attempt: int, seconds: int
) -> None:
    before = datetime.now(UTC)

    task_queue.run("redemptions.send_receipt", redemption.offer_id, redemption.customer_id, attempt)

    (retry,) = huey.pending()
    enqueued_at = retry.eta.replace(tzinfo=UTC) - timedelta(seconds=seconds)
    assert before - timedelta(seconds=1) < enqueued_at < datetime.now(UTC) + timedelta(seconds=1)


def test_a_receipt_is_abandoned_after_the_last_retry(redemption: redemption_queries.RedemptionRecord) -> None:
    task_queue.run("redemptions.send_receipt", redemption.offer_id, redemption.customer_id, len(RETRY_DELAYS))

    assert huey.pending() == []


def test_a_rejected_receipt_is_not_retried(relay: Relay, redemption: redemption_queries.RedemptionRecord) -> None:
    relay.behaviour.rcpt["ada@example.com"] = "550 no such mailbox"

    task_queue.run("redemptions.send_receipt", redemption.offer_id, redemption.customer_id, 0)

    assert huey.pending() == []


@pytest.mark.parametrize(
    ("given", "name"), [("müller@example.com", "Sümmer\r\nBcc: x@y"), ("o'brien+x@bücher.example", "=?utf-8?q?x?=")]
)
def test_a_receipt_is_sent_to_any_address_and_with_any_name(
    relay: Relay, make_offer: MakeOffer, make_customer: MakeCustomer, given: str, name: str
) -> None:
    offer, customer = make_offer(name=name), make_customer(given)
    group_commit.redeem(RedemptionRequest(channel="staff", code="SUMMER25", email=customer.email))

    task_queue.run("redemptions.send_receipt", offer.id, customer.id, 0)

    (received,) = relay.messages
    assert received.raw.startswith(b"From: ")
    assert received.raw.count(b"\n") == received.raw.count(b"\r\n")
    assert received.message["Bcc"] is None
    assert received.message["Subject"] == " ".join(f"Your receipt: {name}".split())
    assert received.to.partition("@")[0] == given.partition("@")[0]


def test_a_receipt_that_was_not_enqueued_uses_no_quota(
    make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer, ada = make_offer(), make_customer()
    monkeypatch.setattr(task_queue, "enqueue", lambda *_, **__: False)
    receipts.enqueue_receipt(offer.id, ada.id)
    assert customer_emails.acquire_email_quota("receipt", offer.id, ada.id)


def test_no_transaction_is_open_while_the_relay_receives_the_receipt(
    relay: Relay, redemption: redemption_queries.RedemptionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_transactions = []
    connect = smtp.RelayConnection.open

    def watched_open(self: smtp.RelayConnection) -> None:
        open_transactions.append(db.session().in_transaction())
        connect(self)

    monkeypatch.setattr(smtp.RelayConnection, "open", watched_open)
    receipts.send_receipt_email(redemption.offer_id, redemption.customer_id)
    assert relay.recipients == {"ada@example.com": 1}
    assert open_transactions == [False]
