"""`make chaos`: run all crash scenarios in full.

Prints the results, writes docs/benchmarks/chaos.md, and fails if a guarantee was violated.
"""

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
class ChaosPlan:
    """The numbers of customers and faults, and the seconds of the relay outage."""

    customers: int
    worker_kills: int
    database_crashes: int
    restarts: int
    relay_outage: float
    rounds: int


FULL = ChaosPlan(10_000, 20, 3, 8, 300, 6)
QUICK = ChaosPlan(1000, 5, 2, 3, 10, 2)


def run_campaign_scenarios(database: DurableDatabase, plan: ChaosPlan) -> Iterator[ChaosRun]:
    """Run the campaign scenarios one after the other."""
    campaign_runs: list[tuple[Callable[[str], ChaosRun], Sequence[str]]] = [
        (partial(scenarios.kill_workers, database, seed=1, deaths=plan.worker_kills), scenarios.POLICIES),
        (partial(scenarios.crash_database, database, seed=2, times=plan.database_crashes, kill=False), ["hold"]),
        (partial(scenarios.crash_database, database, seed=3, times=plan.database_crashes, kill=True), ["resend"]),
        (partial(scenarios.restart_workers, database, seed=4, times=plan.restarts), scenarios.POLICIES),
    ]
    for run, policies in campaign_runs:
        yield from (_report(run(policy)) for policy in policies)
    for policy in scenarios.POLICIES:
        yield from map(_report, scenarios.pause_and_cancel(database, policy, seed=6))


def _report(run: ChaosRun) -> ChaosRun:
    print(f"{run.name}, {run.policy}: {'; '.join(run.broken) or 'kept'} ({run.seconds:.0f} s)", file=sys.stderr)
    return run


def main() -> int:
    """Run the scenarios; return 0 if every guarantee was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--quick", action="store_true", help="fewer emails and crashes; only print the results")
    plan = QUICK if parser.parse_args().quick else FULL
    # Exit through the context managers on SIGTERM, so that they stop their processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Broken connections are caused on purpose; logging them is noise.
    logging.disable(logging.CRITICAL)
    with ProcessPoolExecutor(1, get_context("spawn")) as other_process:
        relay_outage = other_process.submit(
            scenarios.relay_outage_in_own_database, plan.customers, "resend", 5, plan.relay_outage
        )
        with durable_database.start_durable_database(plan.customers) as database:
            campaign_results = list(run_campaign_scenarios(database, plan))
        campaign_results.append(_report(relay_outage.result()))
    with durable_database.start_durable_database(50_000) as database:
        lost_redemptions = scenarios.redeem_during_crashes(database, plan.rounds)
    page = report.page(campaign_results, lost_redemptions, plan.customers, plan.rounds)
    print(f"\n{page}")
    if plan is FULL:
        (ROOT / "docs" / "benchmarks" / "chaos.md").write_text(page)
    print(json.dumps(report.figures(campaign_results, lost_redemptions)))
    return 1 if lost_redemptions or any(run.broken for run in campaign_results) else 0


if __name__ == "__main__":
    sys.exit(main())
