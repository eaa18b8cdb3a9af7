"""`make benchmark-redeem-http`: redemption, a Flask hello and a naive view."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from flask import Flask

from benchmarks import command, customers, load, naive, onecode, redeem_http_report, server, web
from benchmarks.load import LoadResult, Target
from benchmarks.measure import DATABASE
from benchmarks.redeem_http_report import HELLO, NAIVE, OURS, RedeemHttpResults, RedeemHttpSample
from benchmarks.server import DatabaseServer
from benchmarks.web import Web
from webapp.accounts.api_key_actions import create_api_key
from webapp.accounts.models import ApiKey
from webapp.core.extensions import db
from webapp.redemptions.actions import redeem_all
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import RedemptionRequest

PLAIN_SECRET = "only-for-measuring"
ROWS = (
    "select (select count(*) from redemption where offer_id = o.offer_id), redeemed from offer_counter o "
    "where offer_id = %s"
)


@dataclass(frozen=True)
class RedeemHttpPlan:
    """The number of rounds, the seconds of a run, and the numbers of clients."""

    rounds: int = 3
    seconds: int = 3
    clients: Sequence[int] = (1, 16, 128)
    customers: int = 100_000
    single_calls: int = 400


USUAL = RedeemHttpPlan()
QUICK = RedeemHttpPlan(rounds=2, seconds=2, clients=(128,))
FULL = RedeemHttpPlan(rounds=5, seconds=8, customers=1_000_000)
PLANS = command.Plans("redeem_http", USUAL, QUICK, FULL)


class RedeemHttpBench:
    """The three servers, and offers for them on one database."""

    def __init__(self, database_server: DatabaseServer, app: Flask, plan: RedeemHttpPlan) -> None:
        self.database_server = database_server
        self.ours = onecode.Onecode(app)
        self.plan = plan
        self.servers: dict[str, Web] = {}
        self.keys: dict[str, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start all three servers and warm them up."""
        settings = self.ours.app.config["SETTINGS"]
        environment = {
            "DATABASE_URL": self.database_server.url(DATABASE),
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
            self.keys[OURS] = create_api_key(f"benchmark {secrets.token_hex(4)}", ["redeem"], by="benchmark")
            db.session.add(
                ApiKey(
                    public_id="plain",
                    name="plain",
                    secret_hash=naive.hash_secret(PLAIN_SECRET),
                    key_version=1,
                    scopes=["redeem"],
                )
            )
            db.session.commit()
        self.keys[NAIVE] = f"plain_{PLAIN_SECRET}"

    def sample(self, name: str, capped: bool, clients: int, seconds: int) -> RedeemHttpSample:
        """Measure one run with a new offer.

        :raises RuntimeError: when a response has another status, or the rows differ from the responses.
        """
        target, offer_id = self._target(name, capped)
        serving = self.servers[name]
        web_cpu, server_cpu = serving.cpu_seconds(), self.database_server.cpu_seconds()
        load_result = load.load(target, clients, seconds)
        if not load_result.responses or load_result.refused or load_result.broken:
            raise RuntimeError(f"{name}, {clients} clients: not every response was {target.status}: {load_result}")
        n = self._rows(name, capped, offer_id, load_result, clients) if offer_id else load_result.responses
        return RedeemHttpSample(
            rate=load_result.rate,
            p50=load_result.p50,
            p99=load_result.p99,
            web=(serving.cpu_seconds() - web_cpu) / n,
            postgres=(self.database_server.cpu_seconds() - server_cpu) / n,
            client=load_result.cpu / n,
        )

    def _target(self, name: str, capped: bool) -> tuple[Target, int]:
        port, n = self.servers[name].port, self.plan.customers
        if name == HELLO:
            return Target(port, 200), 0
        offer_id = self.ours.new_offer(cap=n if capped else None)
        return Target(port, 201, self.keys[name], self.ours.codes[offer_id], n), offer_id

    def _rows(self, name: str, capped: bool, offer_id: int, load_result: LoadResult, clients: int) -> int:
        """Count an offer's rows once no more are written.

        Every 201 is one row; additional ones belong to clients that did not wait for their last response.
        """
        with self.database_server.connect(DATABASE) as connection:
            rows, counter = _read_counts(connection, offer_id)
            before = -1
            while rows != before:
                time.sleep(0.1)
                before = rows
                rows, counter = _read_counts(connection, offer_id)
        if not load_result.responses <= rows <= load_result.responses + clients:
            raise RuntimeError(f"{name}: {rows} rows for {load_result.responses} responses to {clients} clients")
        if name == OURS and capped and counter != rows:
            raise RuntimeError(f"the counter is {counter}, but there are {rows} rows")
        return rows

    def time_single_client(self, times: int) -> dict[str, list[float]]:
        """Time single calls of the action: with group commit, and directly."""
        code = self.ours.codes[self.ours.new_offer()]
        durations: dict[str, list[float]] = {"as shipped": [], "direct": []}
        with self.ours.app.app_context():
            for n in range(times + 20):
                for k, name in enumerate(durations):
                    request = RedemptionRequest(channel="api", code=code, email=f"customer.{2 * n + k + 1}@example.com")
                    started = time.perf_counter()
                    redeem(request) if name == "as shipped" else redeem_all([request])
                    durations[name].append(time.perf_counter() - started)
        # The first calls still open connections and plan statements.
        return {name: values[20:] for name, values in durations.items()}


def _read_counts(connection: psycopg.Connection, offer_id: int) -> tuple[int, int]:
    rows, counter = connection.execute(ROWS, [offer_id]).fetchone() or (0, 0)
    return int(rows), int(counter)


def measure(plan: RedeemHttpPlan) -> RedeemHttpResults:
    """Run the benchmark on a separate server, with every number of clients."""
    results = RedeemHttpResults(plan.customers, plan.seconds)
    with server.running() as database_server:
        database_server.create(DATABASE)
        app = onecode.build(database_server.url(DATABASE), str(database_server.embedded.socket_folder.parent))
        onecode.migrate(app)
        with database_server.connect(DATABASE) as connection:
            customers.fill(connection, plan.customers)
        bench = RedeemHttpBench(database_server, app, plan)
        bench.ours.set_up()
        with bench.running():
            for number in range(plan.rounds):
                for clients in plan.clients:
                    for name, capped in rotate_variants(number):
                        sample = bench.sample(name, capped, clients, plan.seconds)
                        results.samples.setdefault((name, capped, clients), []).append(sample)
                        title = redeem_http_report.title(name, capped)
                        print(f"round {number + 1}, {clients:3} clients, {title}: {sample}")
            results.single_client_seconds = bench.time_single_client(plan.single_calls)
        results.command = " ".join(web.command(app.config["SETTINGS"], web.PROGRAM))
        bench.ours.disconnect()
    return results


def rotate_variants(number: int) -> list[tuple[str, bool]]:
    """Return the variants in their order, which rotates from round to round."""
    order = [(HELLO, False), (OURS, False), (NAIVE, False), (OURS, True), (NAIVE, True)]
    start = number % len(order)
    return order[start:] + order[:start]


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, redeem_http_report, arguments)


if __name__ == "__main__":
    main()
