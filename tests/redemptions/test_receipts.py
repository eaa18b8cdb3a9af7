"""The receipt by mail, for whoever types a code that was used before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server, smtp_relay
from tests.support.smtp_relay import Relay
from webapp.core import task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, receipts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import RedemptionRequest

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]


@pytest.fixture
def relay(with_settings: Callable[..., Settings]) -> Iterator[Relay]:
    """A running relay, which the app is told to use."""
    with smtp_relay.running() as server:
        with_settings(mail_port=server.port)
        yield server


@pytest.fixture
def used(offer: MakeOffer, customer: MakeCustomer) -> redemption_queries.RedemptionRecord:
    """Ada's redemption of an offer."""
    offer(), customer()
    return group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))


def post(client: FlaskClient, code: str = "SUMMER25", email: str = "ada@example.com") -> Any:
    return client.post("/redeem", data={"code": code, "email": email})


def work() -> int:
    """Run every task that waits; how many there were."""
    n = 0
    while huey.storage.queue_size():
        huey.execute(huey.dequeue())
        n += 1
    return n


def test_a_typed_repeat_has_the_receipt_mailed_to_the_customer(
    client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord
) -> None:
    answer = post(client)
    work()

    assert answer.status_code == 409
    assert "We email the receipt to it" in answer.text
    mail = relay.to("ada@example.com").message
    body = mail.get_content()
    assert mail["Subject"] == "Your receipt: Summer"
    assert (mail["To"], mail["Auto-Submitted"]) == ("ada@example.com", "auto-generated")
    for words in (used.public_id, "25%", "SUMMER25", "http://localhost/r/"):
        assert words in body


def test_the_mails_link_shows_the_receipt(
    client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord
) -> None:
    post(client)
    work()

    (link,) = [line for line in relay.to("ada@example.com").message.get_content().splitlines() if "/r/" in line]

    assert used.public_id in client.get(link.removeprefix("http://localhost")).text


def test_a_stranger_sees_the_same_whether_a_mail_goes_out_or_not(
    client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord
) -> None:
    first, again = post(client), post(client)

    assert (first.status_code, first.text) == (again.status_code, again.text)
    assert used.public_id not in first.text
    assert "/r/" not in first.text
    assert work() == 1


def test_mailing_redeems_nothing(client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord) -> None:
    post(client)
    redemption_rollback.roll_back_redemption(used.public_id, "order cancelled", "staff")

    receipts.send_receipt_email(used.offer_id, used.customer_id)

    assert work() == 1
    assert relay.kept == []
    assert db.session.execute(text("select count(*) from redemption")).scalar() == 0


def test_one_receipt_an_hour_for_each_offer(offer: MakeOffer) -> None:
    turns = [
        receipts.acquire_receipt_quota(1, 7),
        receipts.acquire_receipt_quota(1, 7),
        receipts.acquire_receipt_quota(2, 7),
        receipts.acquire_receipt_quota(1, 8),
    ]
    db.session.execute(text("update rate_hit set expires_at = now() where key = 'receipt:1:7'"))
    db.session.commit()

    assert [*turns, receipts.acquire_receipt_quota(1, 7)] == [True, False, True, True, True]


def test_five_receipts_a_day_for_each_customer(offer: MakeOffer) -> None:
    assert [receipts.acquire_receipt_quota(n, 7) for n in range(6)] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("typed", "email"),
    [("SUMMER25", "bob@example.com"), ("SUMMER25-7KQ4XM2T", "ada@example.com"), ("WINTER", "ada@example.com")],
    ids=["somebody else", "wrong personal code", "no such code"],
)
def test_no_mail_goes_out_for_anything_else(
    client: FlaskClient, used: redemption_queries.RedemptionRecord, customer: MakeCustomer, typed: str, email: str
) -> None:
    customer("bob@example.com")
    db.session.execute(text("update offer set personal_code_required = true"))
    db.session.commit()

    post(client, typed, email)

    assert work() == 0


def test_who_is_unsubscribed_gets_the_receipt_asked_for(
    client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord
) -> None:
    db.session.execute(
        text("insert into suppression (email, reason, source) select email, 'unsubscribed', 'tests' from customer")
    )
    db.session.commit()
    post(client)
    work()

    assert relay.recipients == {"ada@example.com": 1}


def test_who_was_erased_meanwhile_gets_nothing(
    client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord
) -> None:
    post(client)
    db.session.execute(
        text(
            "update customer set erased_at = now(), email = 'erased ' || id, email_as_given = 'erased customer',"
            " name = ''"
        )
    )
    db.session.commit()

    receipts.send_receipt_email(used.offer_id, used.customer_id)

    assert work() == 1
    assert relay.connections == 0


def test_a_relay_that_is_away_is_asked_again_later(
    relay: Relay, used: redemption_queries.RedemptionRecord, with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_port=1)
    task_queue.run("redemptions.send_receipt", used.offer_id, used.customer_id, 0)
    with_settings(mail_port=relay.port)
    (again,) = huey.pending()
    waits = again.eta.replace(tzinfo=UTC) - datetime.now(UTC)
    task_queue.run("redemptions.send_receipt", *again.args)

    assert 50 < waits.total_seconds() <= receipts.RETRY_DELAYS[0]
    assert again.args == (used.offer_id, used.customer_id, 1)
    assert relay.recipients == {"ada@example.com": 1}


def test_a_relay_that_stays_away_is_given_up(used: redemption_queries.RedemptionRecord) -> None:
    task_queue.run("redemptions.send_receipt", used.offer_id, used.customer_id, len(receipts.RETRY_DELAYS))

    assert huey.pending() == []


def test_a_relay_that_refuses_is_not_asked_again(relay: Relay, used: redemption_queries.RedemptionRecord) -> None:
    relay.behaviour.rcpt["ada@example.com"] = "550 no such mailbox"

    task_queue.run("redemptions.send_receipt", used.offer_id, used.customer_id, 0)

    assert huey.pending() == []


@pytest.mark.parametrize(
    ("given", "name"), [("müller@example.com", "Sümmer\r\nBcc: x@y"), ("o'brien+x@bücher.example", "=?utf-8?q?x?=")]
)
def test_any_address_and_any_name_can_be_mailed(
    relay: Relay, offer: MakeOffer, customer: MakeCustomer, given: str, name: str
) -> None:
    row, person = offer(name=name), customer(given)
    group_commit.redeem(RedemptionRequest(channel="staff", code="SUMMER25", email=person.email))

    task_queue.run("redemptions.send_receipt", row.id, person.id, 0)

    (kept,) = relay.kept
    assert kept.raw.startswith(b"From: ")
    assert kept.raw.count(b"\n") == kept.raw.count(b"\r\n")
    assert kept.message["Bcc"] is None
    assert kept.message["Subject"] == " ".join(f"Your receipt: {name}".split())
    assert kept.to.partition("@")[0] == given.partition("@")[0]


def test_a_real_worker_mails_it(
    app: Any, client: FlaskClient, relay: Relay, used: redemption_queries.RedemptionRecord
) -> None:
    post(client)

    with live_server.worker(app.config["SETTINGS"]):
        relay.wait_for(1)

    assert relay.recipients == {"ada@example.com": 1}


def test_a_receipt_that_nobody_could_be_told_to_mail_can_be_asked_for_again(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, ada = offer(), customer()
    monkeypatch.setattr(task_queue, "enqueue", lambda *_, **__: False)
    receipts.enqueue_receipt(row.id, ada.id)
    assert receipts.acquire_receipt_quota(row.id, ada.id)
