"""Concurrent processes never exceed the cap, use all of it, and never deadlock.

The requests are random with fixed seeds; their interleaving depends on the machine.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support import live_server
from tests.support.chaos.concurrent_clients import (
    Outcome,
    Processes,
    ShopClient,
    Till,
    Wholesaler,
    processes,
    roll_back_all,
    run_till,
    run_wholesaler,
)
from tests.support.factories import MakeOffer
from webapp.accounts import api_key_actions
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import RedemptionRequest

pytestmark = pytest.mark.slow
PROCESSES = 4
CAP = 20


@pytest.fixture(scope="module")
def client_processes(test_settings: Settings) -> Iterator[Processes]:
    """The client processes, shared by all tests because starting them is slow."""
    with processes(test_settings, PROCESSES) as started:
        yield started


@pytest.fixture
def emails(app: Flask) -> tuple[str, ...]:
    """Three customers for every unit of the cap."""
    addresses = tuple(f"c{n}@example.com" for n in range(3 * CAP))
    db.session.add_all(Customer(email=email, email_as_given=email, name="") for email in addresses)
    db.session.commit()
    return addresses


@pytest.fixture
def shop(app: Flask) -> Iterator[ShopClient]:
    """An API client of the real web server, which has two worker processes."""
    key = api_key_actions.create_api_key("tests", ["redeem"], by="tests")
    with live_server.web_server(app.config["SETTINGS"], workers=2) as web:
        yield ShopClient(web.url, key)


COUNTS = (
    "select (select count(*) from redemption where offer_id = o.offer_id), o.redeemed, o.max_redemptions "
    "from offer_counter o"
)


@contextmanager
def observe_counts(app: Flask) -> Iterator[set[tuple[int, int, int]]]:
    """Collect every combination of rows, counter and cap of the only offer."""
    observed: set[tuple[int, int, int]] = set()
    stopped = threading.Event()

    def observe() -> None:
        with app.app_context(), db.engine.connect() as connection:
            while not stopped.is_set():
                observed.add(tuple(connection.execute(text(COUNTS)).one()))
                connection.rollback()
                stopped.wait(0.002)

    observer = threading.Thread(target=observe)
    observer.start()
    try:
        yield observed
    finally:
        stopped.set()
        observer.join()


def list_rollbacks() -> list[Any]:
    return list(db.session.execute(text("select * from rollback")))


def list_counts() -> list[tuple[int, int, int]]:
    db.session.rollback()
    return [tuple(row) for row in db.session.execute(text(f"{COUNTS} order by o.offer_id"))]


def count_deadlocks() -> int:
    query = text("select pg_stat_clear_snapshot(), deadlocks from pg_stat_database where datname = current_database()")
    return int(db.session.execute(query).one().deadlocks)


def ids_with_outcome(results: list[Outcome], outcome: str) -> list[str]:
    return [result.public_id for result in results if result.result == outcome]


def test_rolled_back_units_of_a_cap_are_redeemed_again(
    app: Flask, client_processes: Processes, make_offer: MakeOffer, emails: tuple[str, ...], shop: ShopClient
) -> None:
    code = make_offer(max_redemptions=CAP).code
    tills = [Till(n, code, emails, rolls_back=True) for n in range(3 * PROCESSES + 4)]

    with observe_counts(app) as observed, ThreadPoolExecutor(4) as network:
        shops = [network.submit(shop.run_till, till) for till in tills[:4]]
        results = [result for batch in client_processes.each(run_till, tills[4:]) for result in batch]
        results += [result for future in shops for result in future.result()]
        # Customers refused before a rollback freed a unit try again; no redemption is rolled back any more.
        last = Till(0, code, emails)
        results += shop.run_till(last)

    assert all(rows == counter <= cap == CAP for rows, counter, cap in observed)
    assert list_counts() == [(CAP, CAP, CAP)]
    rolled_back = list_rollbacks()
    assert len(rolled_back) > CAP
    assert (
        len(set(ids_with_outcome(results, "redeemed")))
        == len(ids_with_outcome(results, "redeemed"))
        == CAP + len(rolled_back)
    )
    assert len(set(ids_with_outcome(results, "undone"))) == len(ids_with_outcome(results, "undone")) == len(rolled_back)
    assert set(ids_with_outcome(results, "undone")) < set(ids_with_outcome(results, "redeemed"))
    assert {row.reason for row in rolled_back} == {"order cancelled"}
    assert {row.rolled_back_by for row in rolled_back} > {"API key tests"}
    outcomes = Counter(result.result for result in results)
    assert outcomes.keys() <= {"redeemed", "undone", "already_redeemed", "offer_exhausted", "already_rolled_back"}


def test_each_redemption_is_rolled_back_by_exactly_one_process(
    client_processes: Processes, make_offer: MakeOffer, emails: tuple[str, ...]
) -> None:
    offer = make_offer(max_redemptions=CAP)
    requests = [RedemptionRequest(channel="api", code=offer.code, email=email) for email in emails[:20]]
    assert not [result for result in redemption_actions.redeem_all(requests) if isinstance(result, Exception)]
    ids = tuple(redemption.public_id for redemption in redemption_queries.list_latest_redemptions(offer.id, 20))

    result_lists = client_processes.each(roll_back_all, [(ids, f"clerk {n}") for n in range(8)])

    results = [result for result_list in result_lists for result in result_list]
    assert sorted(ids_with_outcome(results, "undone")) == sorted(ids)
    assert Counter(result.result for result in results) == {"undone": 20, "already_rolled_back": 7 * 20}
    winners = {result.public_id: result.caller for result in results if result.result == "undone"}
    assert {
        redemption.public_id: redemption.row.rolled_back_by
        for request in requests
        for redemption in _redemptions_of(request)
    } == winners
    assert list_counts() == [(0, 0, CAP)]


def _redemptions_of(request: RedemptionRequest) -> list[redemption_queries.RedemptionRecord]:
    customer = db.session.query(Customer).filter_by(email=request.email).one()
    return redemption_queries.list_customer_redemptions(customer.id)


def test_concurrent_overlapping_batches_never_deadlock(
    client_processes: Processes, make_offer: MakeOffer, emails: tuple[str, ...]
) -> None:
    customer_emails = emails[:16]
    codes = tuple(make_offer(f"CODE{n}", max_redemptions=12 if n % 2 else None).code for n in range(4))
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code=code, email=emails[-1]) for code in codes])
    before = count_deadlocks()
    wholesalers = [Wholesaler(n, codes, customer_emails, rounds=25, batch=24) for n in range(3 * PROCESSES)]

    result_lists = client_processes.each(run_wholesaler, wholesalers)
    results = [result for result_list in result_lists for result in result_list]
    live_now = len(ids_with_outcome(results, "redeemed")) - len(ids_with_outcome(results, "undone")) + len(codes)

    assert count_deadlocks() == before
    outcomes = Counter(result.result for result in results)
    assert outcomes.keys() <= {"redeemed", "undone", "already_redeemed", "offer_exhausted"}
    assert outcomes["undone"] > 100
    assert sum(rows for rows, _, _ in list_counts()) == live_now
    assert all(counter == (0 if cap is None else rows) for rows, counter, cap in list_counts())
    all_requests = [
        RedemptionRequest(channel="api", code=code, email=email) for code in codes for email in customer_emails
    ]
    redemption_actions.redeem_all(all_requests)
    assert [rows for rows, _, _ in list_counts()] == [len(customer_emails) + 1, 12] * 2
