"""Totals and hourly counts of the sweep equal a plain count, also after rollbacks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import ROLLBACK, run_concurrently
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions import count_queries, group_commit, hourly_counts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import RedemptionRequest

CODES = ["SUMMER25", "WINTER10", "SPRING5"]


@pytest.fixture
def redeemed_offers(make_offer: MakeOffer, make_customer: MakeCustomer) -> list[int]:
    """Three offers with eight redemptions each, two in each of the last four hours."""
    offers = [make_offer(code).id for code in CODES]
    for n in range(8):
        email = make_customer(f"c{n}@example.com").email
        for code in CODES:
            group_commit.redeem(RedemptionRequest(channel="api", code=code, email=email))
    db.session.execute(
        text("update redemption set redeemed_at = redeemed_at - make_interval(hours => cast(customer_id % 4 as int))")
    )
    db.session.commit()
    return offers


def public_ids() -> list[str]:
    return [redemption.public_id for redemption in redemption_queries.list_latest_redemptions(None, 100)]


def assert_correct_counts(offers: list[int]) -> None:
    """Assert that the queries and the tables have the same counts as a plain count."""
    since = datetime.now(UTC) - timedelta(days=2)
    plain = {
        row.offer_id: row.n
        for row in db.session.execute(text("select offer_id, count(*) as n from redemption group by 1"))
    }
    assert count_queries.count_redemptions(offers) == {offer_id: plain.get(offer_id, 0) for offer_id in offers}
    days = {
        offer_id: sum(n for _, n in count_queries.count_redemptions_per_day(offer_id, since)) for offer_id in offers
    }
    assert days == count_queries.count_redemptions(offers)
    assert sum(n for _, n in count_queries.count_redemptions_per_day(None, since)) == sum(plain.values())
    for table, key in (("redemption_total", "offer_id"), ("hour_total", "hour")):
        differences = text(
            f"select {key}, sum(n) from "
            f"(select {key}, n from {table} union all select {key}, -n from redemption_hour) x"
            " group by 1 having sum(n) <> 0"
        )
        assert db.session.execute(differences).all() == []


def total_count() -> int:
    return int(db.session.execute(text("select coalesce(sum(n), 0) from redemption_total")).scalar_one())


def test_totals_are_correct_before_and_after_the_sweep(redeemed_offers: list[int]) -> None:
    assert_correct_counts(redeemed_offers)
    hourly_counts.update_hourly_counts()
    hourly_counts.update_hourly_counts()
    assert total_count() >= 12
    assert_correct_counts(redeemed_offers)


def test_a_later_sweep_adds_to_the_totals(redeemed_offers: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    before = total_count()
    # Everything moves four hours into the past, so that the sweep counts the current hour, too.
    for statement in (
        "update redemption set redeemed_at = redeemed_at - interval '4 hours'",
        "update redemption_hour set hour = hour - interval '4 hours'",
        "update hour_total set hour = hour - interval '4 hours'",
        "update redemption_tally set counted_until = counted_until - interval '4 hours'",
    ):
        db.session.execute(text(statement))
    db.session.commit()
    hourly_counts.update_hourly_counts()
    assert (before < total_count(), total_count()) == (True, 24)
    assert_correct_counts(redeemed_offers)


@pytest.fixture
def stop_clock(app: Flask) -> Iterator[Callable[[str], None]]:
    """Stops the database's clock at a time until the transaction ends."""
    db.session.execute(text("create schema stopped"))
    db.session.commit()

    def stop(at: str) -> None:
        db.session.execute(
            text(
                "create or replace function stopped.now() returns timestamptz language sql as "
                f"$$ select timestamptz '{at}' $$"
            )
        )
        db.session.execute(text("set local search_path = stopped, pg_catalog, public"))

    yield stop
    db.session.rollback()
    db.session.execute(text("drop schema stopped cascade"))
    db.session.commit()


def test_an_hour_waits_for_the_transactions_that_began_before_its_end(
    make_offer: MakeOffer, make_customer: MakeCustomer, stop_clock: Callable[[str], None]
) -> None:
    """A commit that waits for a missing standby may take hours."""
    values = {"offer_id": make_offer().id, "customer_id": make_customer().id}
    db.session.commit()
    with db.engine.connect() as other:
        redeemed_at = other.scalar(
            text(
                "insert into redemption (offer_id, customer_id, redeemed_at, channel) "
                "values (:offer_id, :customer_id, now(), 'api') returning redeemed_at"
            ),
            values,
        )
        assert redeemed_at is not None
        for commit in (other.commit, db.session.commit):
            stop_clock((redeemed_at + timedelta(hours=3)).isoformat())
            hourly_counts.update_hourly_counts()
            commit()

    assert total_count() == 1


@pytest.mark.parametrize(
    ("redeemed_at", "clock", "is_counted"),
    [
        ("2026-03-01T11:59:59.999999Z", "2026-03-01T12:04:59.999999Z", False),
        ("2026-03-01T11:59:59.999999Z", "2026-03-01T12:05:00Z", True),
        ("2026-03-01T12:00:00Z", "2026-03-01T13:04:59Z", False),
        ("2026-03-01T12:00:00Z", "2026-03-01T13:05:00Z", True),
    ],
)
def test_an_hour_is_counted_five_minutes_after_its_end(
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    stop_clock: Callable[[str], None],
    redeemed_at: str,
    clock: str,
    is_counted: bool,
) -> None:
    make_offer(), make_customer()
    group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com"))
    db.session.execute(text("update redemption set redeemed_at = :at"), {"at": redeemed_at})
    db.session.commit()

    stop_clock(clock)
    hourly_counts.update_hourly_counts()

    assert total_count() == is_counted


def test_a_redemption_at_the_start_of_an_uncounted_hour_is_counted_once(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer_id = make_offer().id
    make_customer()
    group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com"))
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    db.session.execute(text("update redemption set redeemed_at = :at"), {"at": noon})
    db.session.execute(text("update redemption_tally set counted_until = :at"), {"at": noon})
    db.session.commit()

    for _ in range(2):
        assert count_queries.count_redemptions([offer_id]) == {offer_id: 1}
        for since in (noon, noon - timedelta(hours=1)):
            for one in (offer_id, None):
                assert count_queries.count_redemptions_per_day(one, since) == [(noon.date(), 1)]
        later = noon + timedelta(microseconds=1)
        assert count_queries.count_redemptions_per_day(offer_id, later) == []
        hourly_counts.update_hourly_counts()


def test_totals_are_correct_after_rollbacks_before_and_after_the_sweep(redeemed_offers: list[int]) -> None:
    ids = public_ids()
    for public_id in ids[::4]:
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
    assert_correct_counts(redeemed_offers)
    hourly_counts.update_hourly_counts()
    for public_id in ids[1::4]:
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
    assert_correct_counts(redeemed_offers)


def test_a_rollback_of_an_uncounted_redemption_keeps_the_totals(redeemed_offers: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    before = total_count()
    redemption_rollback.roll_back_redemption(public_ids()[0], **ROLLBACK)
    assert total_count() == before
    assert_correct_counts(redeemed_offers)


def test_a_second_rollback_does_not_change_the_totals(redeemed_offers: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    oldest = public_ids()[-1]
    assert [_roll_back(oldest), _roll_back(oldest)] == [True, False]
    assert_correct_counts(redeemed_offers)


def _roll_back(public_id: str) -> bool:
    try:
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
    except DomainError:
        return False
    return True


def test_concurrent_rollbacks_all_change_the_totals(app: Flask, redeemed_offers: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    run_concurrently(
        app, *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in public_ids()[::2]]
    )
    assert_correct_counts(redeemed_offers)


def test_totals_are_correct_after_rollbacks_during_a_sweep(app: Flask, redeemed_offers: list[int]) -> None:
    run_concurrently(
        app,
        *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in public_ids()[::2]],
        *[hourly_counts.update_hourly_counts] * 3,
    )
    assert_correct_counts(redeemed_offers)


def test_a_query_during_the_sweep_counts_every_redemption_once(app: Flask, redeemed_offers: list[int]) -> None:
    observed: list[dict[int, int]] = []
    done = threading.Event()

    def observe() -> None:
        with app.app_context():
            while not done.is_set():
                observed.append(count_queries.count_redemptions(redeemed_offers))
                db.session.rollback()

    reader = threading.Thread(target=observe)
    reader.start()
    while not observed:
        db.session.rollback()
    hourly_counts.update_hourly_counts()
    done.set()
    reader.join()
    assert {tuple(sorted(counts.items())) for counts in observed} == {
        tuple((offer_id, 8) for offer_id in sorted(redeemed_offers))
    }


@pytest.fixture
def migrate(app: Flask) -> Iterator[Callable[[str], None]]:
    """Migrates the database to a revision; restores the newest one afterwards."""

    def move(revision: str) -> None:
        db.session.remove()
        if revision == "head":
            flask_migrate.upgrade()
        else:
            flask_migrate.downgrade(revision=revision)

    yield move
    move("head")


def test_the_migration_sums_the_existing_hours(redeemed_offers: list[int], migrate: Callable[[str], None]) -> None:
    hourly_counts.update_hourly_counts()
    before = total_count()
    migrate("0005")
    migrate("head")
    assert total_count() == before > 0
    assert_correct_counts(redeemed_offers)
