"""Totals and hours are counted once by the sweep and say the same as a plain count, whatever is undone when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.redemptions import ROLLBACK, MakeCustomer, MakeOffer, run_concurrently
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions import group_commit, hourly_counts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import RedemptionRequest

CODES = ["SUMMER25", "WINTER10", "SPRING5"]


@pytest.fixture
def redeemed(offer: MakeOffer, customer: MakeCustomer) -> list[int]:
    """Three offers that eight customers each have redeemed, two of them in every hour of the last ones."""
    offers = [offer(code).id for code in CODES]
    for n in range(8):
        email = customer(f"c{n}@example.com").email
        for code in CODES:
            group_commit.redeem(RedemptionRequest(channel="api", code=code, email=email))
    db.session.execute(
        text("update redemption set redeemed_at = redeemed_at - make_interval(hours => cast(customer_id % 4 as int))")
    )
    db.session.commit()
    return offers


def public_ids() -> list[str]:
    return [done.public_id for done in redemption_queries.list_latest_redemptions(None, 100)]


def assert_counted_right(offers: list[int]) -> None:
    """What is read, and what is kept for it, is what a plain count finds."""
    since = datetime.now(UTC) - timedelta(days=2)
    plain = {
        row.offer_id: row.n
        for row in db.session.execute(text("select offer_id, count(*) as n from redemption group by 1"))
    }
    assert redemption_queries.count_redemptions(offers) == {offer_id: plain.get(offer_id, 0) for offer_id in offers}
    days = {
        offer_id: sum(n for _, n in redemption_queries.count_redemptions_per_day(offer_id, since))
        for offer_id in offers
    }
    assert days == redemption_queries.count_redemptions(offers)
    assert sum(n for _, n in redemption_queries.count_redemptions_per_day(None, since)) == sum(plain.values())
    for kept, key in (("redemption_total", "offer_id"), ("hour_total", "hour")):
        wrong = text(
            f"select {key}, sum(n) from (select {key}, n from {kept} union all select {key}, -n from redemption_hour) x"
            " group by 1 having sum(n) <> 0"
        )
        assert db.session.execute(wrong).all() == []


def counted() -> int:
    return int(db.session.execute(text("select coalesce(sum(n), 0) from redemption_total")).scalar_one())


def test_totals_are_a_plain_count_before_and_after_the_sweep(redeemed: list[int]) -> None:
    assert_counted_right(redeemed)
    hourly_counts.update_hourly_counts()
    hourly_counts.update_hourly_counts()
    assert counted() >= 12
    assert_counted_right(redeemed)


def test_a_later_sweep_adds_to_the_totals(redeemed: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    before = counted()
    # What was counted of the past moves further back with the rest, so that the current hour can be counted.
    for statement in (
        "update redemption set redeemed_at = redeemed_at - interval '4 hours'",
        "update redemption_hour set hour = hour - interval '4 hours'",
        "update hour_total set hour = hour - interval '4 hours'",
        "update redemption_tally set counted_until = counted_until - interval '4 hours'",
    ):
        db.session.execute(text(statement))
    db.session.commit()
    hourly_counts.update_hourly_counts()
    assert (before < counted(), counted()) == (True, 24)
    assert_counted_right(redeemed)


@pytest.fixture
def stop_clock(app: Flask) -> Iterator[Callable[[str], None]]:
    """Stops the clock of the database at a time, until the transaction of the session ends."""
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
    offer: MakeOffer,
    customer: MakeCustomer,
    stop_clock: Callable[[str], None],
    redeemed_at: str,
    clock: str,
    is_counted: bool,
) -> None:
    offer(), customer()
    group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com"))
    db.session.execute(text("update redemption set redeemed_at = :at"), {"at": redeemed_at})
    db.session.commit()

    stop_clock(clock)
    hourly_counts.update_hourly_counts()

    assert counted() == is_counted


def test_a_redemption_at_the_very_start_of_an_uncounted_hour_is_counted_once(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer_id = offer().id
    customer()
    group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com"))
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    db.session.execute(text("update redemption set redeemed_at = :at"), {"at": noon})
    db.session.execute(text("update redemption_tally set counted_until = :at"), {"at": noon})
    db.session.commit()

    for _ in range(2):
        assert redemption_queries.count_redemptions([offer_id]) == {offer_id: 1}
        for since in (noon, noon - timedelta(hours=1)):
            for one in (offer_id, None):
                assert redemption_queries.count_redemptions_per_day(one, since) == [(noon.date(), 1)]
        later = noon + timedelta(microseconds=1)
        assert redemption_queries.count_redemptions_per_day(offer_id, later) == []
        hourly_counts.update_hourly_counts()


def test_undoing_before_and_after_the_sweep_leaves_them_right(redeemed: list[int]) -> None:
    ids = public_ids()
    for public_id in ids[::4]:
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
    assert_counted_right(redeemed)
    hourly_counts.update_hourly_counts()
    for public_id in ids[1::4]:
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
    assert_counted_right(redeemed)


def test_undoing_what_no_sweep_has_counted_takes_nothing_off(redeemed: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    before = counted()
    redemption_rollback.roll_back_redemption(public_ids()[0], **ROLLBACK)
    assert counted() == before
    assert_counted_right(redeemed)


def test_undoing_twice_counts_once(redeemed: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    oldest = public_ids()[-1]
    assert [_undone(oldest), _undone(oldest)] == [True, False]
    assert_counted_right(redeemed)


def _undone(public_id: str) -> bool:
    try:
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)
    except DomainError:
        return False
    return True


def test_many_undone_at_once_of_counted_hours_all_count(app: Flask, redeemed: list[int]) -> None:
    hourly_counts.update_hourly_counts()
    run_concurrently(
        app, *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in public_ids()[::2]]
    )
    assert_counted_right(redeemed)


def test_undoing_while_a_sweep_runs_leaves_them_right(app: Flask, redeemed: list[int]) -> None:
    run_concurrently(
        app,
        *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in public_ids()[::2]],
        *[hourly_counts.update_hourly_counts] * 3,
    )
    assert_counted_right(redeemed)


def test_a_reader_never_sees_a_redemption_twice_or_not_at_all_while_the_sweep_commits(
    app: Flask, redeemed: list[int]
) -> None:
    seen: list[dict[int, int]] = []
    done = threading.Event()

    def look() -> None:
        with app.app_context():
            while not done.is_set():
                seen.append(redemption_queries.count_redemptions(redeemed))
                db.session.rollback()

    reader = threading.Thread(target=look)
    reader.start()
    while not seen:
        db.session.rollback()
    hourly_counts.update_hourly_counts()
    done.set()
    reader.join()
    assert {tuple(sorted(one.items())) for one in seen} == {tuple((offer_id, 8) for offer_id in sorted(redeemed))}


@pytest.fixture
def migrate(app: Flask) -> Iterator[Callable[[str], None]]:
    """Takes the tables down to a revision, or up to the newest; there they are when the test is over."""

    def move(revision: str) -> None:
        db.session.remove()
        if revision == "head":
            flask_migrate.upgrade()
        else:
            flask_migrate.downgrade(revision=revision)

    yield move
    move("head")


def test_the_migration_sums_the_hours_that_are_there(redeemed: list[int], migrate: Callable[[str], None]) -> None:
    hourly_counts.update_hourly_counts()
    before = counted()
    migrate("0005")
    migrate("head")
    assert counted() == before > 0
    assert_counted_right(redeemed)
