"""The campaign tasks, also with a real Huey consumer in a separate process."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server, ports, smtp_relay
from tests.support.campaigns import create_customers, expire_leases
from tests.support.live_server import wait_until
from tests.support.smtp_relay import Relay
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries, timing
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import MailIssue
from webapp.campaigns.sending import batches, sender
from webapp.campaigns.tokens import build_unsubscribe_url
from webapp.core import task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.offers.models import Offer
from webapp.redemptions.personal_links import build_personal_url


def campaign_status(campaign_id: int) -> str:
    db.session.rollback()
    return str(db.session.execute(text("select status from campaign where id = :id"), {"id": campaign_id}).scalar())


def test_a_launch_sends_each_customer_one_personal_email(
    app: Flask, api: FlaskClient, make_offer: Callable[..., Offer], relay: Relay
) -> None:
    ids = create_customers(300)
    offer = make_offer()
    with live_server.worker(app.config["SETTINGS"], PUBLIC_URL="http://localhost"):
        campaign_id = api.post("/api/v1/offers/SUMMER25/launch").get_json()["id"]
        wait_until(lambda: campaign_status(campaign_id) == "done")
    assert relay.recipients == {f"c{n}@example.com": 1 for n in range(300)}
    for customer in customer_queries.list_customers_by_ids(ids):
        received = relay.message_to(customer.email)
        for body in (received.text, received.html):
            assert "SUMMER25" in body
            assert build_personal_url(offer.id, customer.id) in body
            assert build_unsubscribe_url(customer.id, campaign_id) in body


@pytest.mark.slow
def test_another_worker_completes_the_campaign_of_a_killed_one(
    app: Flask, make_offer: Callable[..., Offer], relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    create_customers(600)
    settings = with_settings(mail_port=relay.port)
    relay.behaviour.seconds_per_mail = 0.005
    with live_server.worker(settings, MAIL_CONNECTIONS="2") as first:
        campaign_id = launch_actions.launch_announcement(make_offer().id, "tests").campaign.id
        relay.wait_for(150)
        first.process.kill()
        first.process.wait()
    killed = relay.connections
    expire_leases()
    with live_server.worker(settings, MAIL_CONNECTIONS="2"):
        task_queue.run("campaigns.sweep")
        wait_until(lambda: campaign_status(campaign_id) == "done")
    assert len(relay.recipients) == 600
    assert len(relay.messages) - 600 <= killed <= 2
    counts = stats_queries.get_campaign_stats(campaign_id)
    assert (counts.sent, counts.uncertain) == (600, 0)


@pytest.mark.slow
def test_a_worker_that_shuts_down_causes_no_duplicates(
    app: Flask, make_offer: Callable[..., Offer], relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    create_customers(300)
    settings = with_settings(mail_port=relay.port)
    relay.behaviour.seconds_per_mail = 0.005
    with live_server.worker(settings):
        campaign_id = launch_actions.launch_announcement(make_offer().id, "tests").campaign.id
        relay.wait_for(60)
    with live_server.worker(settings):
        task_queue.run("campaigns.sweep")
        wait_until(lambda: campaign_status(campaign_id) == "done")
    assert (len(relay.recipients), len(relay.messages)) == (300, 300)


@pytest.mark.slow
def test_a_launch_during_an_outage_of_the_relay_is_sent_afterwards(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    create_customers(20)
    port = ports.free_port()
    settings = with_settings(mail_port=port)
    with live_server.worker(settings):
        campaign_id = launch_actions.launch_announcement(make_offer().id, "tests").campaign.id
        wait_until(
            lambda: [campaign.delivery_warning for campaign in campaign_queries.list_campaigns_needing_attention()]
        )
        assert stats_queries.get_campaign_stats(campaign_id).sent == 0
        with smtp_relay.running(port) as relay:
            wait_until(lambda: campaign_status(campaign_id) == "done")
            assert (len(relay.recipients), len(relay.messages)) == (20, 20)


def test_the_sweep_enqueues_a_lost_task_again(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    launch_actions.launch_announcement(make_offer().id, "tests")
    huey.storage.flush_queue()
    task_queue.run("campaigns.sweep")
    assert huey.storage.queue_size() == 1


def test_the_sweep_enqueues_nothing_without_pending_work(app: Flask) -> None:
    task_queue.run("campaigns.sweep")
    assert huey.storage.queue_size() == 0


def test_the_sweep_is_scheduled_for_the_end_of_a_lease(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    preparation.prepare_campaign(launch_actions.launch_announcement(make_offer().id, "tests").campaign.id)
    huey.storage.flush_queue()
    batches.claim_batch("another worker")
    db.session.execute(text("update batch set lease_until = now() + interval '40 seconds'"))
    db.session.commit()
    task_queue.run("campaigns.sweep")
    assert [task.eta is not None for task in huey.pending()] == [True]


def test_the_last_send_task_enqueues_no_other(app: Flask, make_offer: Callable[..., Offer], relay: Relay) -> None:
    create_customers(1)
    preparation.prepare_campaign(launch_actions.launch_announcement(make_offer().id, "tests").campaign.id)
    huey.storage.flush_queue()
    task_queue.run("campaigns.send")
    assert (len(relay.messages), huey.storage.queue_size()) == (1, 0)
    assert sender.send_pending_emails() is False


def test_the_task_after_a_cancellation_cleans_up(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    campaign_id = launch_actions.launch_announcement(make_offer().id, "tests").campaign.id
    preparation.prepare_campaign(campaign_id)
    transitions.cancel_campaign(campaign_id, "tests")
    task_queue.run("campaigns.clean_up_cancelled")
    assert db.session.execute(text("select status from batch")).scalar_one() == "cancelled"


def test_the_sweep_does_what_lost_tasks_and_killed_workers_have_not_done(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    create_customers(1)
    ids = [
        launch_actions.launch_announcement(make_offer(code).id, "tests").campaign.id for code in ("A1A", "B2B", "C3C")
    ]
    for campaign_id in ids:
        preparation.prepare_campaign(campaign_id)
    lost, killed, finished = ids
    for campaign_id in (lost, killed):
        transitions.cancel_campaign(campaign_id, "tests")
    db.session.execute(
        text(
            "update batch set status = 'sending', owner = 'a killed worker', lease_until = now() - interval '1 second' "
            "where campaign_id = :id"
        ),
        {"id": killed},
    )
    db.session.add(MailIssue(campaign_id=lost, customer_id=1, state="deferred", next_at=datetime.now(UTC)))
    db.session.execute(text("update batch set status = 'done' where campaign_id = :id"), {"id": finished})
    db.session.commit()

    task_queue.run("campaigns.sweep")

    rows = db.session.execute(text("select campaign_id, status from batch order by campaign_id")).all()
    assert rows == [(lost, "cancelled"), (killed, "cancelled"), (finished, "done")]
    assert [campaign_status(campaign_id) for campaign_id in ids] == ["cancelled", "cancelled", "done"]
    assert db.session.execute(text("select state from mail_issue")).scalar_one() == "skipped"


def test_the_sweep_enqueues_a_launch_within_the_next_minute(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    at = datetime.now(UTC) + timedelta(hours=1)
    launch_actions.launch_announcement(make_offer(ends_at=None).id, "tests", at)
    db.session.execute(text("update campaign set scheduled_at = now() + interval '50 seconds'"))
    db.session.commit()
    task_queue.run("campaigns.sweep")
    assert [(task.name, task.eta is not None) for task in huey.pending()] == [("start", True)]


def test_a_sender_that_is_not_finished_enqueues_another(
    app: Flask, make_offer: Callable[..., Offer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No relay can be reached.
    create_customers(1)
    preparation.prepare_campaign(launch_actions.launch_announcement(make_offer().id, "tests").campaign.id)
    huey.storage.flush_queue()
    monkeypatch.setattr(timing, "SENDER_TIME_LIMIT", 0.1)
    task_queue.run("campaigns.send")
    assert [task.name for task in huey.pending()] == ["send"]
