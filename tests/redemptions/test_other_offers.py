"""Statements about one offer or customer leave all others alone, also those of the same time or customer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import Connection, text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import ROLLBACK
from tests.support.sql_statements import run_sql
from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import address_limit, count_queries, erasure, group_commit, guessing, hourly_counts, retention
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.models import EXPIRED_REASON
from webapp.redemptions.rules import RedemptionRequest, evaluate

EMAILS = ("ada@example.com", "bob@example.com")
CODES = ("SUMMER25", "WINTER")
NOW = datetime.now(UTC)
# More than any run needs here: a run without an end fails its test.
MAX_STEPS = 20


@pytest.fixture
def offers(make_offer: MakeOffer) -> list[int]:
    return [make_offer(code).id for code in CODES]


@pytest.fixture
def customers(make_customer: MakeCustomer) -> list[int]:
    return [make_customer(email).id for email in EMAILS]


@pytest.fixture
def redemptions(offers: list[int], customers: list[int]) -> None:
    """Both customers have redeemed both offers at one moment; the first offer of each was undone."""
    for email in EMAILS:
        for code in CODES:
            request = RedemptionRequest(
                channel="api", code=code, email=email, metadata={"a": 1}, api_key_id=1,
                idempotency_key=email + code, body_hash=b"hash",
            )  # fmt: skip
            done = group_commit.redeem(request)
            if code == CODES[0]:
                redemption_rollback.roll_back_redemption(done.public_id, **ROLLBACK)
                group_commit.redeem(RedemptionRequest(channel="api", code=code, email=email, metadata={"a": 2}))
    run_sql("update redemption set redeemed_at = :at", at=NOW)


def list_rows_with_data(table: str = "redemption") -> set[tuple[int, int]]:
    statement = f"select offer_id, customer_id from {table} where order_metadata is not null"
    return {(offer_id, customer_id) for offer_id, customer_id in db.session.execute(text(statement))}


# --- data sent with redemptions -------------------------------------------------------------------


def test_an_erasure_keeps_the_data_of_other_customers(
    redemptions: None, offers: list[int], customers: list[int]
) -> None:
    ada, bob = customers
    erasure.erase_redemption_data([ada])
    db.session.commit()

    assert list_rows_with_data() == {(offer_id, bob) for offer_id in offers}
    assert list_rows_with_data("rollback") == {(offers[0], bob)}
    reasons = db.session.execute(text("select customer_id, reason from rollback")).all()
    assert {customer_id for customer_id, reason in reasons if reason == ROLLBACK["reason"]} == {bob}


def test_the_data_of_other_offers_and_customers_stays_when_that_of_one_expires(
    redemptions: None, offers: list[int], customers: list[int]
) -> None:
    run_sql(
        "update redemption set redeemed_at = redeemed_at - interval '11 days'"
        " where (offer_id, customer_id) = (:offer_id, :customer_id)",
        offer_id=offers[0], customer_id=customers[0],
    )  # fmt: skip
    run_sql(
        "update rollback set rolled_back_at = rolled_back_at - interval '11 days' where customer_id = :customer_id",
        customer_id=customers[1],
    )
    assert (retention.count_old_redemptions(10, 100), retention.count_old_redemptions(10, 1)) == (2, 1)

    assert sum(retention.clear_old_redemption_data(10)) == 2
    db.session.commit()

    assert list_rows_with_data() == {
        (offers[0], customers[1]), (offers[1], customers[0]), (offers[1], customers[1])
    }  # fmt: skip
    assert list_rows_with_data("rollback") == {(offers[0], customers[0])}


def test_data_expires_although_a_customer_has_redeemed_two_offers_at_one_moment(
    redemptions: None, offers: list[int], customers: list[int]
) -> None:
    """The steps of one offer neither clear nor count the rows of another offer."""
    run_sql("update redemption set redeemed_at = redeemed_at - interval '11 days'")

    cleared = [count for count in retention.clear_old_redemption_data(10) if count]
    db.session.commit()

    assert (cleared, list_rows_with_data()) == ([2, 2], set())
    assert retention.count_old_redemptions(10, 100) == 0


@pytest.fixture
def old_redemptions(redemptions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All redemptions are old, those of each offer at two times, and are cleared one by one."""
    monkeypatch.setattr(retention, "ROWS_PER_STEP", 1)
    run_sql("update redemption set redeemed_at = redeemed_at - make_interval(days => 10 + cast(customer_id as int))")


def test_data_expires_after_a_block_that_is_exactly_full(old_redemptions: None) -> None:
    assert sum(itertools.islice(retention.clear_old_redemption_data(10), MAX_STEPS)) == 4
    db.session.commit()

    assert list_rows_with_data() == set()


def test_a_locked_redemption_ends_the_steps_of_its_offer_only(
    old_redemptions: None, offers: list[int], customers: list[int]
) -> None:
    with db.engine.connect() as other:
        oldest = {"offer": offers[0], "customer": customers[1]}
        lock = "select from redemption where (offer_id, customer_id) = (:offer, :customer) for update"
        other.execute(text(lock), oldest)
        cleared = list(itertools.islice(retention.clear_old_redemption_data(10), MAX_STEPS))
        db.session.commit()

    assert len(cleared) < MAX_STEPS
    assert (sum(cleared), list_rows_with_data()) == (2, {(offers[0], customer_id) for customer_id in customers})
    assert sum(itertools.islice(retention.clear_old_redemption_data(10), MAX_STEPS)) == 2


def test_a_younger_undone_redemption_of_the_same_customer_and_offer_stays(
    offers: list[int], customers: list[int]
) -> None:
    for _ in range(2):
        done = group_commit.redeem(RedemptionRequest(channel="api", code=CODES[0], email=EMAILS[0]))
        redemption_rollback.roll_back_redemption(done.public_id, **ROLLBACK)
    run_sql(
        "update rollback set rolled_back_at = rolled_back_at - interval '11 days'"
        " where redeemed_at = (select min(redeemed_at) from rollback)"
    )

    assert sum(retention.clear_old_redemption_data(10)) == 1
    db.session.commit()

    reasons = db.session.scalars(text("select reason from rollback order by redeemed_at")).all()
    assert reasons == [EXPIRED_REASON, ROLLBACK["reason"]]


@pytest.mark.parametrize("rows_per_step", [1, 1000])
def test_an_undone_redemption_that_is_locked_does_not_stop_the_others(
    redemptions: None, customers: list[int], monkeypatch: pytest.MonkeyPatch, rows_per_step: int
) -> None:
    monkeypatch.setattr(retention, "ROWS_PER_STEP", rows_per_step)
    run_sql("update rollback set rolled_back_at = rolled_back_at - interval '11 days'")
    with db.engine.connect() as other:
        other.execute(text("select from rollback where customer_id = :id for update"), {"id": customers[0]})
        # Without SKIP LOCKED the statement would wait, and this makes it fail instead.
        db.session.execute(text("set local lock_timeout = '100ms'"))

        assert sum(itertools.islice(retention.clear_old_redemption_data(10), MAX_STEPS)) == 1
    db.session.rollback()


# --- guessing -------------------------------------------------------------------------------------


def add_failed_attempts(offer_id: int, n: int) -> None:
    run_sql(
        "insert into code_miss (offer_id, slot, minute, n) values (:id, extract(minute from now()),"
        " date_trunc('minute', now()), :n) on conflict (offer_id, slot) do update set n = excluded.n",
        id=offer_id, n=n,
    )  # fmt: skip


def add_redemptions(offer_id: int, n: int) -> None:
    run_sql(
        "insert into redemption (customer_id, offer_id, channel) select n, :id, 'form' from generate_series(1, :n) n",
        id=offer_id, n=n,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("attempts", "redemptions", "is_alert"), [(29, 0, False), (30, 0, True), (30, 119, True), (30, 120, False)]
)
def test_an_alert_depends_on_the_redemptions_of_the_offer_alone(
    offers: list[int], attempts: int, redemptions: int, is_alert: bool
) -> None:
    add_redemptions(offers[1], 200)
    add_failed_attempts(offers[1], 29)
    add_failed_attempts(offers[0], attempts)
    add_redemptions(offers[0], redemptions)

    expected = {offers[0]: attempts} if is_alert else {}
    assert guessing.find_guessing_alerts(offers) == guessing.list_top_guessing_alerts(9) == expected
    assert guessing.find_guessing_alerts(offers[1:]) == {}


@pytest.mark.parametrize(
    ("attempts", "redemptions", "is_blocked"),
    [(999, 0, False), (1000, 0, True), (1000, 999, True), (1000, 1000, False)],
)
def test_a_block_depends_on_the_redemptions_of_the_offer_alone(
    offers: list[int], attempts: int, redemptions: int, is_blocked: bool
) -> None:
    add_redemptions(offers[1], 1001)
    add_failed_attempts(offers[1], 999)
    add_failed_attempts(offers[0], attempts)
    add_redemptions(offers[0], redemptions)

    assert [guessing.is_code_blocked(code) for code in CODES] == [is_blocked, False]


# --- client addresses -----------------------------------------------------------------------------


def test_addresses_over_the_limit_are_those_of_the_offers_in_the_last_hour(offers: list[int]) -> None:
    for offer_id, minutes in ((offers[0], 59), (offers[0], 61), (offers[1], 1)):
        run_sql(
            "insert into address_excess values (:id, :address, now() - make_interval(mins => :minutes))",
            id=offer_id, address=f"192.0.2.{minutes}", minutes=minutes,
        )  # fmt: skip

    assert address_limit.count_addresses_over_limit(offers[:1]) == {offers[0]: 1}
    assert address_limit.list_offers_over_address_limit(9) == {offers[0]: 1, offers[1]: 1}


@pytest.fixture
def impatient_connection(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes a statement that waits for a lock fail."""
    connect = address_limit._autocommit_connection

    def connect_impatiently() -> Connection:
        connection = connect()
        connection.exec_driver_sql("set lock_timeout = '100ms'")
        return connection

    monkeypatch.setattr(address_limit, "_autocommit_connection", connect_impatiently)
    yield
    db.engine.dispose()


def test_expired_addresses_that_another_transaction_has_locked_are_skipped(
    offers: list[int], impatient_connection: None
) -> None:
    for address, minutes in (("locked", 61), ("free", 61), ("open", 59)):
        values = {"address": address, "minutes": minutes, "id": offers[0]}
        run_sql(
            "insert into address_customers (address, customers, expires_at)"
            " values (:address, '{}', now() + make_interval(mins => 60 - :minutes))",
            **values,
        )
        run_sql("insert into address_excess values (:id, :address, now() - make_interval(mins => :minutes))", **values)
    tables = ("address_customers", "address_excess")
    with db.engine.connect() as other:
        for table in tables:
            other.execute(text(f"select from {table} where address = 'locked' for update"))
        address_limit.delete_expired_addresses()

    for table in tables:
        remaining = db.session.scalars(text(f"select address from {table} order by address")).all()
        assert remaining == ["locked", "open"]


# --- redeeming ------------------------------------------------------------------------------------


def test_customers_who_exceed_the_cap_of_an_offer_keep_their_redemptions_of_another(
    offers: list[int], customers: list[int]
) -> None:
    run_sql("update offer set max_redemptions = 1 where id = :id", id=offers[0])
    run_sql("update offer_counter set max_redemptions = 1 where offer_id = :id", id=offers[0])
    for code in reversed(CODES):
        redemption_actions.redeem_all([RedemptionRequest(channel="api", code=code, email=email) for email in EMAILS])

    stored = db.session.execute(text("select offer_id, customer_id from redemption order by 1, 2")).all()
    assert stored == [(offers[0], customers[0]), (offers[1], customers[0]), (offers[1], customers[1])]


# --- customers ------------------------------------------------------------------------------------


def test_customers_who_redeemed_another_offer_have_not_redeemed_this_one(
    redemptions: None, offers: list[int], customers: list[int]
) -> None:
    ada, bob = customers
    run_sql("delete from redemption where (offer_id, customer_id) = (:offer, :ada)", offer=offers[0], ada=ada)

    assert [redemption_queries.find_redeemed_customer_ids(offer_id, customers) for offer_id in offers] == [
        {bob},
        {ada, bob},
    ]
    assert redemption_queries.find_redeemed_customer_ids(offers[1], [bob]) == {bob}


def test_the_redemptions_of_a_customer_are_those_of_no_other(
    redemptions: None, offers: list[int], customers: list[int]
) -> None:
    for customer_id in customers:
        listed = redemption_queries.list_customer_redemptions(customer_id)
        streamed = list(redemption_queries.iter_customer_redemptions(customer_id))

        assert sorted(record.public_id for record in streamed) == sorted(record.public_id for record in listed)
        assert sorted((record.offer_id, record.row.rolled_back_at is None) for record in listed) == [
            (offers[0], False), (offers[0], True), (offers[1], True)
        ]  # fmt: skip
        assert {record.customer_id for record in listed} == {customer_id}


def test_members_of_another_audience_may_not_redeem(offers: list[int], customers: list[int]) -> None:
    regulars, guests = Audience(name="Regulars"), Audience(name="Guests")
    db.session.add_all([regulars, guests])
    db.session.flush()
    for audience, customer_id in zip((regulars, guests), customers, strict=True):
        db.session.add(AudienceMember(audience_id=audience.id, customer_id=customer_id))
    run_sql("update offer set audience_id = :audience where id = :offer", audience=regulars.id, offer=offers[0])

    reasons = [
        evaluate(redemption_facts.load_facts([RedemptionRequest(channel="api", code=CODES[0], email=email)])[0]).reason
        for email in EMAILS
    ]

    assert reasons == [None, "customer_not_eligible"]


def test_the_first_redemption_freezes_its_offer_only(offers: list[int], customers: list[int]) -> None:
    group_commit.redeem(RedemptionRequest(channel="api", code=CODES[0], email=EMAILS[0]))

    assert db.session.scalars(text("select id from offer where frozen_at is not null")).all() == offers[:1]


# --- counts ---------------------------------------------------------------------------------------


def test_the_days_of_one_offer_do_not_include_another(offers: list[int]) -> None:
    add_redemptions(offers[0], 2)
    add_redemptions(offers[1], 3)
    run_sql("update redemption set redeemed_at = :at", at=NOW)

    since = NOW - timedelta(days=1)
    assert [count_queries.count_redemptions_per_day(offer_id, since) for offer_id in (*offers, None)] == [
        [(NOW.date(), count)] for count in (2, 3, 5)
    ]
    assert count_queries.count_redemptions(offers) == dict(zip(offers, (2, 3), strict=True))


def test_a_day_whose_redemptions_were_undone_is_omitted(offers: list[int], customers: list[int]) -> None:
    done = group_commit.redeem(RedemptionRequest(channel="api", code=CODES[0], email=EMAILS[0]))
    run_sql("update redemption set redeemed_at = :at", at=NOW - timedelta(hours=3))
    hourly_counts.update_hourly_counts()
    moved = redemption_queries.find_current_redemption(offers[0], done.customer_id)
    assert moved is not None
    redemption_rollback.roll_back_redemption(moved.public_id, **ROLLBACK)

    since = NOW - timedelta(days=2)
    assert [count_queries.count_redemptions_per_day(offer_id, since) for offer_id in (offers[0], None)] == [[], []]
