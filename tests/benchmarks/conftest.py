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
from tests.support import watchdog
from tests.support.benchmark_clients import CUSTOMERS
from webapp.core.settings import Settings

MakePool = Callable[[type[VoucherPool]], VoucherPool]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Enable logging again, since a benchmark disables warnings in its process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True, scope="package")
def benchmark_servers_end_with_the_run() -> Iterator[None]:
    """Create benchmark servers where the watchdog ends them, even when a time limit kills the benchmark."""
    with watchdog.temporary_files_in_run():
        yield


@pytest.fixture
def connection(app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    """A separate connection to the database."""
    with psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def make(connection: psycopg.Connection, test_settings: Settings) -> Iterator[MakePool]:
    """Set up a pool with customers; drop its tables after the test."""
    pools: list[VoucherPool] = []

    def set_up(kind: type[VoucherPool]) -> VoucherPool:
        customers.fill(connection, CUSTOMERS)
        pool = kind(test_settings.libpq_url)
        pools.append(pool)
        pool.set_up()
        if isinstance(pool, Bank):
            pool.fill(CUSTOMERS)
        return pool

    yield set_up
    for pool in pools:
        pool.disconnect()
    connection.execute("drop table if exists special_offer, voucher, voucher_bank")


@pytest.fixture(params=[Eager, Bank], ids=["eager", "bank"])
def pool(request: pytest.FixtureRequest, make: MakePool) -> VoucherPool:
    """A pool of each kind in turn."""
    return make(request.param)


@pytest.fixture
def bank(make: MakePool) -> Bank:
    pool = make(Bank)
    assert isinstance(pool, Bank)
    return pool
