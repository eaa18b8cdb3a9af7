"""The baselines give each customer one unique voucher, under concurrency."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import psycopg
import pytest
from psycopg import sql

from benchmarks import jobs
from benchmarks.bank import Bank, OutOfCodes
from benchmarks.pool import VoucherPool
from tests.support.benchmark_clients import CUSTOMERS

ALL_CUSTOMERS = list(range(1, CUSTOMERS + 1))


def list_vouchers(pool: VoucherPool, connection: psycopg.Connection) -> list[tuple[int, str]]:
    """The (customer, code) of every assigned voucher."""
    rows = connection.execute(
        sql.SQL("select customer_id, {} from {} where customer_id is not null").format(
            sql.Identifier(pool.code), sql.Identifier(pool.table)
        )
    )
    return [(row[0], row[1]) for row in rows]


def count_queued(connection: psycopg.Connection) -> int:
    row = connection.execute("select count(*) from huey_task").fetchone()
    return row[0] if row else 0


def launch(pool: VoucherPool) -> int:
    """Launch an offer and create its vouchers, without sending emails; return its id."""
    offer = pool.new_offer()
    pool.launch(offer)
    pool.run_jobs(1)
    return offer


def test_only_the_first_launch_enqueues_a_job(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = pool.new_offer()
    assert [pool.launch(offer), pool.launch(offer)] == [True, False]
    assert (count_queued(connection), list_vouchers(pool, connection)) == (1, [])


def test_every_customer_gets_one_voucher_with_a_unique_code(pool: VoucherPool, connection: psycopg.Connection) -> None:
    launch(pool)
    vouchers = list_vouchers(pool, connection)
    assert sorted(customer for customer, _ in vouchers) == ALL_CUSTOMERS
    assert len({code for _, code in vouchers}) == CUSTOMERS


def test_every_customer_gets_one_queued_job(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launch(pool)
    assert count_queued(connection) == CUSTOMERS
    assert (pool.run_jobs(1000), pool.count_mailed(offer), count_queued(connection)) == (CUSTOMERS, CUSTOMERS, 0)


def test_unsubscribed_customers_get_no_voucher(pool: VoucherPool, connection: psycopg.Connection) -> None:
    connection.execute(
        "insert into suppression (email, reason, source) "
        "select email, 'unsubscribed', 'tests' from customer where id <= 10"
    )
    launch(pool)
    assert sorted(customer for customer, _ in list_vouchers(pool, connection)) == ALL_CUSTOMERS[10:]


def test_the_launch_job_can_run_concurrently(
    pool: VoucherPool, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.pool.BLOCK", 7)
    offer = pool.new_offer()
    jobs.run_in_threads(pool.make_vouchers, [offer] * 8)
    assert sorted(customer for customer, _ in list_vouchers(pool, connection)) == ALL_CUSTOMERS
    assert count_queued(connection) == CUSTOMERS


def test_the_launch_job_continues_after_a_crash(
    pool: VoucherPool, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.pool.BLOCK", 25)
    offer = pool.new_offer()
    assign_vouchers, calls = pool.assign_vouchers, iter(range(10))

    def die_in_the_second_block(*arguments: object) -> None:
        assign_vouchers(*arguments)  # type: ignore[arg-type]
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "assign_vouchers", die_in_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        pool.make_vouchers(offer)
    assert len(list_vouchers(pool, connection)) == count_queued(connection) == 25
    pool.make_vouchers(offer)
    assert sorted(customer for customer, _ in list_vouchers(pool, connection)) == ALL_CUSTOMERS
    assert count_queued(connection) == CUSTOMERS


def test_a_failing_mail_job_does_not_affect_the_others(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launch(pool)
    connection.execute(
        sql.SQL("alter table {} add check (customer_id <> 7 or mailed_at is null)").format(sql.Identifier(pool.table))
    )
    pool.run_jobs(1000)
    assert pool.count_mailed(offer) == CUSTOMERS - 1


def test_concurrent_threads_redeem_a_voucher_once(pool: VoucherPool) -> None:
    offer = launch(pool)
    ((code, email),) = pool.redeem_requests(offer, [5])
    results = jobs.run_in_threads(lambda _: pool.redeem(code, email), range(16))
    assert Counter(results) == {Decimal("25.00"): 1, None: 15}


def test_each_customer_types_their_own_code(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launch(pool)
    codes = dict(list_vouchers(pool, connection))
    assert pool.redeem_requests(offer, [9, 3]) == [
        (codes[9], "customer.9@example.com"),
        (codes[3], "customer.3@example.com"),
    ]


def test_a_voucher_cannot_be_redeemed_by_another_customer(pool: VoucherPool) -> None:
    offer = launch(pool)
    (first, second) = pool.redeem_requests(offer, [1, 2])
    assert pool.redeem(first[0], second[1]) is None
    assert pool.redeem("NOSUCHCODE", first[1]) is None
    assert pool.redeem_each([first, second]) == 2


def test_a_voucher_of_an_offer_that_has_ended_is_refused(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launch(pool)
    connection.execute("update special_offer set ends_at = now()")
    assert pool.redeem_each(pool.redeem_requests(offer, [1])) == 0


def test_concurrent_assignment_gives_no_code_twice(bank: Bank, connection: psycopg.Connection) -> None:
    offers = [bank.new_offer() for _ in range(8)]
    bank.fill(7 * CUSTOMERS)

    def pick_up(offer: int) -> None:
        for part in jobs.slices(ALL_CUSTOMERS, 7):
            with psycopg.connect(bank.connections.url) as connection:
                bank.assign_vouchers(connection, offer, part)

    jobs.run_in_threads(pick_up, offers)
    rows = connection.execute(
        "select offer_id, customer_id, count(*) from voucher_bank where status = 'picked_up' group by 1, 2"
    ).fetchall()
    assert sorted(rows) == [(offer, customer, 1) for offer in offers for customer in ALL_CUSTOMERS]
    assert len({code for _, code in list_vouchers(bank, connection)}) == 8 * CUSTOMERS


def test_a_bank_with_too_few_codes_assigns_none(bank: Bank, connection: psycopg.Connection) -> None:
    connection.execute("delete from voucher_bank where id = 1")
    with pytest.raises(OutOfCodes, match="1 codes are missing"):
        bank.make_vouchers(bank.new_offer())
    assert (list_vouchers(bank, connection), count_queued(connection)) == ([], 0)


def test_duplicate_codes_are_replaced_when_filling_the_bank(
    bank: Bank, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    existing = [row[0] for row in connection.execute("select voucher_code from voucher_bank")]
    generated = iter([[*existing[:3], "AAAAAAAAAA"], ["BBBBBBBBBB", "CCCCCCCCCC", "DDDDDDDDDD"]])
    monkeypatch.setattr("benchmarks.codes.generate", lambda n: next(generated)[:n])
    bank.fill(4)
    assert connection.execute("select count(*) from voucher_bank").fetchone() == (CUSTOMERS + 4,)
