from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import psycopg
import pytest
from flask import Flask

from benchmarks import customers
from benchmarks.bank import Bank
from benchmarks.eager import Eager
from benchmarks.pool import VoucherPool
from tests.support.benchmark_clients import CUSTOMERS
from webapp.core.settings import Settings

Make = Callable[[type[VoucherPool]], VoucherPool]


@pytest.fixture(autouse=True)
def heard_again() -> Iterator[None]:
    """A benchmark switches warnings off for its process, in which other tests follow."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def connection(app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    """A look at the database beside the pool."""
    with psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def make(connection: psycopg.Connection, test_settings: Settings) -> Iterator[Make]:
    """Sets a kind of pool up, with customers; its tables go when the test is over."""
    made: list[VoucherPool] = []

    def set_up(kind: type[VoucherPool]) -> VoucherPool:
        customers.fill(connection, CUSTOMERS)
        pool = kind(test_settings.libpq_url)
        made.append(pool)
        pool.set_up()
        if isinstance(pool, Bank):
            pool.fill(CUSTOMERS)
        return pool

    yield set_up
    for pool in made:
        pool.disconnect()
    connection.execute("drop table if exists special_offer, voucher, voucher_bank")


@pytest.fixture(params=[Eager, Bank], ids=["eager", "bank"])
def pool(request: pytest.FixtureRequest, make: Make) -> VoucherPool:
    """Each kind in turn."""
    return make(request.param)


@pytest.fixture
def bank(make: Make) -> Bank:
    pool = make(Bank)
    assert isinstance(pool, Bank)
    return pool
