"""`/metrics`: values from the tables, access control, and no personal data."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from sqlalchemy import select, text
from sqlalchemy.exc import NotSupportedError
from werkzeug.test import TestResponse

from benchmarks import growth_tables
from tests.support.frozen_server import Relay, relay_to
from tests.support.live_server import wait_until
from tests.support.query_plans import explain_statements, plan_nodes
from tests.support.server_errors import build_unlogged_table_error
from webapp import create_app
from webapp.accounts import api_key_actions
from webapp.accounts.models import ApiKey
from webapp.campaigns.models import Batch, Campaign, MailIssue, encode_gaps
from webapp.core import database_health, database_timeouts, task_queue, web_metrics
from webapp.core.extensions import db
from webapp.core.settings import ROOT, Settings
from webapp.customers.models import Customer, CustomerImport
from webapp.monitoring import actions as monitoring_actions
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring import readiness
from webapp.monitoring.actions import WorkerIdentity
from webapp.offers.models import Offer
from webapp.redemptions import hourly_counts
from webapp.redemptions.models import AddressExcess, FailedCodeAttempt, Redemption, Rollback
from webapp.views.api import metrics

Values = dict[tuple[str, tuple[str, ...]], float]


# Metrics of the web server that responds, which are available without the database.
SERVER_METRICS = {
    "onecode_database_errors_total",
    "onecode_database_wait_seconds_bucket",
    "onecode_database_wait_seconds_count",
    "onecode_database_wait_seconds_sum",
    "onecode_request_seconds_bucket",
    "onecode_request_seconds_count",
    "onecode_request_seconds_sum",
    "onecode_requests_total",
}
# Without the database, for a key that cannot be looked up.
METRICS_WITHOUT_KEY = {"onecode_build_info", "onecode_database_up", "onecode_database_writable"}


def parse_samples(page: str, parse: Callable[[str], Iterable[Metric]] = parse_plain) -> Values:
    """Return every sample of a page by name and label values."""
    return {(s.name, tuple(s.labels.values())): s.value for family in parse(page) for s in family.samples}


def scrape(api: FlaskClient) -> Values:
    response = api.get("/metrics")
    assert response.status_code == 200
    return parse_samples(response.text)


@pytest.fixture
def campaign(make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]) -> Campaign:
    """A campaign with two sent, one failed, one deferred and one queued delivery."""
    customers = [make_customer(f"someone{n}@example.com") for n in range(5)]
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    campaign = Campaign(offer_id=make_offer("SECRETCODE").id, subject="s", text="t", status="sending", total=5)
    campaign.launched_at = campaign.sending_since = long_ago
    db.session.add(campaign)
    db.session.flush()
    ids = [customer.id for customer in customers]
    batch = Batch(campaign_id=campaign.id, seq=0, first_id=ids[0], last_id=ids[-1], gaps=encode_gaps(ids))
    batch.window_start = batch.window_end = 4
    batch.sent, batch.windows = 2, [0, 1]
    db.session.add_all([batch, MailIssue(campaign_id=campaign.id, customer_id=ids[2], state="failed", smtp_code=550)])
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=ids[3], state="deferred", smtp_code=451))
    db.session.commit()
    return campaign


def test_metrics_require_a_valid_key(client: FlaskClient) -> None:
    for header in ({}, {"Authorization": "Bearer onecode_live_nothing_secret"}):
        response = client.get("/metrics", headers=header)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert "onecode_" not in response.text


def test_a_key_without_the_scope_read_is_refused(client: FlaskClient) -> None:
    key = api_key_actions.create_api_key("till", ["redeem"], by="tests")

    response = client.get("/metrics", headers={"Authorization": f"Bearer {key}"})

    assert (response.status_code, response.get_json()["code"]) == (403, "forbidden")


def test_a_key_with_the_scope_read_is_accepted(client: FlaskClient) -> None:
    key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")

    response = client.get("/metrics", headers={"Authorization": f"Bearer {key}"})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_every_metric_has_a_prefix_a_type_and_a_help_text(api: FlaskClient, campaign: Campaign) -> None:
    monitoring_actions.record_heartbeat(WorkerIdentity("1"), periodic_task_ages={"campaigns.sweep": 1})
    families = list(parse_plain(api.get("/metrics").text))

    assert len(families) > 20
    for family in families:
        assert family.name.startswith("onecode_")
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        assert family.samples


def test_the_openmetrics_format_is_negotiated(api: FlaskClient, campaign: Campaign) -> None:
    response = api.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})

    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    found = parse_samples(response.text, parse_open_metrics)
    # Values such as the number of connections may differ between two scrapes.
    assert found.keys() == scrape(api).keys()


def test_email_counts_of_an_open_campaign_match_the_rows(api: FlaskClient, campaign: Campaign) -> None:
    found = scrape(api)

    emails = {labels[1]: n for (name, labels), n in found.items() if name == "onecode_campaign_mails"}
    assert emails == {"waiting": 1, "sent": 2, "deferred": 1, "failed": 1, "uncertain": 0, "skipped": 0, "left": 0}
    assert found["onecode_campaigns", ("sending",)] == 1
    assert found["onecode_campaigns", ("done",)] == 0
    assert found["onecode_campaign_stalled", (str(campaign.id),)] == 1


def test_relay_trouble_and_automatic_pauses_are_counted(api: FlaskClient, campaign: Campaign) -> None:
    def scrape_troubles() -> tuple[float, float]:
        db.session.commit()
        found = scrape(api)
        return found["onecode_relay_trouble", ()], found["onecode_campaigns_paused_by_themselves", ()]

    assert scrape_troubles() == (0, 0)
    campaign.delivery_warning = "The mail relay can't be reached."
    assert scrape_troubles() == (1, 0)
    # The warning of a campaign that no longer sends is history, as is the reason of a pause that has ended.
    campaign.status, campaign.pause_reason = "done", "the relay refuses us: 535"
    assert scrape_troubles() == (0, 0)
    campaign.delivery_warning, campaign.status = None, "paused"
    assert scrape_troubles() == (0, 1)
    assert scrape(api)["onecode_campaign_mails", (str(campaign.id), "sent")] == 2
    campaign.pause_reason = "paused by ada@example.com"
    assert scrape_troubles() == (0, 0)


def test_the_number_of_campaigns_with_their_own_samples_is_limited(
    api: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    for n in range(monitoring_queries.MAX_CAMPAIGN_SERIES + 3):
        db.session.add(Campaign(offer_id=make_offer(f"CODE{n}").id, subject="s", text="t", status="sending", total=0))
    db.session.add(Campaign(offer_id=make_offer("OVER").id, subject="s", text="t", status="done", total=0))
    db.session.commit()

    campaign_ids = {labels[0] for name, labels in scrape(api) if name == "onecode_campaign_mails"}

    assert len(campaign_ids) == monitoring_queries.MAX_CAMPAIGN_SERIES == 20
    assert max(map(int, campaign_ids)) == monitoring_queries.MAX_CAMPAIGN_SERIES + 3


def test_counts_of_redemptions_failed_codes_and_imports_match_the_rows(
    api: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer = make_offer()
    for n in range(3):
        make_customer(f"someone{n}@example.com")
        body = {"code": offer.code, "customer": {"email": f"someone{n}@example.com"}}
        response = api.post("/api/v1/redemptions", json=body)
        assert response.status_code == 201
    assert (
        api.post(f"/api/v1/redemptions/{response.get_json()['id']}/rollback", json={"reason": "x"}).status_code == 200
    )
    now = datetime.now(UTC)
    db.session.add(FailedCodeAttempt(offer_id=offer.id, slot=1, minute=now, n=40))
    db.session.add(FailedCodeAttempt(offer_id=offer.id, slot=2, minute=now - timedelta(hours=2), n=7))
    for address, last_at in (("192.0.2.1", now), ("192.0.2.2", now), ("192.0.2.3", now - timedelta(hours=2))):
        db.session.add(AddressExcess(offer_id=offer.id, address=address, last_at=last_at))
    db.session.add(AddressExcess(offer_id=offer.id + 1, address="192.0.2.1", last_at=now))
    for status in ("done", "done", "failed"):
        db.session.add(CustomerImport(filename="a.csv", media_type="text/csv", status=status))
    db.session.commit()

    found = scrape(api)

    assert found["onecode_redemptions_total", ()] == 3
    assert found["onecode_rollbacks_total", ()] == 1
    assert found["onecode_code_misses_last_hour", ()] == 40
    assert found["onecode_offers_guessed_at", ()] == 1
    assert found["onecode_addresses_over_customer_limit", ()] == 2
    assert [found["onecode_imports", (state,)] for state in ("queued", "done", "failed")] == [0, 2, 1]


def test_every_redemption_is_counted_once_whether_its_hour_was_counted_or_not(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    now = datetime.now(UTC)
    for number, code in enumerate(("SUMMER25", "WINTER")):
        offer_id = make_offer(code).id
        times = [now, now - timedelta(hours=3), now - timedelta(hours=30 + number)]
        db.session.add_all(
            Redemption(offer_id=offer_id, customer_id=n, redeemed_at=at, channel="api") for n, at in enumerate(times)
        )
    rollback = {"redeemed_at": now, "channel": "api", "rolled_back_by": "tests", "reason": ""}
    db.session.add_all(Rollback(offer_id=1, customer_id=n, **rollback) for n in range(2))
    db.session.commit()

    counts = [monitoring_queries.load_redemption_metrics()]
    hourly_counts.update_hourly_counts()
    # A redemption at the very time from which on they are counted one by one.
    db.session.execute(
        text("update redemption set redeemed_at = (select counted_until from redemption_tally) where customer_id = 0")
    )
    db.session.commit()
    counts.append(monitoring_queries.load_redemption_metrics())

    assert [(found.redemptions, found.rollbacks) for found in counts] == [(8, 2)] * 2


def test_queue_database_and_migration_have_metrics(api: FlaskClient) -> None:
    db.session.execute(
        text(
            "insert into huey_task (queue, data, enqueued_at) values ('onecode', '', now()), ('onecode', '', now()),"
            " ('other', '', now() - interval '1 day')"
        )
    )
    db.session.execute(
        text("insert into huey_schedule (queue, data, timestamp) values ('onecode', '', 0), ('other', '', 0)")
    )
    db.session.commit()

    found = scrape(api)

    assert found["onecode_database_up", ()] == 1
    assert (found["onecode_queue_tasks", ()], found["onecode_queue_scheduled_tasks", ()]) == (2, 1)
    assert 0 < found["onecode_queue_oldest_task_seconds", ()] < 600
    assert 1 <= found["onecode_database_connections", ()] <= found["onecode_database_connections_max", ()]
    size = db.session.scalars(text("select pg_database_size(current_database())")).one()
    assert found["onecode_database_size_bytes", ()] == pytest.approx(size, rel=0.1)
    version = db.session.scalars(text("select version_num from alembic_version")).one()
    assert found["onecode_migration_info", (version, version)] == 1
    assert found["onecode_migration_differs", ()] == 0


def test_only_workers_with_a_recent_heartbeat_are_counted(api: FlaskClient) -> None:
    for silent, stopped, busy, swept in ((0, False, 7.0, 50.0), (60, False, 900.0, 20.0), (0, True, None, 30.0)):
        identity = WorkerIdentity("1")
        monitoring_actions.record_heartbeat(identity, busy, {"campaigns.sweep": swept})
        if stopped:
            monitoring_actions.record_shutdown(identity)
        db.session.execute(
            text("update worker set seen_at = seen_at - make_interval(secs => :s) where id = :id"),
            {"s": silent, "id": identity.id},
        )
        db.session.commit()

    found = scrape(api)

    assert found["onecode_workers", ()] == 1
    assert found["onecode_worker_busy_seconds", ()] == pytest.approx(7, abs=5)
    now = float(db.session.scalars(text("select extract(epoch from now())")).one())
    assert now - found["onecode_sweep_timestamp_seconds", ("campaigns.sweep",)] == pytest.approx(20, abs=5)


def test_connections_are_counted_without_the_right_to_see_them(app: Flask) -> None:
    """PostgreSQL hides limit columns of other roles' sessions.

    The statistics stay the same within a transaction.
    """
    kinds = "('client backend', 'parallel worker')"
    expected = db.session.scalar(text(f"select count(*) from pg_stat_activity where backend_type in {kinds}"))
    db.session.execute(text("create role plain"))
    db.session.execute(text("grant select on huey_task, huey_schedule, alembic_version to plain"))
    db.session.execute(text("set local role plain"))

    found = monitoring_queries.load_database_metrics().connections

    db.session.rollback()
    assert found == expected


@pytest.mark.usefixtures("patient_readiness")
def test_the_server_cancels_a_statement_that_delays_a_scrape(
    api: FlaskClient, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a slow database would be treated as one that does not respond at all, and lose its connection."""
    assert metrics.READ_SECONDS > monitoring_queries.STATEMENT_TIMEOUT_SECONDS
    monkeypatch.setattr(monitoring_queries, "STATEMENT_TIMEOUT_SECONDS", 0.5)
    # The server cancels the statement, however late this process continues.
    monkeypatch.setattr(metrics, "READ_SECONDS", 60)
    before = web_metrics.collect_web_metrics().errors
    with psycopg.connect(test_settings.libpq_url) as blocker:
        blocker.execute("lock table customer_import in access exclusive mode")

        found = scrape(api)

    assert (found["onecode_database_up", ()], found["onecode_database_writable", ()]) == (0, 1)
    after = web_metrics.collect_web_metrics().errors
    assert {kind: n - before[kind] for kind, n in after.items() if n != before[kind]} == {"statement_timeout": 1}


def test_metrics_have_no_personal_data(api: FlaskClient, campaign: Campaign) -> None:
    page = api.get("/metrics").text

    assert "@" not in page
    assert "SECRETCODE" not in page
    assert "Ada" not in page


def test_a_standby_whose_unlogged_tables_cannot_be_read_is_reported_as_down(
    api: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise NotSupportedError("select", {}, build_unlogged_table_error())

    monkeypatch.setattr(monitoring_queries, "collect_metrics", fail)

    assert scrape(api)["onecode_database_up", ()] == 0


def test_a_statement_that_no_server_supports_is_an_unexpected_error(
    api: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = NotSupportedError("select", {}, psycopg.errors.FeatureNotSupported("cannot"))

    def fail() -> None:
        raise error

    monkeypatch.setattr(monitoring_queries, "collect_metrics", fail)

    with pytest.raises(NotSupportedError):
        api.get("/metrics")


def test_without_the_database_the_page_reports_it_as_down(app: Flask, test_settings: Settings) -> None:
    unreachable = create_app(replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing"))
    task_queue.init_app(app)

    # Before anything else is done for it.
    assert unreachable.test_client().get("/metrics").status_code == 401
    assert unreachable.extensions["readiness"]._current is None
    response = unreachable.test_client().get("/metrics", headers={"Authorization": "Bearer onecode_live_abc_secret"})

    assert response.status_code == 200
    found = parse_samples(response.text)
    assert found["onecode_database_up", ()] == found["onecode_database_writable", ()] == 0
    assert {name for name, _ in found} == METRICS_WITHOUT_KEY


@pytest.fixture
def relay(app: Flask, test_settings: Settings) -> Iterator[Relay]:
    with relay_to(test_settings.libpq_url) as relay:
        yield relay
    task_queue.init_app(app)
    database_health.mark_recovered()


@pytest.fixture
def app_over_relay(relay: Relay, test_settings: Settings) -> Flask:
    """Another app, which is connected to the database over the relay."""
    return create_app(replace(test_settings, database_url=relay.url))


@pytest.fixture
def scrape_over_relay(app_over_relay: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TestResponse]:
    """Scrapes the app over the relay with a key; it caches no keys."""
    monkeypatch.setattr(api_key_actions, "API_KEY_CACHE_SECONDS", 0)
    client = app_over_relay.test_client()
    return lambda key: client.get("/metrics", headers={"Authorization": f"Bearer {key}"})


def names(response: TestResponse) -> set[str]:
    assert response.status_code == 200
    return {name for name, _ in parse_samples(response.text)}


@pytest.mark.usefixtures("patient_readiness")
def test_without_the_database_only_a_key_that_was_accepted_gets_counts(
    relay: Relay, scrape_over_relay: Callable[[str], TestResponse], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
    till = api_key_actions.create_api_key("till", ["redeem"], by="tests")
    assert names(scrape_over_relay(accepted)) > SERVER_METRICS
    assert scrape_over_relay(till).status_code == 403
    # Its public id, but another secret.
    assert scrape_over_relay(f"{accepted}0").status_code == 401
    relay.close()

    assert names(scrape_over_relay(accepted)) == METRICS_WITHOUT_KEY | SERVER_METRICS
    for key in (till, f"{accepted}0"):
        assert names(scrape_over_relay(key)) == METRICS_WITHOUT_KEY
    monkeypatch.setattr(metrics, "ACCEPTED_KEY_SECONDS", 0)
    assert names(scrape_over_relay(accepted)) == METRICS_WITHOUT_KEY


@pytest.mark.usefixtures("patient_readiness")
def test_a_revoked_key_gets_no_counts_without_the_database(
    relay: Relay, scrape_over_relay: Callable[[str], TestResponse]
) -> None:
    key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
    assert scrape_over_relay(key).status_code == 200
    api_key_actions.revoke_api_key(db.session.scalars(select(ApiKey.id)).one(), by="tests")
    assert scrape_over_relay(key).status_code == 401
    relay.close()

    assert names(scrape_over_relay(key)) == METRICS_WITHOUT_KEY


@pytest.mark.usefixtures("patient_readiness")
def test_a_database_that_commits_is_writable(api: FlaskClient) -> None:
    found = scrape(api)

    assert found["onecode_database_writable", ()] == 1
    assert 0 < found["onecode_database_write_seconds", ()] < readiness.CHECK_SECONDS


@pytest.mark.usefixtures("patient_readiness")
def test_a_read_only_database_is_reported_as_up_and_not_writable(app: Flask, test_settings: Settings) -> None:
    url = psycopg.conninfo.make_conninfo(test_settings.libpq_url, options="-c default_transaction_read_only=on")
    key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
    read_only = create_app(replace(test_settings, database_url=url))
    task_queue.init_app(app)

    response = read_only.test_client().get("/metrics", headers={"Authorization": f"Bearer {key}"})

    found = parse_samples(response.text)
    assert (found["onecode_database_up", ()], found["onecode_database_writable", ()]) == (1, 0)


@pytest.mark.usefixtures("patient_readiness")
def test_a_scrape_of_a_frozen_database_opens_no_connection_and_the_next_does(
    relay: Relay,
    app_over_relay: Flask,
    scrape_over_relay: Callable[[str], TestResponse],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
    assert parse_samples(scrape_over_relay(key).text)["onecode_database_writable", ()] == 1
    check: readiness.ReadinessCheck = app_over_relay.extensions["readiness"]
    relay.freeze(accepts_new=True)
    # The ping of the frozen connection ends soon; over a new one, a busy machine may need longer.
    monkeypatch.setattr(database_timeouts, "PING_SECONDS", 0.5)
    (connection,) = check._connections.values()
    connection.statement_seconds = 0.5
    with monkeypatch.context() as impatient:
        impatient.setattr(readiness, "CHECK_SECONDS", 0.5)
        found = parse_samples(scrape_over_relay(key).text)

    assert (found["onecode_database_up", ()], found["onecode_database_writable", ()]) == (0, 0)
    # A duration of a write that failed would say nothing about the disk.
    assert ("onecode_database_write_seconds", ()) not in found
    assert check._current is not None
    check._current.is_finished.wait()
    found = parse_samples(scrape_over_relay(key).text)
    assert (found["onecode_database_up", ()], found["onecode_database_writable", ()]) == (1, 1)


def test_a_scrape_does_not_wait_for_silent_hosts(
    app: Flask, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus waits ten seconds; connecting takes five at each host."""
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = f"{first.getsockname()[1]},{second.getsockname()[1]}"
        url = f"host=127.0.0.1,127.0.0.1 port={ports} user=nobody dbname=nowhere connect_timeout=2"
        silent = create_app(replace(test_settings, database_url=url))
        task_queue.init_app(app)

        response = silent.test_client().get("/metrics", headers={"Authorization": "Bearer onecode_live_abc_secret"})

        assert parse_samples(response.text)["onecode_database_up", ()] == 0
        # Only the check has connected.
        first.accept()[0].close()
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.accept()
        silent.extensions["readiness"]._current.is_finished.wait()
    database_health.mark_recovered()


@pytest.mark.usefixtures("patient_readiness")
def test_a_scrape_may_connect_while_only_writes_get_no_response(
    relay: Relay,
    app_over_relay: Flask,
    scrape_over_relay: Callable[[str], TestResponse],
    test_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As without a synchronous standby. This process has no connection yet."""
    key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
    check: readiness.ReadinessCheck = app_over_relay.extensions["readiness"]
    monkeypatch.setattr(metrics, "READ_SECONDS_WITHOUT_WRITES", 60)
    running = threading.Thread(target=check.run)
    with psycopg.connect(test_settings.libpq_url) as other:
        # The check waits for this lock.
        other.execute("lock table huey_task in exclusive mode")
        running.start()
        wait_until(lambda: check._current is not None and check._current.has_response)
        monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.5)

        found = parse_samples(scrape_over_relay(key).text)

    running.join()
    assert (found["onecode_database_up", ()], found["onecode_database_writable", ()]) == (1, 0)


@contextmanager
def temporary_change(statement: str, undo: str) -> Iterator[None]:
    db.session.execute(text(statement))
    db.session.commit()
    try:
        yield
    finally:
        db.session.execute(text(undo))
        db.session.commit()


def test_a_missing_table_omits_only_its_metrics(api: FlaskClient) -> None:
    newest = db.session.scalars(text("select version_num from alembic_version")).one()
    older = temporary_change(
        "update alembic_version set version_num = '0012'", f"update alembic_version set version_num = '{newest}'"
    )
    with older, temporary_change("alter table worker rename to later", "alter table later rename to worker"):
        found = scrape(api)

    assert found["onecode_migration_info", ("0012", newest)] == 1
    assert (found["onecode_migration_differs", ()], found["onecode_database_up", ()]) == (1, 1)
    assert ("onecode_workers", ()) not in found


# The limit rows that a scrape may read: those of the only open campaign, and the rollbacks.
CUSTOMERS, ROWS, BATCHES, ISSUES, ROLLBACKS = 50_000, 100_000, 1000, 500, 5000
LARGE = {"customer": 0, "redemption": 3000, "rollback": ROLLBACKS, "mail_issue": 3 * ISSUES, "batch": 3 * BATCHES}
EMPTY = (
    "truncate customer, audience, audience_member, offer, offer_code, redemption, rollback, redemption_hour,"
    " redemption_total, hour_total, campaign, batch, batch_cursor, mail_issue restart identity cascade"
)
FILL = f"""
insert into rollback (customer_id, offer_id, redeemed_at, channel, rolled_back_by, reason)
  select customer_id, offer_id, redeemed_at - interval '1 year', 'api', 'staff', ''
  from redemption limit {ROLLBACKS};
insert into campaign (offer_id, subject, text, status, launched_at, sending_since, total, sent_in_batches)
  select g, 's', 't', case g when 1 then 'sending' else 'done' end, now(), now(), 1000, nullif(sign(g - 1), 0)
  from generate_series(1, 20) g;
insert into batch (campaign_id, seq, first_id, last_id, gaps)
  select c, s, s * 50 + 1, s * 50 + 50, (array[s * 50 + 1] || array_fill(1, array[49]))::bigint[]
  from generate_series(1, 20) c, generate_series(1, {BATCHES}) s;
insert into mail_issue (campaign_id, customer_id, state, smtp_code)
  select c, g, 'failed', 550 from generate_series(1, {ISSUES}) g, generate_series(1, 20) c;
"""


@pytest.fixture
def filled(app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    with psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        growth_tables.fill(connection, CUSTOMERS)
        growth_tables.redeem(connection, CUSTOMERS, ROWS)
        connection.execute(FILL)
        connection.execute("vacuum (analyze)")
        yield connection
        db.session.remove()
        connection.execute(EMPTY)


@pytest.mark.slow
def test_a_scrape_reads_few_rows_of_large_tables(filled: psycopg.Connection) -> None:
    read = dict.fromkeys(LARGE, 0.0)
    for statement, plan in explain_statements(filled, monitoring_queries.collect_metrics):
        for node in plan_nodes(plan):
            table = node.get("Relation Name")
            if table in LARGE:
                # Rollbacks are counted by a scan of the index or the table; there are few of them.
                assert table == "rollback" or "Seq Scan" not in node["Node Type"], f"{table}: {statement}"
                rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                # Each statement has two plans: custom and generic.
                read[table] += rows / 2
    assert all(read[table] <= limit for table, limit in LARGE.items()), read


def test_the_docs_list_exactly_the_existing_metrics(api: FlaskClient, campaign: Campaign) -> None:
    monitoring_actions.record_heartbeat(WorkerIdentity("1"), periodic_task_ages={"campaigns.sweep": 1})
    page = (
        (ROOT / "docs" / "monitoring.md")
        .read_text()
        .replace("`…_connections_max`", "`onecode_database_connections_max`")
    )
    documented = set(re.findall(r"\bonecode_\w+", page))

    assert documented == {sample.name for family in parse_plain(api.get("/metrics").text) for sample in family.samples}


def test_the_alerts_select_existing_series(api: FlaskClient, campaign: Campaign) -> None:
    samples = [sample for family in parse_plain(api.get("/metrics").text) for sample in family.samples]
    rules = (ROOT / "docs" / "monitoring.md").read_text().partition("## Alerts")[2]
    selectors = re.findall(r"\b(onecode_\w+)\{([^}]*)\}", rules)
    assert selectors
    for name, matchers in selectors:
        for label, operator, pattern in re.findall(r'(\w+)(!=|=~|=)"([^"]*)"', matchers):
            values = {sample.labels.get(label, "") for sample in samples if sample.name == name}
            found = [value for value in values if re.fullmatch(pattern, value)]
            # Also what is excluded has to exist. Alternatives of an expression are checked one by one.
            alternatives = pattern.split("|") if operator == "=~" else [pattern]
            assert len(found) >= len(alternatives), f"{name}{{{label}{operator}{pattern}}}: {sorted(values)}"
