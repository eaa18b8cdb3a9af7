"""From a launch to the mailboxes: claims, windows, what goes wrong on the way. The relay is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, text

from tests.support.campaigns import (
    Launch,
    act_after,
    create_customers,
    delivery_counts,
    expire_leases,
    in_context,
    make_retries_due,
    refresh,
)
from tests.support.smtp_relay import Relay
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import timing
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.content import mail_merge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign, decode_gaps
from webapp.campaigns.sending import batches, sender
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


def test_everybody_gets_one_mail(launched: Launch, relay: Relay) -> None:
    create_customers(120)
    campaign = launched()
    sender.send_pending_emails()
    assert set(relay.recipients.values()) == {1}
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}
    assert refresh(campaign).status == "done"


def test_all_mails_of_a_pump_go_over_one_connection(launched: Launch, relay: Relay) -> None:
    create_customers(120)
    launched()
    sender.send_pending_emails()
    assert relay.connections == 1


def test_a_million_mails_would_leave_only_batch_rows(launched: Launch, relay: Relay) -> None:
    create_customers(1001)
    launched()
    sender.send_pending_emails()
    tables = ("batch", "mail_issue", "batch_cursor")
    assert [db.session.execute(text(f"select count(*) from {table}")).scalar() for table in tables] == [3, 0, 0]


def test_the_frozen_recipients_do_not_drift(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    campaign = launched()
    create_customers(2, first=10)
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}


def test_preparing_goes_on_where_it_was_killed(launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "AUDIENCE_BLOCK_SIZE", 40)
    monkeypatch.setattr(preparation, "BATCH_SIZE", 20)
    ids = create_customers(100)
    campaign = launched(prepare=False)
    preparation._prepare_block(campaign.id)
    preparation.prepare_campaign(campaign.id)
    rows = db.session.execute(text("select seq, gaps from batch order by seq")).all()
    assert [row.seq for row in rows] == [0, 1, 2, 3, 4]
    assert [i for row in rows for i in decode_gaps(row.gaps)] == ids
    assert refresh(campaign).total == 100


def test_a_refused_recipient_is_recorded_and_the_rest_goes_on(launched: Launch, relay: Relay) -> None:
    create_customers(5)
    relay.behaviour.rcpt["c2@example.com"] = "550 5.1.1 no such user"
    campaign = launched()
    sender.send_pending_emails()
    (issue,) = campaign_queries.list_issues(campaign.id)
    assert (issue.email, issue.state, issue.smtp_code, issue.text) == (
        "c2@example.com",
        "failed",
        550,
        "5.1.1 no such user",
    )
    assert delivery_counts(campaign) == {"total": 5, "sent": 4, "failed": 1}
    assert refresh(campaign).status == "done"


def test_a_put_off_recipient_is_tried_again(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "450 4.2.1 later"
    relay.behaviour.times["c1@example.com"] = 1
    campaign = launched()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "deferred": 1}
    assert refresh(campaign).status == "sending"
    make_retries_due()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert relay.recipients["c1@example.com"] == 1
    assert campaign_queries.list_issues(campaign.id)[0].state == "sent_later"


def test_the_second_try_waits_longer_than_the_first(launched: Launch, relay: Relay) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launched()
    waits = []
    for _ in range(3):
        sender.send_pending_emails()
        (issue,) = campaign_queries.list_issues(campaign.id)
        assert issue.next_at is not None
        waits.append((issue.next_at - datetime.now(UTC)).total_seconds())
        make_retries_due()
    assert 40 < waits[0] < 70 < 250 < waits[1] < 340 < 1500 < waits[2] < 2000


def test_after_two_days_a_put_off_mail_is_given_up(launched: Launch, relay: Relay) -> None:
    create_customers(1)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launched()
    sender.send_pending_emails()
    db.session.execute(text("update mail_issue set at = now() - interval '49 hours', next_at = now()"))
    db.session.commit()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 1, "failed": 1}
    assert refresh(campaign).status == "done"


def test_a_put_off_customer_who_unsubscribes_meanwhile_is_left_alone(launched: Launch, relay: Relay) -> None:
    (customer_id,) = create_customers(1)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launched()
    sender.send_pending_emails()
    suppression_actions.unsubscribe_customer(customer_id, 0)
    relay.behaviour.rcpt.clear()
    make_retries_due()
    sender.send_pending_emails()
    assert (delivery_counts(campaign), relay.kept) == ({"total": 1, "skipped": 1}, [])


def test_a_connection_that_breaks_is_made_anew_for_the_same_recipient(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "drop"
    relay.behaviour.times["c1@example.com"] = 2
    campaign = launched()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert relay.connections == 3


def test_a_recipient_who_breaks_every_connection_is_put_off(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.rcpt["c1@example.com"] = "drop"
    campaign = launched()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "deferred": 1}


def test_a_mail_without_an_answer_is_uncertain_and_not_sent_twice(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    relay.behaviour.body["c1@example.com"] = "drop"
    campaign = launched()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "uncertain": 1}
    assert set(relay.recipients.values()) == {1}
    assert refresh(campaign).status == "done"


def test_staff_can_send_uncertain_mails_again(launched: Launch, relay: Relay) -> None:
    create_customers(2)
    relay.behaviour.body["c1@example.com"] = "drop"
    relay.behaviour.times["c1@example.com"] = 1
    campaign = launched()
    sender.send_pending_emails()
    assert delivery_actions.retry_deliveries(campaign.id, DeliverySelection("uncertain"), "tests").retried == 1
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 2, "sent": 2}
    assert refresh(campaign).status == "done"
    first, second = (kept.message["Message-ID"] for kept in relay.kept if kept.to == "c1@example.com")
    assert first == second


@pytest.mark.parametrize("fault", ["mail", "auth"])
def test_a_relay_that_refuses_us_pauses_the_campaign(
    app: Flask, launched: Launch, relay: Relay, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    if fault == "auth":
        monkeypatch.setattr(app.extensions["mail"], "username", "shop")
        monkeypatch.setattr(app.extensions["mail"], "password", "wrong")
    setattr(relay.behaviour, fault, "535 5.7.8 not you")
    campaign = launched()
    sender.send_pending_emails()
    assert refresh(campaign).status == "paused"
    assert campaign.pause_reason == "the mail relay rejects email from this server: 535 5.7.8 not you"
    assert delivery_counts(campaign) == {"total": 3}


def test_five_refused_bodies_in_a_row_pause_the_campaign(launched: Launch, relay: Relay) -> None:
    create_customers(20)
    relay.behaviour.body["*"] = "554 5.7.1 spam"
    campaign = launched()
    sender.send_pending_emails()
    assert refresh(campaign).status == "paused"
    assert campaign.pause_reason == "the mail relay rejects the content of this email: 554 5.7.1 spam"
    assert delivery_counts(campaign) == {"total": 20, "failed": 5}


def test_while_the_relay_is_away_nothing_is_lost_and_staff_can_see_why(
    launched: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SENDER_TIME_LIMIT", 0.1)
    create_customers(3)
    campaign = launched()
    assert sender.send_pending_emails() is True
    assert refresh(campaign).status == "sending"
    assert campaign.trouble is not None
    assert "Connection refused" in campaign.trouble
    assert delivery_counts(campaign) == {"total": 3}


def test_when_the_relay_is_back_the_mails_go_out(
    launched: Launch, relay: Relay, with_settings: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    campaign = launched()
    with_settings(mail_port=1)
    with monkeypatch.context() as patch:
        patch.setattr(timing, "SENDER_TIME_LIMIT", 0.1)
        sender.send_pending_emails()
    with_settings(mail_port=relay.port)
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert refresh(campaign).trouble is None


def test_unsubscribed_erased_and_redeemed_customers_are_left_out(launched: Launch, relay: Relay) -> None:
    ids = create_customers(5)
    campaign = launched()
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
    assert [issue.text for issue in campaign_queries.list_issues(campaign.id)] == [
        "unsubscribed",
        "no longer a customer",
        "has already redeemed",
    ]


@pytest.mark.parametrize(("deed", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_pause_and_cancel_are_honoured_before_the_next_window(
    app: Flask, launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch, deed: str, status: str
) -> None:
    create_customers(200)
    campaign = launched()
    campaign_id = campaign.id
    change = getattr(transitions, f"{deed}_campaign")
    act_after(relay, 70, monkeypatch, in_context(app, lambda: change(campaign_id, "tests")))
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 200, "sent": 100}
    assert refresh(campaign).status == status


def test_a_resumed_campaign_goes_on_where_it_stood(
    app: Flask, launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(200)
    campaign = launched()
    campaign_id = campaign.id
    act_after(relay, 70, monkeypatch, in_context(app, lambda: transitions.pause_campaign(campaign_id, "tests")))
    sender.send_pending_emails()
    transitions.resume_campaign(campaign_id, "tests")
    sender.send_pending_emails()
    assert (len(relay.kept), set(relay.recipients.values())) == (200, {1})
    assert refresh(campaign).status == "done"


def test_a_worker_that_is_asked_to_end_gives_the_batch_back_in_order(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launched()
    act_after(relay, 70, monkeypatch, task_queue.stop_requested.set)
    try:
        sender.send_pending_emails()
    finally:
        task_queue.stop_requested.clear()
    assert delivery_counts(campaign) == {"total": 120, "sent": 70}
    sender.send_pending_emails()
    assert (len(relay.kept), set(relay.recipients.values())) == (120, {1})
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}


class Killed(BaseException):
    """What no code of ours catches."""


def killed_after(n: int, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pump that ends without a word right after the relay has taken its n-th mail."""
    deliver = smtp.RelayConnection.deliver
    sent = 0

    def once(self: smtp.RelayConnection, *args: Any) -> object:
        nonlocal sent
        outcome = deliver(self, *args)
        sent += 1
        if sent == n:
            raise Killed
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(smtp.RelayConnection, "deliver", once)
        with pytest.raises(Killed):
            sender.send_pending_emails()
    db.session.rollback()


def test_another_worker_goes_on_where_one_was_killed(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launched()
    killed_after(70, relay, monkeypatch)
    sender.send_pending_emails()
    assert len(relay.kept) == 70
    expire_leases()
    sender.send_pending_emails()
    twice = [address for address, n in relay.recipients.items() if n > 1]
    assert (len(relay.recipients), twice) == (120, ["c69@example.com"])
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}
    assert refresh(campaign).status == "done"


def test_the_second_copy_after_a_kill_has_the_same_message_id(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    launched()
    killed_after(2, relay, monkeypatch)
    expire_leases()
    sender.send_pending_emails()
    first, second = (kept.message["Message-ID"] for kept in relay.kept if kept.to == "c1@example.com")
    assert first == second


def test_a_campaign_that_holds_leaves_the_mail_in_flight_to_staff(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launched(policy="hold")
    killed_after(70, relay, monkeypatch)
    expire_leases()
    sender.send_pending_emails()
    assert set(relay.recipients.values()) == {1}
    assert delivery_counts(campaign) == {"total": 120, "sent": 119, "uncertain": 1}
    assert [issue.email for issue in campaign_queries.list_issues(campaign.id)] == ["c69@example.com"]


def test_a_held_mail_whose_retry_was_killed_can_be_sent_again_by_staff(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(1)
    relay.behaviour.rcpt["c0@example.com"] = "451 later"
    campaign = launched(policy="hold")
    sender.send_pending_emails()
    del relay.behaviour.rcpt["c0@example.com"]
    make_retries_due()
    killed_after(1, relay, monkeypatch)
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.retry_deliveries(campaign.id, DeliverySelection("uncertain"), "tests")
    make_retries_due()
    assert delivery_actions.retry_deliveries(campaign.id, DeliverySelection("uncertain"), "tests").retried == 1
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 1, "sent": 1}


@pytest.mark.parametrize("kind", ["pump", "test"])
def test_no_transaction_is_open_while_the_relay_is_reached(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    create_customers(1)
    campaign = launched()
    offer = db.session.get_one(Offer, campaign.offer_id)
    reach = smtp.RelayConnection.open
    seen = []

    def watched(self: smtp.RelayConnection) -> None:
        seen.append(db.session().in_transaction())
        reach(self)

    monkeypatch.setattr(smtp.RelayConnection, "open", watched)
    if kind == "pump":
        sender.send_pending_emails()
    else:
        sender.send_test_email(EmailContent(), offer, "mia@example.com", "Mia")
    assert len(relay.kept) == 1
    assert set(seen) == {False}


def test_killing_one_after_the_other_sends_one_more_copy_each_and_misses_nobody(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launched()
    for n in (3, 1, 50, 20):
        killed_after(n, relay, monkeypatch)
        expire_leases()
    sender.send_pending_emails()
    assert len(relay.recipients) == 120
    assert len(relay.kept) - 120 <= 4
    assert delivery_counts(campaign) == {"total": 120, "sent": 120}


def test_a_window_without_a_cursor_is_held(launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    create_customers(120)
    campaign = launched()
    killed_after(70, relay, monkeypatch)
    expire_leases()
    db.session.execute(text("truncate batch_cursor"))
    db.session.commit()
    sender.send_pending_emails()
    assert set(relay.recipients.values()) == {1}
    assert delivery_counts(campaign) == {"total": 120, "sent": 70, "uncertain": 50}


def test_a_former_owner_writes_nothing_any_more(launched: Launch, relay: Relay) -> None:
    create_customers(120)
    launched()
    former = batches.claim_batch("former")
    assert former is not None
    assert batches.open_send_window(former) is not None
    expire_leases()
    assert batches.claim_batch("next") is not None
    with SendProgress() as place:
        place.start_move(former, 5)
        assert not place.finish_move()
    assert not batches.renew_batch_lease(former)
    assert batches.open_send_window(former) is None
    batches.release_batch(former)
    batches.finish_batch(former)
    assert db.session.execute(text("select owner, status, sent from batch")).one() == ("next", "sending", 0)


def test_a_worker_that_lost_its_batch_stops_before_the_next_mail(
    app: Flask, launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    launched()

    def taken_over() -> None:
        expire_leases()
        batches.claim_batch("next")

    act_after(relay, 10, monkeypatch, in_context(app, taken_over))
    sender.send_pending_emails()
    assert len(relay.kept) == 10


def test_a_batch_is_claimed_by_one(launched: Launch) -> None:
    create_customers(3)
    launched()
    assert batches.claim_batch("one") is not None
    assert batches.claim_batch("two") is None


def test_what_a_dead_worker_had_sent_counts_after_a_cancellation(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(120)
    campaign = launched()
    killed_after(70, relay, monkeypatch)
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    task_queue.run("campaigns.sweep")
    assert delivery_counts(campaign) == {"total": 120, "sent": 69, "uncertain": 1}


def test_a_letter_that_can_not_be_written_stops_nobody_else(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    campaign = launched()
    address = addresses.recipient_address

    def refuses(customer: Customer) -> str:
        if customer.email.startswith("c1@"):
            raise ValueError("no")
        return address(customer)

    monkeypatch.setattr(mail_merge, "recipient_address", refuses)
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "failed": 1}


def test_no_more_pumps_at_once_than_connections(
    app: Flask, launched: Launch, relay: Relay, with_settings: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    launched()
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


def test_two_campaigns_share_the_way_out(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    campaigns: Sequence[Campaign] = [launched("ONE1"), launched("TWO2")]
    sender.send_pending_emails()
    assert [delivery_counts(campaign)["sent"] for campaign in campaigns] == [3, 3]
    assert set(relay.recipients.values()) == {2}


def test_who_got_it_is_answered_from_the_frozen_ids(launched: Launch, relay: Relay) -> None:
    ids = create_customers(2)
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    campaign = launched()
    sender.send_pending_emails()
    (other,) = create_customers(1, first=10)
    db.session.rollback()
    assert [(mailed.campaign.id, mailed.state) for mailed in delivery_queries.list_customer_deliveries(ids[0])] == [
        (campaign.id, "sent")
    ]
    assert [mailed.state for mailed in delivery_queries.list_customer_deliveries(ids[1])] == ["failed"]
    assert delivery_queries.list_customer_deliveries(other) == []


def test_who_got_it_is_found_by_an_index_however_many_batches_there_are(launched: Launch) -> None:
    (somebody,) = create_customers(1)
    campaign = launched()
    db.session.execute(
        text(
            "insert into batch (campaign_id, seq, first_id, last_id, gaps) "
            "select :id, g, g * 10, g * 10 + 9, array[g * 10, 9] from generate_series(1, 5000) g"
        ),
        {"id": campaign.id},
    )
    db.session.execute(text("analyze batch"))
    db.session.commit()
    asked = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        asked.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        found = [delivery_queries.list_customer_deliveries(customer) for customer in (somebody, 499, 495, 60_000)]
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    statement, parameters = next(each for each in asked if "batch" in each[0])
    plan = "\n".join(row[0] for row in db.session.connection().exec_driver_sql(f"explain {statement}", parameters))
    assert [len(campaigns) for campaigns in found] == [1, 1, 0, 0]
    assert "ix_batch_campaign_id_last_id" in plan


def test_a_mail_that_comes_back_tells_whose_it_was(
    launched: Launch, relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    ids = create_customers(2)
    with_settings(mail_bounce_address="bounces@shop.example")
    campaign = launched()
    sender.send_pending_emails()
    assert {kept.sender.partition("+")[0] for kept in relay.kept} == {"bounces"}
    assert [campaign_tokens.parse_return_path(kept.sender) for kept in relay.kept] == [(campaign.id, n) for n in ids]
    # So does one that asks for no more mails: read by the same door.
    assert all(f"<mailto:{kept.sender}?subject=unsubscribe>" in kept.message["List-Unsubscribe"] for kept in relay.kept)


def test_a_test_that_comes_back_is_nobodys(
    app: Flask, offer: Callable[..., Offer], relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_bounce_address="bounces@shop.example")
    sender.send_test_email(EmailContent(), offer(), "staff@example.com", "Staff")
    assert [kept.sender for kept in relay.kept] == ["offers@example.com"]


def test_a_second_copy_that_is_refused_leaves_it_uncertain(launched: Launch, relay: Relay) -> None:
    create_customers(3)
    campaign = launched()
    taken = batches.claim_batch("killed")
    assert taken is not None
    assert batches.open_send_window(taken) is not None
    expire_leases()
    relay.behaviour.rcpt["c0@example.com"] = "550 no"
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "uncertain": 1}
    words = db.session.execute(text("select text from mail_issue")).scalar_one()
    assert words == "an earlier copy may have arrived; the second copy was rejected: no"
