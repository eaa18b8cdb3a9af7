"""`make benchmark-redeem-db`: the redeem action compared with a plain INSERT.

Three other implementations are measured as well.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Flask

from benchmarks import command, concurrent_clients, customers, onecode, redeem_db_report, server
from benchmarks.concurrent_clients import ClientResult, Concurrency, SystemUnderTest
from benchmarks.measure import DATABASE
from benchmarks.redeem_db_report import (
    CAP,
    CAP_CUSTOMERS,
    INSERT,
    LOCK,
    ONE,
    ORM,
    OURS,
    RedeemDbResults,
    RedeemDbSample,
)
from benchmarks.server import DatabaseServer
from benchmarks.systems_under_test import ActionSystem, TextbookSystem
from benchmarks.textbook import ForUpdate, ImplementationType, OneStatement, OrmHabit, PlainInsert

PROCESSES = 2
IMPLEMENTATIONS: dict[str, ImplementationType] = {
    INSERT: PlainInsert,
    ONE: OneStatement,
    ORM: OrmHabit,
    LOCK: ForUpdate,
}


@dataclass(frozen=True)
class RedeemDbPlan:
    """The number of rounds, the seconds of a run, and the threads."""

    rounds: int = 3
    seconds: float = 4
    threads: Sequence[int] = (16, 64)
    customers: int = 100_000


USUAL = RedeemDbPlan()
QUICK = RedeemDbPlan(rounds=1, seconds=2, threads=(64,))
FULL = RedeemDbPlan(rounds=5, seconds=10, customers=1_000_000)
PLANS = command.Plans("redeem_db", USUAL, QUICK, FULL)


class RedeemDbBench:
    def __init__(self, database_server: DatabaseServer, app: Flask, plan: RedeemDbPlan) -> None:
        self.database_server = database_server
        self.ours = onecode.Onecode(app)
        self.plan = plan
        # The same customers in the same random order for all implementations.
        self.items = random.Random(1).sample(range(1, plan.customers + 1), plan.customers)

    def sample(self, name: str, capped: bool, threads: int) -> RedeemDbSample:
        """Measure one run on an empty table, right after a checkpoint.

        :raises RuntimeError: when a request was refused, or the rows differ from the results.
        """
        concurrency = Concurrency(PROCESSES, threads // PROCESSES, self.plan.seconds)
        result, rows, counter, postgres = self._run(
            name, self.plan.customers if capped else None, concurrency, self.items
        )
        if result.refused or result.failed or rows != result.redeemed:
            raise RuntimeError(f"{name}: {rows} rows after {result}")
        if capped and counter not in ({rows} if name in (OURS, LOCK, ONE) else {0}):
            raise RuntimeError(f"{name}: the counter is {counter}, but there are {rows} rows")
        return RedeemDbSample(result.rate, result.cpu / rows, postgres / rows, rows)

    def count_rows_at_cap(self, name: str, threads: int) -> int:
        """Let many more customers redeem than the cap allows; return the number of rows."""
        concurrency = Concurrency(PROCESSES, threads // PROCESSES)
        result, rows, _, _ = self._run(name, CAP, concurrency, self.items[:CAP_CUSTOMERS])
        if result.failed or rows != result.redeemed:
            raise RuntimeError(f"{name}: {rows} rows after {result}")
        return rows

    def _run(
        self, name: str, cap: int | None, concurrency: Concurrency, items: Sequence[int]
    ) -> tuple[ClientResult, int, int, float]:
        """Run the clients; return their result, rows, counter and server CPU seconds."""
        offer_id = self.ours.new_offer(cap)
        self.ours.disconnect()
        before = 0.0

        def ready() -> None:
            nonlocal before
            before = self.database_server.cpu_seconds()

        with self.database_server.connect(DATABASE) as connection:
            connection.execute("truncate redemption")
            connection.execute("checkpoint")
            result = concurrent_clients.run(self._system(name, offer_id), items, concurrency, ready)
            cpu = self.database_server.cpu_seconds() - before
            rows, counter = connection.execute(
                "select (select count(*) from redemption), redeemed from offer_counter where offer_id = %s", [offer_id]
            ).fetchone() or (0, 0)
        return result, int(rows), int(counter), cpu

    def _system(self, name: str, offer_id: int) -> SystemUnderTest:
        url, code = self.database_server.url(DATABASE), self.ours.codes[offer_id]
        if name == OURS:
            return ActionSystem(url, str(self.database_server.embedded.socket_folder.parent), code)
        return TextbookSystem(IMPLEMENTATIONS[name], url, offer_id, code)


def rotate_variants(number: int) -> list[tuple[str, bool]]:
    """Return the variants in their order, which rotates from round to round.

    A plain INSERT has no cap.
    """
    order = [(name, False) for name in (INSERT, OURS, ONE, ORM, LOCK)] + [
        (name, True) for name in (OURS, ONE, ORM, LOCK)
    ]
    start = number % len(order)
    return order[start:] + order[:start]


@contextmanager
def prepared(plan: RedeemDbPlan) -> Iterator[RedeemDbBench]:
    """Start a separate server with the application's tables and customers."""
    with server.running() as database_server:
        database_server.create(DATABASE)
        app = onecode.build(database_server.url(DATABASE), str(database_server.embedded.socket_folder.parent))
        onecode.migrate(app)
        with database_server.connect(DATABASE) as connection:
            customers.fill(connection, plan.customers)
        bench = RedeemDbBench(database_server, app, plan)
        bench.ours.set_up()
        yield bench


def measure(plan: RedeemDbPlan) -> RedeemDbResults:
    """Run the benchmark."""
    results = RedeemDbResults(plan.customers, plan.seconds)
    with prepared(plan) as bench:
        for number in range(plan.rounds):
            for threads in plan.threads:
                for name, capped in rotate_variants(number):
                    sample = bench.sample(name, capped, threads)
                    results.samples.setdefault((name, capped, threads), []).append(sample)
                    print(f"round {number + 1}, {threads} threads, {redeem_db_report.title(name, capped)}: {sample}")
        for name in (OURS, ONE, LOCK, ORM):
            results.cap_rows[name] = [bench.count_rows_at_cap(name, max(plan.threads)) for _ in range(plan.rounds)]
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, redeem_db_report, arguments)


if __name__ == "__main__":
    main()
