"""`make chaos`: the crash runs in full. Prints what was found, keeps it in docs/benchmarks/chaos.md, and fails when a
promise was broken."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from tests.support.chaos import durable_database, report, scenarios
from tests.support.chaos.durable_database import DurableDatabase
from tests.support.chaos.scenarios import ChaosRun
from webapp.core.settings import ROOT


@dataclass(frozen=True)
class Plan:
    """How much is done: customers, deaths of workers, of the database, restarts, and for how long the relay is away."""

    customers: int
    deaths: int
    crashes: int
    restarts: int
    away: float
    rounds: int


FULL = Plan(10_000, 20, 3, 8, 300, 6)
QUICK = Plan(1000, 5, 2, 3, 10, 2)


def mailings(database: DurableDatabase, plan: Plan) -> Iterator[ChaosRun]:
    """All runs of mailings, one after the other."""
    every: list[tuple[Callable[[str], ChaosRun], Sequence[str]]] = [
        (partial(scenarios.kill_workers, database, seed=1, deaths=plan.deaths), scenarios.POLICIES),
        (partial(scenarios.crash_database, database, seed=2, times=plan.crashes, kill=False), ["hold"]),
        (partial(scenarios.crash_database, database, seed=3, times=plan.crashes, kill=True), ["resend"]),
        (partial(scenarios.restart_workers, database, seed=4, times=plan.restarts), scenarios.POLICIES),
    ]
    for run, policies in every:
        yield from (_said(run(policy)) for policy in policies)
    for policy in scenarios.POLICIES:
        yield from map(_said, scenarios.pause_and_cancel(database, policy, seed=6))


def _said(run: ChaosRun) -> ChaosRun:
    print(f"{run.name}, {run.policy}: {'; '.join(run.broken) or 'kept'} ({run.seconds:.0f} s)", file=sys.stderr)
    return run


def main() -> int:
    """0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--quick", action="store_true", help="fewer mails and deaths; prints, writes no page")
    plan = QUICK if parser.parse_args().quick else FULL
    # Also when it is told to end, it ends its processes first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What the program logs about broken connections is what is done to it here.
    logging.disable(logging.CRITICAL)
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        away = elsewhere.submit(scenarios.relay_outage_in_own_database, plan.customers, "resend", 5, plan.away)
        with durable_database.start_durable_database(plan.customers) as database:
            made = list(mailings(database, plan))
        made.append(_said(away.result()))
    with durable_database.start_durable_database(50_000) as database:
        lost = scenarios.redeem_during_crashes(database, plan.rounds)
    page = report.page(made, lost, plan.customers, plan.rounds)
    print(f"\n{page}")
    if plan is FULL:
        (ROOT / "docs" / "benchmarks" / "chaos.md").write_text(page)
    print(json.dumps(report.figures(made, lost)))
    return 1 if lost or any(run.broken for run in made) else 0


if __name__ == "__main__":
    sys.exit(main())
