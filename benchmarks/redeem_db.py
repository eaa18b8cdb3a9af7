"""`make benchmark-redeem-db`: the redeem action compared with a plain INSERT.

Three other implementations are measured as well.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flask import Flask

from benchmarks import command, customers, onecode, peers_crowd, redeem_db_report, server
from benchmarks.measure import DATABASE
from benchmarks.peers_crowd import Crowd, Done, Side, Work
from benchmarks.redeem_db_report import FEW, INSERT, LOCK, ONE, ORM, OURS, RUSH, RedeemDbResults, RedeemDbSample
from benchmarks.server import Machine
from benchmarks.textbook import ForUpdate, ImplementationType, OneStatement, OrmHabit, PlainInsert, make_request
from webapp.core.extensions import db
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import RedemptionRequest

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


@dataclass
class Ours(Side):
    """Onecode's action; `code` is the offer's."""

    url: str
    folder: str
    code: str
    app: Flask = field(init=False)

    def open(self, threads: int) -> None:
        logging.disable(logging.WARNING)
        self.app = onecode.build(self.url, self.folder)

    @contextmanager
    def client(self) -> Iterator[Work]:
        def work(customer: int) -> bool:
            try:
                redeem(RedemptionRequest(channel="api", code=self.code, email=f"customer.{customer}@example.com"))
            except RedemptionRefused:
                return False
            return True

        with self.app.app_context():
            yield work

    def close(self) -> None:
        with self.app.app_context():
            db.engine.dispose()


@dataclass
class TextbookSide(Side):
    """A textbook implementation, with one connection per thread."""

    url: str
    name: str
    offer_id: int
    code: str
    implementation: PlainInsert | OneStatement | OrmHabit | ForUpdate = field(init=False)

    def open(self, threads: int) -> None:
        self.implementation = IMPLEMENTATIONS[self.name](self.url, threads)

    @contextmanager
    def client(self) -> Iterator[Work]:
        yield lambda customer: self.implementation.redeem(make_request(self.offer_id, self.code, customer))

    def close(self) -> None:
        self.implementation.close()


class RedeemDbBench:
    def __init__(self, machine: Machine, app: Flask, plan: RedeemDbPlan) -> None:
        self.machine = machine
        self.ours = onecode.Onecode(app)
        self.plan = plan
        # The same customers in the same random order for all implementations.
        self.items = random.Random(1).sample(range(1, plan.customers + 1), plan.customers)

    def sample(self, name: str, capped: bool, threads: int) -> RedeemDbSample:
        """Measure one run on an empty table, right after a checkpoint.

        :raises RuntimeError: when a request was refused, or the rows differ from the results.
        """
        crowd = Crowd(PROCESSES, threads // PROCESSES, self.plan.seconds)
        done, rows, counter, postgres = self._run(name, self.plan.customers if capped else None, crowd, self.items)
        if done.refused or done.failed or rows != done.redeemed:
            raise RuntimeError(f"{name}: {rows} rows after {done}")
        if capped and counter not in ({rows} if name in (OURS, LOCK, ONE) else {0}):
            raise RuntimeError(f"{name}: the counter is {counter}, but there are {rows} rows")
        return RedeemDbSample(done.rate, done.cpu / rows, postgres / rows, rows)

    def rush(self, name: str, threads: int) -> int:
        """Let many more customers redeem than the cap allows; return the number of rows."""
        crowd = Crowd(PROCESSES, threads // PROCESSES)
        done, rows, _, _ = self._run(name, FEW, crowd, self.items[:RUSH])
        if done.failed or rows != done.redeemed:
            raise RuntimeError(f"{name}: {rows} rows after {done}")
        return rows

    def _run(self, name: str, cap: int | None, crowd: Crowd, items: Sequence[int]) -> tuple[Done, int, int, float]:
        """Run the clients; return their result, rows, counter and server CPU seconds."""
        offer_id = self.ours.new_offer(cap)
        self.ours.disconnect()
        before = 0.0

        def ready() -> None:
            nonlocal before
            before = self.machine.cpu_seconds()

        with self.machine.connect(DATABASE) as connection:
            connection.execute("truncate redemption")
            connection.execute("checkpoint")
            done = peers_crowd.run(self._side(name, offer_id), items, crowd, ready)
            cpu = self.machine.cpu_seconds() - before
            rows, counter = connection.execute(
                "select (select count(*) from redemption), redeemed from offer where id = %s", [offer_id]
            ).fetchone() or (0, 0)
        return done, int(rows), int(counter), cpu

    def _side(self, name: str, offer_id: int) -> Side:
        url, code = self.machine.url(DATABASE), self.ours.codes[offer_id]
        if name == OURS:
            return Ours(url, str(self.machine.server.socket_folder.parent), code)
        return TextbookSide(url, name, offer_id, code)


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
    with server.running() as machine:
        machine.create(DATABASE)
        app = onecode.build(machine.url(DATABASE), str(machine.server.socket_folder.parent))
        onecode.migrate(app)
        with machine.connect(DATABASE) as connection:
            customers.fill(connection, plan.customers)
        bench = RedeemDbBench(machine, app, plan)
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
            results.sold[name] = [bench.rush(name, max(plan.threads)) for _ in range(plan.rounds)]
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, redeem_db_report, arguments)


if __name__ == "__main__":
    main()
