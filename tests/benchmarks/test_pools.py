"""The baselines do what voucher pools promise."""

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

EVERYBODY = list(range(1, CUSTOMERS + 1))


def given(pool: VoucherPool, connection: psycopg.Connection) -> list[tuple[int, str]]:
    """(customer, code) of every voucher that somebody has."""
    rows = connection.execute(
        sql.SQL("select customer_id, {} from {} where customer_id is not null").format(
            sql.Identifier(pool.code), sql.Identifier(pool.table)
        )
    )
    return [(row[0], row[1]) for row in rows]


def queued(connection: psycopg.Connection) -> int:
    row = connection.execute("select count(*) from huey_task").fetchone()
    return row[0] if row else 0


def launched(pool: VoucherPool) -> int:
    """An offer whose vouchers are made, with nothing mailed."""
    offer = pool.new_offer()
    pool.launch(offer)
    pool.work(1)
    return offer


def test_a_launch_fires_one_job_and_a_second_one_none(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = pool.new_offer()
    assert [pool.launch(offer), pool.launch(offer)] == [True, False]
    assert (queued(connection), given(pool, connection)) == (1, [])


def test_every_customer_gets_exactly_one_voucher_with_a_code_of_its_own(
    pool: VoucherPool, connection: psycopg.Connection
) -> None:
    launched(pool)
    found = given(pool, connection)
    assert sorted(customer for customer, _ in found) == EVERYBODY
    assert len({code for _, code in found}) == CUSTOMERS


def test_every_customer_gets_one_queued_job(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launched(pool)
    assert queued(connection) == CUSTOMERS
    assert (pool.work(1000), pool.mailed(offer), queued(connection)) == (CUSTOMERS, CUSTOMERS, 0)


def test_who_has_unsubscribed_gets_none(pool: VoucherPool, connection: psycopg.Connection) -> None:
    connection.execute(
        "insert into suppression (email, reason, source) "
        "select email, 'unsubscribed', 'tests' from customer where id <= 10"
    )
    launched(pool)
    assert sorted(customer for customer, _ in given(pool, connection)) == EVERYBODY[10:]


def test_the_job_of_a_launch_can_run_in_many_threads_at_once(
    pool: VoucherPool, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.pool.BLOCK", 7)
    offer = pool.new_offer()
    jobs.side_by_side(pool.make_vouchers, [offer] * 8)
    assert sorted(customer for customer, _ in given(pool, connection)) == EVERYBODY
    assert queued(connection) == CUSTOMERS


def test_the_job_of_a_launch_goes_on_where_a_killed_one_left_off(
    pool: VoucherPool, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.pool.BLOCK", 25)
    offer = pool.new_offer()
    give, calls = pool.give, iter(range(10))

    def die_in_the_second_block(*given: object) -> None:
        give(*given)  # type: ignore[arg-type]
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "give", die_in_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        pool.make_vouchers(offer)
    assert len(given(pool, connection)) == queued(connection) == 25
    pool.make_vouchers(offer)
    assert sorted(customer for customer, _ in given(pool, connection)) == EVERYBODY
    assert queued(connection) == CUSTOMERS


def test_a_mail_job_that_fails_leaves_the_others_alone(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launched(pool)
    connection.execute(
        sql.SQL("alter table {} add check (customer_id <> 7 or mailed_at is null)").format(sql.Identifier(pool.table))
    )
    pool.work(1000)
    assert pool.mailed(offer) == CUSTOMERS - 1


def test_many_threads_redeem_one_voucher_once(pool: VoucherPool) -> None:
    offer = launched(pool)
    ((code, email),) = pool.typed(offer, [5])
    answers = jobs.side_by_side(lambda _: pool.redeem(code, email), range(16))
    assert Counter(answers) == {Decimal("25.00"): 1, None: 15}


def test_what_is_typed_is_each_customers_own(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launched(pool)
    own = dict(given(pool, connection))
    assert pool.typed(offer, [9, 3]) == [(own[9], "customer.9@example.com"), (own[3], "customer.3@example.com")]


def test_a_voucher_is_of_no_use_to_another_customer(pool: VoucherPool) -> None:
    offer = launched(pool)
    (mine, hers) = pool.typed(offer, [1, 2])
    assert pool.redeem(mine[0], hers[1]) is None
    assert pool.redeem("NOSUCHCODE", mine[1]) is None
    assert pool.redeem_each([mine, hers]) == 2


def test_a_voucher_of_an_offer_that_has_ended_is_refused(pool: VoucherPool, connection: psycopg.Connection) -> None:
    offer = launched(pool)
    connection.execute("update special_offer set ends_at = now()")
    assert pool.redeem_each(pool.typed(offer, [1])) == 0


def test_the_bank_gives_no_code_twice_under_concurrent_assignment(bank: Bank, connection: psycopg.Connection) -> None:
    offers = [bank.new_offer() for _ in range(8)]
    bank.fill(7 * CUSTOMERS)

    def pick_up(offer: int) -> None:
        for part in jobs.slices(EVERYBODY, 7):
            with psycopg.connect(bank.connections.url) as own:
                bank.give(own, offer, part)

    jobs.side_by_side(pick_up, offers)
    rows = connection.execute(
        "select offer_id, customer_id, count(*) from voucher_bank where status = 'picked_up' group by 1, 2"
    ).fetchall()
    assert sorted(rows) == [(offer, customer, 1) for offer in offers for customer in EVERYBODY]
    assert len({code for _, code in given(bank, connection)}) == 8 * CUSTOMERS


def test_a_bank_without_enough_codes_gives_none(bank: Bank, connection: psycopg.Connection) -> None:
    connection.execute("delete from voucher_bank where id = 1")
    with pytest.raises(OutOfCodes, match="1 codes are missing"):
        bank.make_vouchers(bank.new_offer())
    assert (given(bank, connection), queued(connection)) == ([], 0)


def test_codes_that_are_in_the_bank_already_are_made_up_for(
    bank: Bank, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = [row[0] for row in connection.execute("select voucher_code from voucher_bank")]
    answers = iter([[*taken[:3], "AAAAAAAAAA"], ["BBBBBBBBBB", "CCCCCCCCCC", "DDDDDDDDDD"]])
    monkeypatch.setattr("benchmarks.codes.generate", lambda n: next(answers)[:n])
    bank.fill(4)
    assert connection.execute("select count(*) from voucher_bank").fetchone() == (CUSTOMERS + 4,)
