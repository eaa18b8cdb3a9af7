"""The textbook implementations of redeeming keep their guarantees, and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy.orm import Session

from benchmarks import customers, jobs, textbook
from benchmarks.textbook import IMPLEMENTATIONS, ForUpdate, OneStatement, OrmHabit, PlainInsert, TextbookRequest
from tests.support.benchmark_clients import CUSTOMERS
from webapp.core.settings import Settings
from webapp.offers.models import Offer

THREADS = 8
AnyImplementation = OrmHabit | ForUpdate | OneStatement | PlainInsert


@pytest.fixture
def filled(connection: psycopg.Connection) -> None:
    customers.fill(connection, CUSTOMERS)


@pytest.fixture(params=[*IMPLEMENTATIONS, OneStatement], ids=lambda implementation: implementation.__name__)
def implementation(
    request: pytest.FixtureRequest, filled: None, test_settings: Settings
) -> Iterator[AnyImplementation]:
    """Each implementation in turn."""
    with request.param(test_settings.libpq_url, THREADS) as implementation:
        yield implementation


@pytest.fixture
def orm(filled: None, test_settings: Settings) -> Iterator[OrmHabit]:
    with OrmHabit(test_settings.libpq_url, THREADS) as implementation:
        yield implementation


def make_requests(offer: Offer, numbers: range) -> list[TextbookRequest]:
    return [textbook.make_request(offer.id, offer.code, number) for number in numbers]


def redeem_concurrently(implementation: AnyImplementation, requests: list[TextbookRequest]) -> int:
    """Redeem in eight threads; return how many requests succeeded."""

    def redeem_part(part: list[TextbookRequest]) -> int:
        return sum(implementation.redeem(request) for request in part)

    return sum(jobs.run_in_threads(redeem_part, [requests[k::THREADS] for k in range(THREADS)]))


def count_rows(connection: psycopg.Connection, offer: Offer) -> int:
    row = connection.execute("select count(*) from redemption where offer_id = %s", [offer.id]).fetchone()
    return row[0] if row else 0


def read_counter(connection: psycopg.Connection, offer: Offer) -> int:
    row = connection.execute("select redeemed from offer_counter where offer_id = %s", [offer.id]).fetchone()
    return row[0] if row else 0


def test_every_customer_redeems_once(
    implementation: AnyImplementation, make_offer: Callable[..., Offer], connection: psycopg.Connection
) -> None:
    live = make_offer()
    requests = make_requests(live, range(1, CUSTOMERS + 1))
    assert (redeem_concurrently(implementation, requests), redeem_concurrently(implementation, requests)) == (
        CUSTOMERS,
        0,
    )
    assert count_rows(connection, live) == CUSTOMERS


def test_concurrent_requests_of_one_customer_redeem_once(
    implementation: AnyImplementation, make_offer: Callable[..., Offer], connection: psycopg.Connection
) -> None:
    live = make_offer()
    assert redeem_concurrently(implementation, make_requests(live, range(1, 2)) * 24) == 1
    assert count_rows(connection, live) == 1


@pytest.mark.parametrize("kind", [OrmHabit, ForUpdate, OneStatement])
def test_a_cap_is_kept_without_concurrency(
    kind: type[OrmHabit | ForUpdate | OneStatement],
    filled: None,
    make_offer: Callable[..., Offer],
    test_settings: Settings,
) -> None:
    capped = make_offer(max_redemptions=3)
    with kind(test_settings.libpq_url, 1) as implementation:
        assert [implementation.redeem(request) for request in make_requests(capped, range(1, 6))] == [
            True,
            True,
            True,
            False,
            False,
        ]


@pytest.mark.parametrize("kind", [OrmHabit, ForUpdate, OneStatement])
def test_unknown_codes_and_customers_are_refused(
    kind: type[OrmHabit | ForUpdate | OneStatement],
    filled: None,
    make_offer: Callable[..., Offer],
    test_settings: Settings,
) -> None:
    live = make_offer()
    with kind(test_settings.libpq_url, 1) as implementation:
        unknown = [
            textbook.make_request(live.id, "NOSUCHCODE", 1),
            textbook.make_request(live.id, live.code, CUSTOMERS + 1),
        ]
        assert [implementation.redeem(request) for request in unknown] == [False, False]


@pytest.mark.parametrize("implementation", [ForUpdate, OneStatement], indirect=True)
def test_exact_implementations_keep_the_cap_under_concurrency(
    implementation: AnyImplementation, make_offer: Callable[..., Offer], connection: psycopg.Connection
) -> None:
    capped = make_offer(max_redemptions=10)
    assert redeem_concurrently(implementation, make_requests(capped, range(1, CUSTOMERS + 1))) == 10
    assert (count_rows(connection, capped), read_counter(connection, capped)) == (10, 10)


def test_check_then_insert_exceeds_the_cap_under_concurrency(
    orm: OrmHabit, make_offer: Callable[..., Offer], connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = make_offer(max_redemptions=1)
    all_have_checked = threading.Barrier(3, timeout=30)
    insert = textbook._insert

    def insert_after_all_have_checked(session: Session, customer_id: int, offer_id: int) -> bool:
        all_have_checked.wait()
        return insert(session, customer_id, offer_id)

    monkeypatch.setattr(textbook, "_insert", insert_after_all_have_checked)
    assert jobs.run_in_threads(orm.redeem, make_requests(capped, range(1, 4))) == [True, True, True]
    assert count_rows(connection, capped) == 3
