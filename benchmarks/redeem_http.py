"""`make benchmark-redeem-http`: the whole redemption over HTTP beside a Flask hello and a naive view, on one server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from flask import Flask

from benchmarks import command, customers, load, naive, onecode, redeem_http_report, server, web
from benchmarks.load import Answers, Target
from benchmarks.measure import DATABASE
from benchmarks.redeem_http_report import HELLO, NAIVE, OURS, Results, Sample
from benchmarks.server import Machine
from benchmarks.web import Web
from webapp.accounts.api_key_actions import create_api_key
from webapp.accounts.models import ApiKey
from webapp.core.extensions import db
from webapp.redemptions.actions import redeem_all
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import RedemptionRequest

PLAIN_SECRET = "only-for-measuring"
ROWS = "select (select count(*) from redemption where offer_id = offer.id), redeemed from offer where id = %s"


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds of runs of so many seconds, with each number of clients."""

    rounds: int = 3
    seconds: int = 3
    clients: Sequence[int] = (1, 16, 128)
    customers: int = 100_000
    alone: int = 400


USUAL = Plan()
QUICK = Plan(rounds=2, seconds=2, clients=(128,))
FULL = Plan(rounds=5, seconds=8, customers=1_000_000)
PLANS = command.Plans("redeem_http", USUAL, QUICK, FULL)


class Bench:
    """The three servers, and offers for them on one database."""

    def __init__(self, machine: Machine, app: Flask, plan: Plan) -> None:
        self.machine = machine
        self.ours = onecode.Onecode(app)
        self.plan = plan
        self.servers: dict[str, Web] = {}
        self.keys: dict[str, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start all three and warm them up."""
        settings = self.ours.app.config["SETTINGS"]
        environment = {
            "DATABASE_URL": self.machine.url(DATABASE),
            "SECRET_KEY": settings.secret_key,
            "INSTANCE_PATH": str(settings.instance_path),
            "MAIL_SERVER": settings.mail_server,
        }
        with (
            web.serving("benchmarks.hello:app", settings, environment, "/") as hello,
            web.serving("benchmarks.naive:app", settings, environment, "/") as plain,
            web.serving(web.PROGRAM, settings, environment, "/readyz") as program,
        ):
            self.servers = {HELLO: hello, NAIVE: plain, OURS: program}
            self._make_keys()
            for name in self.servers:
                self.sample(name, False, 16, 1)
            yield

    def _make_keys(self) -> None:
        with self.ours.app.app_context():
            self.keys[OURS] = create_api_key("benchmark", ["redeem"], by="benchmark")
            db.session.add(
                ApiKey(
                    public_id="plain",
                    name="plain",
                    secret_hash=naive.hashed(PLAIN_SECRET),
                    key_version=1,
                    scopes=["redeem"],
                )
            )
            db.session.commit()
        self.keys[NAIVE] = f"plain_{PLAIN_SECRET}"

    def sample(self, name: str, capped: bool, clients: int, seconds: int) -> Sample:
        """One run, with an offer of its own.

        :raises RuntimeError: when an answer is not the wanted one, or the table does not say what the answers said.
        """
        target, offer_id = self._target(name, capped)
        serving = self.servers[name]
        web_cpu, server_cpu = serving.cpu_seconds(), self.machine.cpu_seconds()
        answers = load.load(target, clients, seconds)
        if not answers.answers or answers.refused or answers.broken:
            raise RuntimeError(f"{name}, {clients} clients: not every answer was {target.status}: {answers}")
        n = self._rows(name, capped, offer_id, answers, clients) if offer_id else answers.answers
        return Sample(
            rate=answers.rate,
            p50=answers.p50,
            p99=answers.p99,
            web=(serving.cpu_seconds() - web_cpu) / n,
            postgres=(self.machine.cpu_seconds() - server_cpu) / n,
            client=answers.cpu / n,
        )

    def _target(self, name: str, capped: bool) -> tuple[Target, int]:
        port, n = self.servers[name].port, self.plan.customers
        if name == HELLO:
            return Target(port, 200), 0
        offer_id = self.ours.new_offer(cap=n if capped else None)
        return Target(port, 201, self.keys[name], self.ours.codes[offer_id], n), offer_id

    def _rows(self, name: str, capped: bool, offer_id: int, answers: Answers, clients: int) -> int:
        """How many rows there are when all is quiet again. Every 201 is one; more rows than that belong to clients who
        did not wait for their last answer."""
        with self.machine.connect(DATABASE) as connection:
            rows, counter = _look(connection, offer_id)
            before = -1
            while rows != before:
                time.sleep(0.1)
                before = rows
                rows, counter = _look(connection, offer_id)
        if not answers.answers <= rows <= answers.answers + clients:
            raise RuntimeError(f"{name}: {rows} rows for {answers.answers} answers to {clients} clients")
        if name == OURS and capped and counter != rows:
            raise RuntimeError(f"the cap says {counter} where there are {rows} rows")
        return rows

    def alone(self, times: int) -> dict[str, list[float]]:
        """The action in this process, one call after the other: through the gatherer as shipped, and straight."""
        code = self.ours.codes[self.ours.new_offer()]
        took: dict[str, list[float]] = {"as shipped": [], "straight": []}
        with self.ours.app.app_context():
            for n in range(times + 20):
                for k, name in enumerate(took):
                    ask = RedemptionRequest(channel="api", code=code, email=f"customer.{2 * n + k + 1}@example.com")
                    started = time.perf_counter()
                    redeem(ask) if name == "as shipped" else redeem_all([ask])
                    took[name].append(time.perf_counter() - started)
        # The first ones still make connections and plans.
        return {name: values[20:] for name, values in took.items()}


def _look(connection: psycopg.Connection, offer_id: int) -> tuple[int, int]:
    rows, counter = connection.execute(ROWS, [offer_id]).fetchone() or (0, 0)
    return int(rows), int(counter)


def measure(plan: Plan) -> Results:
    """Everything, on a server of its own. In a round everybody has a turn with every number of clients."""
    results = Results(plan.customers, plan.seconds)
    with server.running() as machine:
        machine.create(DATABASE)
        app = onecode.build(machine.url(DATABASE), str(machine.server.socket_folder.parent))
        onecode.migrate(app)
        with machine.connect(DATABASE) as connection:
            customers.fill(connection, plan.customers)
        bench = Bench(machine, app, plan)
        bench.ours.set_up()
        with bench.running():
            for number in range(plan.rounds):
                for clients in plan.clients:
                    for name, capped in turns(number):
                        sample = bench.sample(name, capped, clients, plan.seconds)
                        results.samples.setdefault((name, capped, clients), []).append(sample)
                        what = redeem_http_report.title(name, capped)
                        print(f"round {number + 1}, {clients:3} clients, {what}: {sample}")
            results.alone = bench.alone(plan.alone)
        results.command = " ".join(web.command(app.config["SETTINGS"], web.PROGRAM))
        bench.ours.disconnect()
    return results


def turns(number: int) -> list[tuple[str, bool]]:
    """Who comes after whom; the order turns from round to round."""
    order = [(HELLO, False), (OURS, False), (NAIVE, False), (OURS, True), (NAIVE, True)]
    start = number % len(order)
    return order[start:] + order[:start]


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, redeem_http_report, arguments)


if __name__ == "__main__":
    main()
