"""Sending a launched campaign through a real relay: claims, windows, failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, text

from tests.support.campaigns import (
    LaunchCampaign,
    act_after,
    create_customers,
    delivery_counts,
    expire_leases,
    in_context,
    list_issues,
    make_retries_due,
    refresh,
)
from tests.support.smtp_relay import Relay
from webapp.campaigns import timing
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.content import mail_merge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign, decode_gaps
from webapp.campaigns.sending import batches, sender, test_emails
from webapp.campaigns.sending import windows as send_windows
from webapp.campaigns.sending.progress import SendProgress
from webapp.core import task_queue
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail import addresses, smtp
from webapp.offers.models import Offer

pytestmark = pytest.mark.usefixtures("no_retry_delay")


def test_every_recipient_gets_one_email(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(120)
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert set(relay.recipients.values()) == {1}
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}
    assert refresh(campaign).status == "done"


def test_a_sender_run_uses_one_connection(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(120)
    launch_campaign()
    sender.send_pending_emails()
    assert relay.connections == 1


def test_sent_emails_leave_only_batch_rows(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(1001)
    launch_campaign()
    sender.send_pending_emails()
    tables = ("batch", "mail_issue", "batch_cursor")
    assert [db.session.execute(text(f"select count(*) from {table}")).scalar() for table in tables] == [3, 0, 0]


def test_customers_created_after_the_launch_get_no_email(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    campaign = launch_campaign()
    create_customers(2, first=10)
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}


def test_preparation_continues_after_a_crash(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "AUDIENCE_CHUNK_SIZE", 40)
    monkeypatch.setattr(preparation, "BATCH_SIZE", 20)
    ids = create_customers(100)
    campaign = launch_campaign(prepare=False)
    preparation._prepare_chunk(campaign.id)
    preparation.prepare_campaign(campaign.id)
    rows = db.session.execute(text("select seq, gaps from batch order by seq")).all()
    assert [row.seq for row in rows] == [0, 1, 2, 3, 4]
    assert [i for row in rows for i in decode_gaps(row.gaps)] == ids
    assert refresh(campaign).total == 100


def test_a_refused_recipient_does_not_stop_the_others(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(5)
    relay.behaviour.rcpt["c2@example.com"] = "550 5.1.1 no such user"
    campaign = launch_campaign()
    sender.send_pending_emails()
    (issue,) = list_issues(campaign)
    assert (issue.email, issue.state, issue.smtp_code, issue.text) == (
        "c2@example.com",
        "failed",
        550,
        "5.1.1 no such user",
    )
    assert delivery_counts(campaign) == {"total": 5, "sent": 4, "failed": 1}
    assert refresh(campaign).status == "done"


def test_a_deferred_recipient_is_retried(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "450 4.2.1 later"
    relay.behaviour.uses["c1@example.com"] = 1
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "deferred": 1}
    assert refresh(campaign).status == "sending"
    make_retries_due()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert relay.recipients["c1@example.com"] == 1
    assert list_issues(campaign)[0].state == "sent_later"


def test_retry_delays_grow(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launch_campaign()
    delays = []
    for _ in range(3):
        sender.send_pending_emails()
        (issue,) = list_issues(campaign)
        assert issue.next_at is not None
        delays.append((issue.next_at - datetime.now(UTC)).total_seconds())
        make_retries_due()
    assert 40 < delays[0] < 70 < 250 < delays[1] < 340 < 1500 < delays[2] < 2000


def test_a_deferred_email_fails_after_two_days(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launch_campaign()
    sender.send_pending_emails()
    db.session.execute(text("update mail_issue set at = now() - interval '49 hours', next_at = now()"))
    db.session.commit()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 1, "failed": 1}
    assert refresh(campaign).status == "done"


def test_a_deferred_customer_who_unsubscribes_is_skipped(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    (customer_id,) = create_customers(1)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launch_campaign()
    sender.send_pending_emails()
    suppression_actions.unsubscribe_customer(customer_id, 0)
    relay.behaviour.rcpt.clear()
    make_retries_due()
    sender.send_pending_emails()
    assert (delivery_counts(campaign), relay.messages) == ({"total": 1, "skipped": 1}, [])


def test_a_lost_connection_is_reopened_for_the_same_recipient(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "drop"
    relay.behaviour.uses["c1@example.com"] = 2
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert relay.connections == 3


def test_a_recipient_who_breaks_every_connection_is_deferred(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "drop"
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "deferred": 1}


def test_a_relay_that_goes_down_within_a_batch_defers_no_recipient(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "drop"
    relay.behaviour.uses["c1@example.com"] = 1
    # The first connection is accepted and the next four are not.
    relay.behaviour.stages["greeting"] = "421 4.3.2 going down"
    relay.behaviour.uses["greeting"] = 0
    campaign = launch_campaign()
    act_after(relay, 1, monkeypatch, lambda: relay.behaviour.uses.update(greeting=4))
    sender.send_pending_emails()
    assert relay.connections == 6
    assert (delivery_counts(campaign), list_issues(campaign)) == ({"total": 3, "sent": 3}, [])


def test_an_email_without_a_reply_is_uncertain_and_not_resent(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.body["c1@example.com"] = "drop"
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "uncertain": 1}
    assert set(relay.recipients.values()) == {1}
    assert refresh(campaign).status == "done"


def test_staff_can_resend_uncertain_emails(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(2)
    relay.behaviour.body["c1@example.com"] = "drop"
    relay.behaviour.uses["c1@example.com"] = 1
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_actions.resend_deliveries(campaign.id, DeliverySelection("uncertain"), "tests").resent == 1
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 2, "sent": 2}
    assert refresh(campaign).status == "done"
    first, second = (email.message["Message-ID"] for email in relay.messages if email.to == "c1@example.com")
    assert first == second


@pytest.mark.parametrize("fault", ["mail", "auth"])
def test_a_relay_that_refuses_the_sender_pauses_the_campaign(
    app: Flask, launch_campaign: LaunchCampaign, relay: Relay, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    if fault == "auth":
        monkeypatch.setattr(app.extensions["mail"], "username", "shop")
        monkeypatch.setattr(app.extensions["mail"], "password", "wrong")
    setattr(relay.behaviour, fault, "535 5.7.8 not you")
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert refresh(campaign).status == "paused"
    assert campaign.pause_reason == "the mail relay rejects email from this server: 535 5.7.8 not you"
    assert delivery_counts(campaign) == {"total": 3}


def test_five_consecutive_refused_bodies_pause_the_campaign(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(20)
    relay.behaviour.body["*"] = "554 5.7.1 spam"
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert refresh(campaign).status == "paused"
    assert campaign.pause_reason == "the mail relay rejects the content of this email: 554 5.7.1 spam"
    assert delivery_counts(campaign) == {"total": 20, "failed": 5}
    assert [command.split()[0].upper() for command in relay.commands].count("DATA") == 5


def test_an_unreachable_relay_loses_nothing_and_is_reported(
    launch_campaign: LaunchCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SENDER_TIME_LIMIT", 0.1)
    create_customers(3)
    campaign = launch_campaign()
    assert sender.send_pending_emails() is True
    assert refresh(campaign).status == "sending"
    assert campaign.delivery_warning is not None
    assert "Connection refused" in campaign.delivery_warning
    assert delivery_counts(campaign) == {"total": 3}


def test_sending_continues_when_the_relay_is_reachable_again(
    launch_campaign: LaunchCampaign, relay: Relay, with_settings: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    campaign = launch_campaign()
    with_settings(mail_port=1)
    with monkeypatch.context() as patch:
        patch.setattr(timing, "SENDER_TIME_LIMIT", 0.1)
        sender.send_pending_emails()
    with_settings(mail_port=relay.port)
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert refresh(campaign).delivery_warning is None


def test_unsubscribed_erased_and_redeemed_customers_are_skipped(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    ids = create_customers(5)
    campaign = launch_campaign()
    suppression_actions.unsubscribe_customer(ids[1], campaign.id)
    customer_actions.erase_customer(ids[2], by="tests")
    db.session.execute(
        text("insert into redemption (customer_id, offer_id, channel) values (:id, :offer, 'form')"),
        {"id": ids[3], "offer": campaign.offer_id},
    )
    db.session.commit()
    sender.send_pending_emails()
    assert set(relay.recipients) == {"c0@example.com", "c4@example.com"}
    assert delivery_counts(campaign) == {"total": 5, "sent": 2, "skipped": 3}
    assert [issue.text for issue in list_issues(campaign)] == [
        "unsubscribed",
        "no longer a customer",
        "has already redeemed",
    ]


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_pausing_or_cancelling_stops_before_the_next_window(
    app: Flask, launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch, action: str, status: str
) -> None:
    create_customers(200)
    campaign = launch_campaign()
    campaign_id = campaign.id
    change = getattr(transitions, f"{action}_campaign")
    act_after(relay, 70, monkeypatch, in_context(app, lambda: change(campaign_id, "tests")))
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 200, "sent": 100}
    assert refresh(campaign).status == status


def test_a_resumed_campaign_continues_at_its_position(
    app: Flask, launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(200)
    campaign = launch_campaign()
    campaign_id = campaign.id
    act_after(relay, 70, monkeypatch, in_context(app, lambda: transitions.pause_campaign(campaign_id, "tests")))
    sender.send_pending_emails()
    transitions.resume_campaign(campaign_id, "tests")
    sender.send_pending_emails()
    assert (len(relay.messages), set(relay.recipients.values())) == (200, {1})
    assert refresh(campaign).status == "done"


def test_a_stopping_worker_releases_its_batch(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launch_campaign()
    act_after(relay, 70, monkeypatch, task_queue.stop_requested.set)
    try:
        assert sender.send_pending_emails() is False
    finally:
        task_queue.stop_requested.clear()
    assert delivery_counts(campaign) == {"total": 120, "sent": 70}
    sender.send_pending_emails()
    assert (len(relay.messages), set(relay.recipients.values())) == (120, {1})
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}


class SenderKilled(BaseException):
    """A simulated kill, which no handler of the application catches."""


def kill_sender_after(n: int, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the sender and kill it right after the relay has accepted the n-th email."""
    deliver = smtp.RelayConnection.deliver
    sent = 0

    def deliver_or_die(self: smtp.RelayConnection, *args: Any) -> object:
        nonlocal sent
        outcome = deliver(self, *args)
        sent += 1
        if sent == n:
            raise SenderKilled
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(smtp.RelayConnection, "deliver", deliver_or_die)
        with pytest.raises(SenderKilled):
            sender.send_pending_emails()
    db.session.rollback()


def test_another_worker_continues_after_a_kill(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launch_campaign()
    kill_sender_after(70, relay, monkeypatch)
    sender.send_pending_emails()
    assert len(relay.messages) == 70
    expire_leases()
    sender.send_pending_emails()
    sent_twice = [address for address, n in relay.recipients.items() if n > 1]
    assert (len(relay.recipients), sent_twice) == (120, ["c69@example.com"])
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}
    assert refresh(campaign).status == "done"


def test_the_second_copy_after_a_kill_has_the_same_message_id(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    launch_campaign()
    kill_sender_after(2, relay, monkeypatch)
    expire_leases()
    sender.send_pending_emails()
    first, second = (email.message["Message-ID"] for email in relay.messages if email.to == "c1@example.com")
    assert first == second


def test_under_hold_the_email_in_flight_stays_uncertain(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launch_campaign(policy="hold")
    kill_sender_after(70, relay, monkeypatch)
    expire_leases()
    sender.send_pending_emails()
    assert set(relay.recipients.values()) == {1}
    assert delivery_counts(campaign) == {"total": 120, "sent": 119, "uncertain": 1}
    (issue,) = list_issues(campaign)
    assert (issue.email, issue.text) == ("c69@example.com", "sending was interrupted")


def test_an_email_whose_retry_was_killed_can_be_resent_by_staff(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(1)
    relay.behaviour.rcpt["c0@example.com"] = "451 later"
    campaign = launch_campaign(policy="hold")
    sender.send_pending_emails()
    del relay.behaviour.rcpt["c0@example.com"]
    make_retries_due()
    kill_sender_after(1, relay, monkeypatch)
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.resend_deliveries(campaign.id, DeliverySelection("uncertain"), "tests")
    make_retries_due()
    assert delivery_actions.resend_deliveries(campaign.id, DeliverySelection("uncertain"), "tests").resent == 1
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 1, "sent": 1}


@pytest.mark.parametrize("kind", ["campaign", "test"])
def test_no_transaction_is_open_while_connecting_to_the_relay(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    create_customers(1)
    campaign = launch_campaign()
    offer = db.session.get_one(Offer, campaign.offer_id)
    connect = smtp.RelayConnection.open
    in_transaction = []

    def record_and_connect(self: smtp.RelayConnection) -> None:
        in_transaction.append(db.session().in_transaction())
        connect(self)

    monkeypatch.setattr(smtp.RelayConnection, "open", record_and_connect)
    if kind == "campaign":
        sender.send_pending_emails()
    else:
        test_emails.send_test_email(EmailContent(), offer, "mia@example.com", "Mia")
    assert len(relay.messages) == 1
    assert set(in_transaction) == {False}


def test_each_kill_sends_at_most_one_extra_copy_and_misses_no_recipient(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launch_campaign()
    for n in (3, 1, 50, 20):
        kill_sender_after(n, relay, monkeypatch)
        expire_leases()
    sender.send_pending_emails()
    assert len(relay.recipients) == 120
    assert len(relay.messages) - 120 <= 4
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}


def test_a_window_without_a_cursor_becomes_uncertain(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launch_campaign()
    kill_sender_after(70, relay, monkeypatch)
    expire_leases()
    db.session.execute(text("truncate batch_cursor"))
    db.session.commit()
    sender.send_pending_emails()
    assert set(relay.recipients.values()) == {1}
    assert delivery_counts(campaign) == {"total": 120, "sent": 70, "uncertain": 50}
    assert {issue.text for issue in list_issues(campaign)} == {"the database crashed"}


def test_a_former_owner_cannot_write(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(120)
    launch_campaign()
    former = batches.claim_batch("former")
    assert former is not None
    assert send_windows.open_send_window(former) is not None
    expire_leases()
    assert batches.claim_batch("next") is not None
    with SendProgress() as progress:
        progress.start_move(former, 5)
        assert not progress.finish_move()
    assert not batches.renew_batch_lease(former)
    assert send_windows.open_send_window(former) is None
    batches.release_batch(former)
    batches.finish_batch(former)
    assert db.session.execute(text("select owner, status, sent from batch")).one() == ("next", "sending", 0)


def test_a_worker_that_lost_its_batch_stops_before_the_next_email(
    app: Flask, launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    launch_campaign()

    def take_over() -> None:
        expire_leases()
        batches.claim_batch("next")

    act_after(relay, 10, monkeypatch, in_context(app, take_over))
    sender.send_pending_emails()
    assert len(relay.messages) == 10


def test_a_batch_is_claimed_once(launch_campaign: LaunchCampaign) -> None:
    create_customers(3)
    launch_campaign()
    assert batches.claim_batch("one") is not None
    assert batches.claim_batch("two") is None


def test_emails_sent_by_a_killed_worker_count_after_a_cancellation(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launch_campaign()
    kill_sender_after(70, relay, monkeypatch)
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    task_queue.run("campaigns.sweep")
    assert delivery_counts(campaign) == {"total": 120, "sent": 69, "uncertain": 1}


def test_an_unbuildable_message_does_not_stop_the_others(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    campaign = launch_campaign()
    original_recipient_address = addresses.recipient_address

    def refuse_second(customer: Customer) -> str:
        if customer.email.startswith("c1@"):
            raise ValueError("no")
        return original_recipient_address(customer)

    monkeypatch.setattr(mail_merge, "recipient_address", refuse_second)
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "failed": 1}


def test_concurrent_senders_are_limited_to_the_connections(
    app: Flask,
    launch_campaign: LaunchCampaign,
    relay: Relay,
    with_settings: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create_customers(3)
    launch_campaign()
    app.extensions.pop("sender_slots", None)
    with_settings(mail_connections=1)
    second: list[bool] = []
    act_after(relay, 1, monkeypatch, in_context(app, lambda: second.append(sender.send_pending_emails())))
    try:
        sender.send_pending_emails()
    finally:
        app.extensions.pop("sender_slots", None)
    assert second == [False]
    assert set(relay.recipients.values()) == {1}


def test_two_campaigns_are_sent_in_one_run(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    campaigns: Sequence[Campaign] = [launch_campaign("ONE1"), launch_campaign("TWO2")]
    sender.send_pending_emails()
    assert [delivery_counts(campaign)["sent"] for campaign in campaigns] == [3, 3]
    assert set(relay.recipients.values()) == {2}


def test_a_customer_whose_email_failed_gets_that_of_another_campaign(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "550 5.7.1 no"
    relay.behaviour.uses["c1@example.com"] = 1
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    sender.send_pending_emails()
    assert delivery_counts(first) == {"total": 3, "sent": 2, "failed": 1}
    assert delivery_counts(second) == {"total": 3, "sent": 3}


def test_deliveries_of_a_customer_follow_the_frozen_recipients(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    ids = create_customers(2)
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    campaign = launch_campaign()
    sender.send_pending_emails()
    (other,) = create_customers(1, first=10)
    db.session.rollback()
    assert [
        (delivery.campaign.id, delivery.state) for delivery in delivery_queries.list_customer_deliveries(ids[0])
    ] == [(campaign.id, "sent")]
    assert [delivery.state for delivery in delivery_queries.list_customer_deliveries(ids[1])] == ["failed"]
    assert delivery_queries.list_customer_deliveries(other) == []


def test_deliveries_of_a_customer_are_found_by_an_index(launch_campaign: LaunchCampaign) -> None:
    (recipient,) = create_customers(1)
    campaign = launch_campaign()
    db.session.execute(
        text(
            "insert into batch (campaign_id, seq, first_id, last_id, gaps) "
            "select :id, g, g * 10, g * 10 + 9, array[g * 10, 9] from generate_series(1, 5000) g"
        ),
        {"id": campaign.id},
    )
    db.session.execute(text("analyze batch"))
    db.session.commit()
    executed = []

    def record(connection: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        executed.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", record)
    try:
        found = [delivery_queries.list_customer_deliveries(customer) for customer in (recipient, 499, 495, 60_000)]
    finally:
        event.remove(db.engine, "before_cursor_execute", record)
    statement, parameters = next(each for each in executed if "batch" in each[0])
    plan = "\n".join(row[0] for row in db.session.connection().exec_driver_sql(f"explain {statement}", parameters))
    assert [len(campaigns) for campaigns in found] == [1, 1, 0, 0]
    assert "ix_batch_campaign_id_last_id" in plan


def test_the_return_path_identifies_the_recipient(
    launch_campaign: LaunchCampaign, relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    ids = create_customers(2)
    with_settings(mail_bounce_address="bounces@shop.example")
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert {email.sender.partition("+")[0] for email in relay.messages} == {"bounces"}
    assert [campaign_tokens.parse_return_path(email.sender) for email in relay.messages] == [
        (campaign.id, n) for n in ids
    ]
    # The unsubscribe address is the same signed return path.
    assert all(
        f"<mailto:{email.sender}?subject=unsubscribe>" in email.message["List-Unsubscribe"] for email in relay.messages
    )


def test_a_test_email_has_no_signed_return_path(
    app: Flask, make_offer: Callable[..., Offer], relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_bounce_address="bounces@shop.example")
    content = EmailContent("For {{ customer.name }}")
    test_emails.send_test_email(content, make_offer(), "staff@example.com", "Staff")
    assert [email.sender for email in relay.messages] == ["offers@example.com"]
    assert [email.message["Subject"] for email in relay.messages] == ["For Staff"]


@pytest.mark.parametrize(
    ("reply", "key", "status", "message"),
    [
        (
            "450 later", "relay_down", 503,
            "The mail relay 127.0.0.1 did not accept the email: 450 later. Try again in a moment.",
        ),
        ("550 no", "relay_refuses", 409, "The mail relay rejected the email: 550 no. Check the mail settings."),
    ],
)  # fmt: skip
def test_a_refused_test_email_is_reported_with_the_reply(
    make_offer: Callable[..., Offer], relay: Relay, reply: str, key: str, status: int, message: str
) -> None:
    relay.behaviour.rcpt["*"] = reply
    with pytest.raises(DomainError) as raised:
        test_emails.send_test_email(EmailContent(), make_offer(), "staff@example.com", "Staff")
    assert (raised.value.key, raised.value.status, raised.value.message) == (key, status, message)


def kill_worker_during_first_email() -> None:
    """Leave the claimed batch as a worker that was killed while it sent the first email."""
    claim = batches.claim_batch("killed")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    expire_leases()


def test_a_refused_second_copy_stays_uncertain(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    campaign = launch_campaign()
    kill_worker_during_first_email()
    relay.behaviour.rcpt["c0@example.com"] = "550 no"
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "uncertain": 1}
    row = db.session.execute(text("select text, smtp_code from mail_issue")).one()
    assert row == ("an earlier copy may have arrived; the second copy was rejected: no", 550)


def test_a_second_copy_that_is_deferred_and_then_refused_stays_uncertain(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(1)
    campaign = launch_campaign()
    kill_worker_during_first_email()
    relay.behaviour.rcpt["c0@example.com"] = "450 later"
    sender.send_pending_emails()
    db.session.execute(text("update mail_issue set next_at = now()"))
    db.session.commit()

    relay.behaviour.rcpt["c0@example.com"] = "550 no"
    sender.send_pending_emails()

    assert delivery_counts(campaign) == {"total": 1, "uncertain": 1}
