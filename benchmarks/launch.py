"""`make benchmark-launch`: Onecode and two voucher pools on the same PostgreSQL."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence

from benchmarks import command, customers, launch_report, onecode, server
from benchmarks.bank import Bank
from benchmarks.eager import Eager
from benchmarks.launch_report import LaunchResults
from benchmarks.measure import DATABASE, Design, LaunchBench
from benchmarks.server import DatabaseServer

# Number of customers: number of runs.
USUAL = {10_000: 1, 100_000: 3}
FULL = {100_000: 3, 1_000_000: 1}
SMALLEST = 1_000
REQUESTS = 15


def measure_all(sizes: Mapping[int, int], request_sizes: Sequence[int], requests: int) -> LaunchResults:
    """Measure complete runs of some sizes, and single launch requests of others."""
    results = LaunchResults()
    with server.running() as database_server:
        designs = prepare(database_server, sorted({*sizes, *request_sizes}))
        bench = LaunchBench(database_server)
        for n in request_sizes:
            for design in designs:
                results.requests[n, design.name] = bench.requests(design, _customers(n), requests)
        for n, runs in sizes.items():
            for k in range(runs):
                # The order rotates, so that no design is always first.
                for design in designs[k % 3 :] + designs[: k % 3]:
                    started = time.monotonic()
                    results.runs.setdefault((n, design.name), []).append(bench.run(design, _customers(n), n))
                    print(f"{n:,} customers, run {k + 1} of {runs}, {design.name}: {time.monotonic() - started:.0f} s")
    return results


def prepare(database_server: DatabaseServer, sizes: Sequence[int]) -> list[Design]:
    """Create a database for each number of customers, and the three designs."""
    database_server.create(DATABASE)
    app = onecode.build(database_server.url(DATABASE), str(database_server.embedded.socket_folder.parent))
    ours = onecode.Onecode(app)
    onecode.migrate(app)
    ours.disconnect()
    for n in sizes:
        database_server.create(_customers(n), like=DATABASE)
        with database_server.connect(_customers(n)) as connection:
            customers.fill(connection, n)
    return [Eager(database_server.url(DATABASE)), Bank(database_server.url(DATABASE)), ours]


def _customers(n: int) -> str:
    return f"customers_{n}"


def parse_sizes(environ: Mapping[str, str]) -> dict[int, int]:
    """Return the number of runs by number of customers, as chosen by the environment."""
    sizes = FULL if environ.get("SIZE") == "full" else USUAL
    if environ.get("CUSTOMERS"):
        sizes = {int(environ["CUSTOMERS"]): 1}
    return dict.fromkeys(sizes, int(environ["RUNS"])) if environ.get("RUNS") else sizes


def main() -> None:
    logging.disable(logging.WARNING)
    sizes = parse_sizes(os.environ)
    # A run with CUSTOMERS set is a trial, whose page is not written.
    is_trial = "CUSTOMERS" in os.environ
    load_before = os.getloadavg()[0]
    results = measure_all(sizes, list(sizes) if is_trial else [SMALLEST, *sizes], 3 if is_trial else REQUESTS)
    command.publish("launch", results, launch_report, load_before, is_trial=is_trial)


if __name__ == "__main__":
    main()
