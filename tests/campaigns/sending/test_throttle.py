"""The rate limit, automatic pauses after failures, and stopping within a window."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import send_until_idle
from tests.support.smtp_relay import Relay
from webapp.campaigns import models, stats_queries, timing
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import auto_pause, batches, sender
from webapp.campaigns.sending.throttle import SendThrottle
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import timeouts
from webapp.offers.models import Offer

LaunchToCustomers = Callable[[int], Campaign]


@pytest.fixture
def launch_campaign(app: Flask, make_offer: Callable[..., Offer]) -> LaunchToCustomers:
    """Launch and prepare a campaign to n customers c0@example.com, c1@…"""

    def launch(n: int) -> Campaign:
        db.session.execute(
            text(
                "insert into customer (email, email_as_given) select e, e from "
                "(select 'c' || g || '@example.com' as e from generate_series(0, :last) g) x"
            ),
            {"last": n - 1},
        )
        db.session.commit()
        offer = make_offer()
        draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
        campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
        preparation.prepare_campaign(campaign.id)
        return campaign

    return launch


def campaign_status(campaign: Campaign) -> tuple[str, str | None]:
    db.session.rollback()
    db.session.refresh(campaign)
    return campaign.status, campaign.pause_reason


def next_free_slot() -> datetime:
    found: datetime = db.session.execute(text("select free_at from mail_pace")).scalar_one()
    db.session.rollback()
    return found


# --- the rate limit --------------------------------------------------------------------------------


def test_reserved_slots_follow_each_other(app: Flask) -> None:
    batches.reserve_send_slots(30, 0.5)
    first = next_free_slot()
    batches.reserve_send_slots(5, 0.5)
    batches.reserve_send_slots(1, 0.5)
    assert next_free_slot() - first == timedelta(seconds=12)


def test_unused_slots_do_not_accumulate(app: Flask) -> None:
    db.session.execute(text("insert into mail_pace (id, free_at) values (1, now() - interval '1 hour')"))
    db.session.commit()
    batches.reserve_send_slots(1, 1)
    assert next_free_slot() > db.session.execute(text("select now()")).scalar_one()


def test_concurrent_workers_reserve_different_slots(app: Flask) -> None:
    started = db.session.execute(text("select clock_timestamp()")).scalar_one()
    db.session.commit()

    def reserve() -> None:
        with app.app_context():
            for _ in range(10):
                batches.reserve_send_slots(1, 0.1)

    threads = [threading.Thread(target=reserve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next_free_slot() - started >= timedelta(seconds=400)


def test_without_a_limit_no_slot_is_reserved(app: Flask) -> None:
    assert SendThrottle(0).try_acquire(50) == 0
    assert db.session.execute(text("select count(*) from mail_pace")).scalar() == 0


def test_a_sender_reserves_one_second_of_slots(app: Flask) -> None:
    throttle = SendThrottle(2)
    assert throttle.try_acquire(50) == 0
    assert 0 < throttle.try_acquire(49) <= 0.5
    assert next_free_slot() - db.session.execute(text("select now()")).scalar_one() <= timedelta(seconds=1)


def test_sending_keeps_to_the_rate_limit(
    launch_campaign: LaunchToCustomers, relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    campaign = launch_campaign(20)
    with_settings(mail_per_second=20.0)
    started = db.session.execute(text("select clock_timestamp()")).scalar_one()
    sender.send_pending_emails()
    duration = db.session.execute(text("select clock_timestamp()")).scalar_one() - started
    assert stats_queries.get_campaign_stats(campaign.id).sent == 20
    assert duration >= timedelta(seconds=19 / 20)


def test_an_accepted_email_is_stored_before_waiting_for_a_slot(
    launch_campaign: LaunchToCustomers,
    relay: Relay,
    with_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch_campaign(3)
    with_settings(mail_per_second=0.001)
    cursors = []

    class RecordingEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            cursors.append(db.session.execute(text("select cursor from batch_cursor")).scalar_one())
            self.set()
            return True

    monkeypatch.setattr(task_queue, "stop_requested", RecordingEvent())
    sender.send_pending_emails()
    assert cursors == [1]


# --- the order of writes and leases ----------------------------------------------------------------


def test_an_email_is_stored_before_the_next_body_begins(
    launch_campaign: LaunchToCustomers, relay: Relay, app: Flask
) -> None:
    launch_campaign(4)
    cursors = []

    def record_cursor(to: str) -> None:
        with app.app_context():
            cursor = db.session.execute(text("select cursor from batch_cursor")).scalar_one()
            db.session.rollback()
        cursors.append((to, cursor))

    relay.behaviour.on_body = record_cursor
    sender.send_pending_emails()
    assert cursors == [(f"c{n}@example.com", n) for n in range(4)]


def test_the_lease_is_longer_than_renewal_interval_and_timeouts() -> None:
    longest_wait = max(
        3 * timeouts.CONNECT_TIMEOUT,
        timeouts.REPLY_TIMEOUT + timeouts.RESET_TIMEOUT,
        timeouts.BODY_TIMEOUT + timeouts.REPLY_TIMEOUT,
    )
    assert timing.LEASE_RENEWAL_INTERVAL + longest_wait < timing.LEASE_DURATION


# --- automatic pauses ------------------------------------------------------------------------------


def refuse(relay: Relay, numbers: range) -> None:
    relay.behaviour.rcpt.update({f"c{n}@example.com": "550 5.7.1 no" for n in numbers})


def test_too_many_failures_pause_the_campaign(launch_campaign: LaunchToCustomers, relay: Relay) -> None:
    campaign = launch_campaign(400)
    refuse(relay, range(100, 200))
    sender.send_pending_emails()
    assert campaign_status(campaign) == (
        "paused",
        "20 of the last 120 emails were permanently rejected; check the servers' replies",
    )
    assert stats_queries.get_campaign_stats(campaign.id).sent == 100


def test_a_few_failures_do_not_pause_the_campaign(launch_campaign: LaunchToCustomers, relay: Relay) -> None:
    campaign = launch_campaign(60)
    refuse(relay, range(19))
    sender.send_pending_emails()
    assert campaign_status(campaign)[0] == "done"


def test_a_small_share_of_failures_does_not_pause_the_campaign(
    launch_campaign: LaunchToCustomers, relay: Relay
) -> None:
    campaign = launch_campaign(1400)
    refuse(relay, range(20, 1400, 21))
    sender.send_pending_emails()
    assert (campaign_status(campaign)[0], stats_queries.get_campaign_stats(campaign.id).failed) == ("done", 66)


def test_failures_are_counted_across_batches(launch_campaign: LaunchToCustomers, relay: Relay) -> None:
    campaign = launch_campaign(1000)
    # 26 among 500 is too many, but no batch has more than 13 of them.
    refuse(relay, range(487, 513))
    sender.send_pending_emails()
    assert campaign_status(campaign)[0] == "paused"
    assert stats_queries.get_campaign_stats(campaign.id).failed == 26


def test_only_the_last_five_hundred_emails_are_counted(launch_campaign: LaunchToCustomers, relay: Relay) -> None:
    campaign = launch_campaign(1000)
    refuse(relay, range(0, 19))
    refuse(relay, range(600, 607))
    sender.send_pending_emails()
    assert (campaign_status(campaign)[0], stats_queries.get_campaign_stats(campaign.id).failed) == ("done", 26)


def test_failures_before_a_resumption_do_not_count(launch_campaign: LaunchToCustomers, relay: Relay) -> None:
    campaign = launch_campaign(100)
    refuse(relay, range(0, 30))
    sender.send_pending_emails()
    assert campaign_status(campaign)[0] == "paused"
    transitions.resume_campaign(campaign.id, "tests")
    send_until_idle()
    assert (campaign_status(campaign)[0], stats_queries.get_campaign_stats(campaign.id).failed) == ("done", 30)


# --- stopping within a window ----------------------------------------------------------------------


@pytest.mark.parametrize("stop", [transitions.pause_campaign, transitions.cancel_campaign])
def test_a_slow_window_stops_at_the_next_lease_renewal(
    launch_campaign: LaunchToCustomers,
    relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
    app: Flask,
    stop: Callable[..., Campaign],
) -> None:
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    campaign = launch_campaign(40)

    def stop_at_the_third(to: str) -> None:
        if to == "c2@example.com":
            with app.app_context():
                stop(campaign.id, "tests")

    relay.behaviour.on_body = stop_at_the_third
    sender.send_pending_emails()
    assert sorted(relay.recipients) == ["c0@example.com", "c1@example.com", "c2@example.com"]
    assert stats_queries.get_campaign_stats(campaign.id).sent == 3
    assert not db.session.scalars(text("select 1 from mail_issue where state = 'uncertain'")).all()


def test_a_worker_that_waits_for_a_slot_can_be_stopped(
    launch_campaign: LaunchToCustomers, relay: Relay, with_settings: Callable[..., Settings], app: Flask
) -> None:
    campaign = launch_campaign(3)
    with_settings(mail_per_second=0.001)
    relay.behaviour.on_body = lambda _: task_queue.stop_requested.set()
    try:
        sender.send_pending_emails()
    finally:
        task_queue.stop_requested.clear()
    assert (stats_queries.get_campaign_stats(campaign.id).sent, len(relay.messages)) == (1, 1)
    batch = db.session.scalars(db.select(models.Batch)).one()
    assert (batch.status, batch.window_start, batch.sent) == ("pending", 1, 1)


def test_a_worker_that_waits_for_a_slot_stops_when_the_campaign_is_paused(
    launch_campaign: LaunchToCustomers,
    relay: Relay,
    with_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    campaign = launch_campaign(3)
    with_settings(mail_per_second=0.001)
    monkeypatch.setattr(timing, "LEASE_RENEWAL_INTERVAL", 0.0)
    waits = []

    class PausingEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            if len(waits) == 1:
                transitions.pause_campaign(campaign.id, "tests")
            else:
                self.set()
            return self.is_set()

    monkeypatch.setattr(task_queue, "stop_requested", PausingEvent())
    sender.send_pending_emails()
    assert (len(relay.messages), len(waits)) == (1, 1)
    batch = db.session.scalars(db.select(models.Batch)).one()
    assert (batch.status, batch.window_start, batch.sent) == ("pending", 1, 1)


def test_the_first_pause_reason_is_kept_and_logged(
    launch_campaign: LaunchToCustomers, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = launch_campaign(1)
    auto_pause.pause_automatically(campaign.id, "the first reason")
    auto_pause.pause_automatically(campaign.id, "another one")
    assert campaign_status(campaign) == ("paused", "the first reason")
    assert [record.getMessage() for record in caplog.records if record.name.endswith("auto_pause")] == [
        f"campaign {campaign.id} paused: the first reason"
    ]
