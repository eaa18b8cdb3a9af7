"""Never above the cap, every unit sold, nobody waiting in a circle: many processes, actions and the network together.

What is asked is drawn by chance from fixed seeds; what meets what at which moment is up to the machine.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
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
from webapp.accounts import api_key_actions
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import RedemptionRequest

pytestmark = pytest.mark.xdist_group("concurrent processes")

PROCESSES = 4
CAP = 20
MakeOffer = Callable[..., Offer]


@pytest.fixture(scope="module")
def crowd(test_settings: Settings) -> Iterator[Processes]:
    """The processes of all tests here: to start one takes longer than a test."""
    with processes(test_settings, PROCESSES) as found:
        yield found


@pytest.fixture
def emails(app: Flask) -> tuple[str, ...]:
    """Three customers for every unit of the cap."""
    made = tuple(f"c{n}@example.com" for n in range(3 * CAP))
    db.session.add_all(Customer(email=email, email_as_given=email, name="") for email in made)
    db.session.commit()
    return made


@pytest.fixture
def shop(app: Flask) -> Iterator[ShopClient]:
    """A machine that calls the real web server, in two more processes."""
    key = api_key_actions.create_api_key("tests", ["redeem"], by="tests")
    with live_server.web_server(app.config["SETTINGS"], workers=2) as web:
        yield ShopClient(web.url, key)


COUNTS = "select (select count(*) from redemption where offer_id = o.id), o.redeemed, o.max_redemptions from offer o"


@contextmanager
def watched(app: Flask) -> Iterator[set[tuple[int, int, int]]]:
    """What rows, counter and cap of the one offer were, seen together at every moment one could look."""
    seen: set[tuple[int, int, int]] = set()
    over = threading.Event()

    def look() -> None:
        with app.app_context(), db.engine.connect() as connection:
            while not over.is_set():
                seen.add(tuple(connection.execute(text(COUNTS)).one()))
                connection.rollback()
                over.wait(0.002)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def rollbacks() -> list[Any]:
    return list(db.session.execute(text("select * from rollback")))


def counts() -> list[tuple[int, int, int]]:
    db.session.rollback()
    return [tuple(row) for row in db.session.execute(text(f"{COUNTS} order by o.id"))]


def deadlocks() -> int:
    found = text("select pg_stat_clear_snapshot(), deadlocks from pg_stat_database where datname = current_database()")
    return int(db.session.execute(found).one().deadlocks)


def of(heard: list[Outcome], what: str) -> list[str]:
    return [answer.public_id for answer in heard if answer.result == what]


def test_many_processes_sell_every_unit_of_a_cap_again_that_was_rolled_back(
    app: Flask, crowd: Processes, make_offer: MakeOffer, emails: tuple[str, ...], shop: ShopClient
) -> None:
    code = make_offer(max_redemptions=CAP).code
    tills = [Till(n, code, emails, rolls_back=True) for n in range(3 * PROCESSES + 4)]

    with watched(app) as seen, ThreadPoolExecutor(4) as network:
        shops = [network.submit(shop.run_till, till) for till in tills[:4]]
        heard = [answer for found in crowd.each(run_till, tills[4:]) for answer in found]
        heard += [answer for one in shops for answer in one.result()]
        # Whoever heard "used up" before a unit came back comes again; nothing is undone any more.
        last = Till(0, code, emails)
        heard += shop.run_till(last)

    assert all(rows == counter <= cap == CAP for rows, counter, cap in seen)
    assert counts() == [(CAP, CAP, CAP)]
    undone = rollbacks()
    assert len(undone) > CAP
    assert len(set(of(heard, "redeemed"))) == len(of(heard, "redeemed")) == CAP + len(undone)
    assert len(set(of(heard, "undone"))) == len(of(heard, "undone")) == len(undone)
    assert set(of(heard, "undone")) < set(of(heard, "redeemed"))
    assert {row.reason for row in undone} == {"order cancelled"}
    assert {row.rolled_back_by for row in undone} > {"key tests"}
    told = Counter(answer.result for answer in heard)
    assert told.keys() <= {"redeemed", "undone", "already_redeemed", "offer_exhausted", "already_rolled_back"}


@pytest.mark.slow
def test_of_many_processes_that_undo_the_same_redemptions_one_wins_each(
    crowd: Processes, make_offer: MakeOffer, emails: tuple[str, ...]
) -> None:
    offer = make_offer(max_redemptions=CAP)
    asks = [RedemptionRequest(channel="api", code=offer.code, email=email) for email in emails[:20]]
    assert not [answer for answer in redemption_actions.redeem_all(asks) if isinstance(answer, Exception)]
    ids = tuple(done.public_id for done in redemption_queries.list_latest_redemptions(offer.id, 20))

    found = crowd.each(roll_back_all, [(ids, f"clerk {n}") for n in range(8)])

    heard = [answer for answers in found for answer in answers]
    assert sorted(of(heard, "undone")) == sorted(ids)
    assert Counter(answer.result for answer in heard) == {"undone": 20, "already_rolled_back": 7 * 20}
    winners = {answer.public_id: answer.caller for answer in heard if answer.result == "undone"}
    assert {done.public_id: done.row.rolled_back_by for e in asks for done in _of(e)} == winners
    assert counts() == [(0, 0, CAP)]


def _of(ask: RedemptionRequest) -> list[redemption_queries.RedemptionRecord]:
    customer = db.session.query(Customer).filter_by(email=ask.email).one()
    return redemption_queries.list_customer_redemptions(customer.id)


@pytest.mark.slow
def test_batches_of_many_processes_that_overlap_in_offers_and_customers_never_wait_in_a_circle(
    crowd: Processes, make_offer: MakeOffer, emails: tuple[str, ...]
) -> None:
    people = emails[:16]
    codes = tuple(make_offer(f"CODE{n}", max_redemptions=12 if n % 2 else None).code for n in range(4))
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code=code, email=emails[-1]) for code in codes])
    before = deadlocks()
    wholesalers = [Wholesaler(n, codes, people, rounds=25, batch=24) for n in range(3 * PROCESSES)]

    found = crowd.each(run_wholesaler, wholesalers)
    heard = [answer for answers in found for answer in answers]
    live_now = len(of(heard, "redeemed")) - len(of(heard, "undone")) + len(codes)

    assert deadlocks() == before
    told = Counter(answer.result for answer in heard)
    assert told.keys() <= {"redeemed", "undone", "already_redeemed", "offer_exhausted"}
    assert told["undone"] > 100
    assert sum(rows for rows, _, _ in counts()) == live_now
    assert all(counter == (0 if cap is None else rows) for rows, counter, cap in counts())
    every = [RedemptionRequest(channel="api", code=code, email=email) for code in codes for email in people]
    redemption_actions.redeem_all(every)
    assert [rows for rows, _, _ in counts()] == [len(people) + 1, 12] * 2
