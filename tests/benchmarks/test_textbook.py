"""The textbook ways of redeeming do what they promise, and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy.orm import Session

from benchmarks import customers, jobs, textbook
from benchmarks.textbook import WAYS, Asked, ForUpdate, OneStatement, OrmHabit, PlainInsert
from tests.support.benchmark_clients import CUSTOMERS
from webapp.core.settings import Settings
from webapp.offers.models import Offer

THREADS = 8
Way = OrmHabit | ForUpdate | OneStatement | PlainInsert


@pytest.fixture
def people(connection: psycopg.Connection) -> None:
    customers.fill(connection, CUSTOMERS)


@pytest.fixture(params=[*WAYS, OneStatement], ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest, people: None, test_settings: Settings) -> Iterator[Way]:
    """Each way in turn."""
    with request.param(test_settings.libpq_url, THREADS) as way:
        yield way


@pytest.fixture
def orm(people: None, test_settings: Settings) -> Iterator[OrmHabit]:
    with OrmHabit(test_settings.libpq_url, THREADS) as way:
        yield way


def asks(offer: Offer, numbers: range) -> list[Asked]:
    return [textbook.ask(offer.id, offer.code, number) for number in numbers]


def redeem_at_once(way: Way, wanted: list[Asked]) -> int:
    """By eight threads; how many were told that it is redeemed."""

    def each(part: list[Asked]) -> int:
        return sum(way.redeem(asked) for asked in part)

    return sum(jobs.side_by_side(each, [wanted[k::THREADS] for k in range(THREADS)]))


def rows(connection: psycopg.Connection, offer: Offer) -> int:
    row = connection.execute("select count(*) from redemption where offer_id = %s", [offer.id]).fetchone()
    return row[0] if row else 0


def counted(connection: psycopg.Connection, offer: Offer) -> int:
    row = connection.execute("select redeemed from offer where id = %s", [offer.id]).fetchone()
    return row[0] if row else 0


def test_every_customer_redeems_once(
    way: Way, make_offer: Callable[..., Offer], connection: psycopg.Connection
) -> None:
    live = make_offer()
    everybody = asks(live, range(1, CUSTOMERS + 1))
    assert (redeem_at_once(way, everybody), redeem_at_once(way, everybody)) == (CUSTOMERS, 0)
    assert rows(connection, live) == CUSTOMERS


def test_one_customer_at_once_in_many_threads_redeems_once(
    way: Way, make_offer: Callable[..., Offer], connection: psycopg.Connection
) -> None:
    live = make_offer()
    assert redeem_at_once(way, asks(live, range(1, 2)) * 24) == 1
    assert rows(connection, live) == 1


@pytest.mark.parametrize("kind", [OrmHabit, ForUpdate, OneStatement])
def test_alone_a_cap_is_kept(
    kind: type[OrmHabit | ForUpdate | OneStatement],
    people: None,
    make_offer: Callable[..., Offer],
    test_settings: Settings,
) -> None:
    capped = make_offer(max_redemptions=3)
    with kind(test_settings.libpq_url, 1) as way:
        assert [way.redeem(asked) for asked in asks(capped, range(1, 6))] == [True, True, True, False, False]


@pytest.mark.parametrize("kind", [OrmHabit, ForUpdate, OneStatement])
def test_unknown_codes_and_customers_are_refused(
    kind: type[OrmHabit | ForUpdate | OneStatement],
    people: None,
    make_offer: Callable[..., Offer],
    test_settings: Settings,
) -> None:
    live = make_offer()
    with kind(test_settings.libpq_url, 1) as way:
        unknown = [textbook.ask(live.id, "NOSUCHCODE", 1), textbook.ask(live.id, live.code, CUSTOMERS + 1)]
        assert [way.redeem(asked) for asked in unknown] == [False, False]


@pytest.mark.parametrize("way", [ForUpdate, OneStatement], indirect=True)
def test_what_claims_to_be_exact_keeps_the_cap_in_many_threads(
    way: Way, make_offer: Callable[..., Offer], connection: psycopg.Connection
) -> None:
    capped = make_offer(max_redemptions=10)
    assert redeem_at_once(way, asks(capped, range(1, CUSTOMERS + 1))) == 10
    assert (rows(connection, capped), counted(connection, capped)) == (10, 10)


def test_the_habit_sells_the_last_unit_to_all_who_check_at_once(
    orm: OrmHabit, make_offer: Callable[..., Offer], connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = make_offer(max_redemptions=1)
    everybody_has_checked = threading.Barrier(3, timeout=30)
    insert = textbook._insert

    def insert_after_all_have_checked(session: Session, customer_id: int, offer_id: int) -> bool:
        everybody_has_checked.wait()
        return insert(session, customer_id, offer_id)

    monkeypatch.setattr(textbook, "_insert", insert_after_all_have_checked)
    assert jobs.side_by_side(orm.redeem, asks(capped, range(1, 4))) == [True, True, True]
    assert rows(connection, capped) == 3
