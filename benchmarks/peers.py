"""`make benchmark-peers`: Onecode, django-oscar and common implementations."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from flask import Flask

from benchmarks import (
    command,
    concurrent_clients,
    customers,
    load,
    onecode,
    peers_environment,
    peers_report,
    server,
    textbook,
    web,
)
from benchmarks.concurrent_clients import ClientResult, Concurrency, SystemUnderTest
from benchmarks.load import Target
from benchmarks.measure import DATABASE
from benchmarks.peers_environment import NotInstalled, Oscar
from benchmarks.peers_report import (
    ACTION,
    HTTP,
    OSCAR_CAP,
    OSCAR_ONE_CLIENT,
    OSCAR_ORDER,
    OSCAR_SINGLE,
    OSCAR_STEP,
    CapResult,
    PeersResults,
    PeersSample,
)
from benchmarks.server import DatabaseServer
from benchmarks.systems_under_test import ActionSystem, TextbookSystem
from benchmarks.textbook import ImplementationType
from benchmarks.web import Web
from webapp.accounts.api_key_actions import create_api_key

CUSTOMERS = 100_000
# The (processes, threads) that are tried for oscar; the best is used.
SHAPES = ((2, 8), (4, 4), (8, 2))
OURS_SHAPE = (2, 8)
# The last units of a cap: (processes, threads), clients over HTTP, customers, units.
CAP_SHAPE, HTTP_CLIENTS, CAP_CUSTOMERS, CAP = (4, 16), 64, 300, 100
ONCE, SINGLE = "Once per customer", "Single use"
ROWS = "select count(*) from redemption where offer_id = %s"

A = TypeVar("A")


@dataclass(frozen=True)
class PeersPlan:
    """The number of runs, their seconds, and oscar's customers (`users`)."""

    runs: int = 3
    seconds: float = 5
    users: int = 4_000
    shapes: Sequence[tuple[int, int]] = SHAPES
    is_trial: bool = False


USUAL = PeersPlan()
QUICK = PeersPlan(runs=1, seconds=2, users=1_000, shapes=SHAPES[:1], is_trial=True)
FULL = PeersPlan(runs=5, seconds=10, users=8_000)


class PeersBench:
    """Both applications on one server, each with its own database."""

    web: Web

    def __init__(self, database_server: DatabaseServer, oscar: Oscar, app: Flask, plan: PeersPlan) -> None:
        self.database_server = database_server
        self.oscar = oscar
        self.ours = onecode.Onecode(app)
        self.plan = plan
        self.url = database_server.url(DATABASE)
        self.folder = str(app.config["SETTINGS"].instance_path)
        self.shapes: dict[str, tuple[int, int]] = {}
        self.key = ""

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the application's web server, as shipped, during the block."""
        settings = self.ours.app.config["SETTINGS"]
        environment = {
            "DATABASE_URL": self.url,
            "SECRET_KEY": settings.secret_key,
            "INSTANCE_PATH": self.folder,
            "MAIL_SERVER": settings.mail_server,
        }
        with self.ours.app.app_context():
            self.key = create_api_key(f"benchmark {secrets.token_hex(4)}", ["redeem"], by="benchmark")
        with web.serving(web.PROGRAM, settings, environment, "/readyz") as self.web:
            yield

    def find_shapes(self) -> dict[str, dict[tuple[int, int], float]]:
        """Find the fastest processes and threads for oscar, which also warms it up."""
        results: dict[str, dict[tuple[int, int], float]] = {}
        for name in (OSCAR_STEP, OSCAR_ORDER):
            results[name] = {}
            for shape in self.plan.shapes:
                results[name][shape] = self._measure_oscar_concurrency(
                    name, Concurrency(*shape, seconds=self.plan.seconds)
                ).rate
                print(f"{name}, {shape[0]} processes of {shape[1]}: {results[name][shape]:,.0f} a second", flush=True)
            self.shapes[name] = max(results[name], key=lambda shape: results[name][shape])
        return results

    def samples(self) -> dict[str, Callable[[], PeersSample]]:
        """All implementations whose speed is measured."""
        return {
            OSCAR_STEP: partial(self._measure_oscar, OSCAR_STEP),
            ACTION: partial(self._measure_rate, self._action_system),
            **{
                implementation.name: partial(self._measure_rate, partial(self._textbook_system, implementation))
                for implementation in textbook.IMPLEMENTATIONS
            },
            OSCAR_ORDER: partial(self._measure_oscar, OSCAR_ORDER),
            HTTP: self._measure_http,
        }

    def _measure_oscar(self, name: str) -> PeersSample:
        return self._measure_oscar_concurrency(name, Concurrency(*self.shapes[name], seconds=self.plan.seconds))

    def _measure_oscar_concurrency(self, name: str, concurrency: Concurrency) -> PeersSample:
        implementation = {OSCAR_STEP: "step", OSCAR_ORDER: "order"}[name]
        meter = _ServerCpu(self.database_server)
        results = self.oscar.run(implementation, self.plan.users, concurrency, ONCE, None, meter.start)
        sample = _sample(_client_result(results), meter.stop())
        if results["applications"] != results["redeemed"]:
            raise RuntimeError(f"oscar's records differ from its responses: {results}")
        return sample

    def _action_system(self, offer: int) -> SystemUnderTest:
        return ActionSystem(self.url, self.folder, self.ours.codes[offer], has_order=True)

    def _textbook_system(self, implementation: ImplementationType, offer: int) -> SystemUnderTest:
        return TextbookSystem(implementation, self.url, offer, self.ours.codes[offer])

    def _measure_rate(self, system: Callable[[int], SystemUnderTest]) -> PeersSample:
        """Measure with an offer whose cap is never reached, since oscar always counts."""
        offer, meter = self._new_offer(CUSTOMERS), _ServerCpu(self.database_server)
        concurrency = Concurrency(*OURS_SHAPE, seconds=self.plan.seconds)
        sample = _sample(
            concurrent_clients.run(system(offer), range(1, CUSTOMERS + 1), concurrency, meter.start), meter.stop()
        )
        if self._rows(offer) != sample.redeemed:
            raise RuntimeError(f"{sample.redeemed} redeemed, but there are {self._rows(offer)} rows")
        return sample

    def _measure_http(self) -> PeersSample:
        offer = self._new_offer(CUSTOMERS)
        target = Target(self.web.port, 201, self.key, self.ours.codes[offer], CUSTOMERS)
        load.load(target, HTTP_CLIENTS, 1)
        offer = self._new_offer(CUSTOMERS)
        target = Target(self.web.port, 201, self.key, self.ours.codes[offer], CUSTOMERS)
        meter, before = _ServerCpu(self.database_server), self.web.cpu_seconds()
        meter.start()
        load_result = load.load(target, HTTP_CLIENTS, max(1, round(self.plan.seconds)))
        if load_result.refused or load_result.broken:
            raise RuntimeError(f"not every HTTP response was 201: {load_result}")
        web_cpu = self.web.cpu_seconds() - before
        return PeersSample(
            load_result.responses,
            load_result.rate,
            web_cpu / load_result.responses,
            meter.stop() / load_result.responses,
        )

    def _new_offer(self, cap: int) -> int:
        offer = self.ours.new_offer(cap=cap)
        with self.database_server.connect(DATABASE) as connection:
            connection.execute("vacuum (analyze) redemption, offer")
            connection.execute("checkpoint")
        return offer

    def _rows(self, offer: int) -> int:
        """Count an offer's redemptions once no more are written."""
        rows = -1
        with self.database_server.connect(DATABASE) as connection:
            while True:
                (count,) = connection.execute(ROWS, [offer]).fetchone() or (0,)
                if count == rows:
                    return rows
                rows = count
                time.sleep(0.2)

    # The last units of a cap

    def cap_results(self) -> dict[str, Callable[[], CapResult]]:
        """All implementations with a cap, which a plain INSERT lacks."""
        return {
            OSCAR_ONE_CLIENT: partial(self._measure_oscar_cap, ONCE, CAP, (1, 1)),
            OSCAR_CAP: partial(self._measure_oscar_cap, ONCE, CAP),
            OSCAR_SINGLE: partial(self._measure_oscar_cap, SINGLE, None),
            **{
                implementation.name: partial(self._measure_cap, partial(self._textbook_system, implementation))
                for implementation in textbook.IMPLEMENTATIONS
                if implementation is not textbook.PlainInsert
            },
            ACTION: partial(self._measure_cap, self._action_system),
            HTTP: self._measure_http_cap,
        }

    def _measure_oscar_cap(self, usage: str, cap: int | None, shape: tuple[int, int] = CAP_SHAPE) -> CapResult:
        results = self.oscar.run("last", CAP_CUSTOMERS, Concurrency(*shape), usage, cap, lambda: None)
        return CapResult(
            cap or 1,
            results["redeemed"],
            results["recorded"],
            results["counter"],
            results["failed"],
            results["first_error"],
        )

    def _measure_cap(self, system: Callable[[int], SystemUnderTest]) -> CapResult:
        offer = self._new_offer(CAP)
        result = concurrent_clients.run(system(offer), range(1, CAP_CUSTOMERS + 1), Concurrency(*CAP_SHAPE))
        return CapResult(
            CAP, result.redeemed, self._rows(offer), self._counter(offer), result.failed, result.first_error
        )

    def _measure_http_cap(self) -> CapResult:
        offer = self._new_offer(CAP)
        target = Target(self.web.port, 201, self.key, self.ours.codes[offer], CAP_CUSTOMERS)
        # The customers repeat, which must make no difference.
        load_result = load.load(target, HTTP_CLIENTS, 2)
        confirmed = load_result.responses - load_result.refused
        return CapResult(CAP, confirmed, self._rows(offer), self._counter(offer), load_result.broken)

    def _counter(self, offer: int) -> int:
        with self.database_server.connect(DATABASE) as connection:
            (counter,) = connection.execute(
                "select redeemed from offer_counter where offer_id = %s", [offer]
            ).fetchone() or (0,)
            return int(counter)


class _ServerCpu:
    """The CPU time of PostgreSQL from the moment when all clients are ready."""

    def __init__(self, database_server: DatabaseServer) -> None:
        self.database_server = database_server
        self.before = 0.0

    def start(self) -> None:
        self.before = self.database_server.cpu_seconds()

    def stop(self) -> float:
        return self.database_server.cpu_seconds() - self.before


def _client_result(results: Mapping[str, object]) -> ClientResult:
    return ClientResult(**{name: results[name] for name in ClientResult.__dataclass_fields__})  # type: ignore[arg-type]


def _sample(result: ClientResult, server_cpu: float) -> PeersSample:
    """Compute a sample.

    :raises RuntimeError: when a request was refused or failed although there was enough for all.
    """
    if result.failed or result.refused or not result.redeemed:
        raise RuntimeError(f"not every request succeeded: {result}")
    return PeersSample(result.redeemed, result.rate, result.cpu / result.redeemed, server_cpu / result.redeemed)


def measure(plan: PeersPlan) -> PeersResults:
    """Run the benchmark on a separate server.

    The order of the implementations rotates from run to run.

    :raises NotInstalled: when django-oscar is missing and can't be fetched.
    """
    python = peers_environment.python()
    results = PeersResults(plan.seconds, peers_environment.versions())
    with server.running() as database_server:
        oscar = Oscar(database_server, python)
        oscar.set_up(plan.users)
        database_server.create(DATABASE)
        app = onecode.build(database_server.url(DATABASE), str(database_server.embedded.socket_folder.parent))
        onecode.migrate(app)
        with database_server.connect(DATABASE) as connection:
            customers.fill(connection, CUSTOMERS)
        bench = PeersBench(database_server, oscar, app, plan)
        bench.ours.set_up()
        results.shapes = bench.find_shapes()
        with bench.serving():
            for number in range(plan.runs):
                for name, sample in _rotated(bench.samples(), number):
                    results.samples.setdefault(name, []).append(sample())
                    print(f"run {number + 1}, {name}: {results.samples[name][-1]}", flush=True)
                for name, measure_cap in _rotated(bench.cap_results(), number):
                    results.cap_results.setdefault(name, []).append(measure_cap())
                    print(f"run {number + 1}, the last units, {name}: {results.cap_results[name][-1]}", flush=True)
        results.command = " ".join(web.command(app.config["SETTINGS"], web.PROGRAM))
        bench.ours.disconnect()
    return results


def _rotated(implementations: Mapping[str, Callable[[], A]], number: int) -> list[tuple[str, Callable[[], A]]]:
    order = list(implementations.items())
    start = number % len(order)
    return order[start:] + order[:start]


def parse_plan(arguments: Sequence[str], environ: Mapping[str, str]) -> PeersPlan:
    """Choose the plan: `--quick`, SIZE=full for longer runs, RUNS for their number."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run; only print the results")
    if parser.parse_args(arguments).quick:
        return QUICK
    plan = FULL if environ.get("SIZE") == "full" else USUAL
    return dataclasses.replace(plan, runs=int(environ["RUNS"])) if environ.get("RUNS") else plan


def main(arguments: Sequence[str] | None = None) -> None:
    logging.disable(logging.WARNING)
    plan = parse_plan(sys.argv[1:] if arguments is None else arguments, os.environ)
    load_before = os.getloadavg()[0]
    try:
        results = measure(plan)
    except NotInstalled as error:
        sys.exit(f"onecode: {error}")
    command.publish("peers", results, peers_report, load_before, is_trial=plan.is_trial)


if __name__ == "__main__":
    main()
