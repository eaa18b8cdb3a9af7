"""`make chaos-ha`: break machines of a Patroni cluster under redemptions and campaigns.

Prints the results, writes docs/benchmarks/chaos-ha.md, and fails if a guarantee was violated or a run ended before its
fault. As root, it runs in namespaces of its own for processes, mounts and networks, so that nothing of it is left on
the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from tests.chaos.ha import faults, report
from tests.chaos.ha.report import ACCESS
from tests.support import live_server
from tests.support.chaos import durable_database, patroni_cluster
from tests.support.chaos.durable_database import PopulatedDatabase
from tests.support.chaos.patroni_cluster import PatroniCluster
from tests.support.live_server import LiveProcess
from webapp.core.settings import ROOT

CUSTOMERS = 4_000
PAGE = ROOT / "docs" / "benchmarks" / "chaos-ha.md"


def main() -> int:
    """Run all faults; return 0 if each was caused and every guarantee was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ha")
    parser.add_argument("--quick", action="store_true", help="only the first two faults; only print")
    parser.add_argument("--access", choices=ACCESS, action="append", help="only over this one; only print")
    parser.add_argument("--fault", action="append", help="only faults with this text in their names; only print")
    parser.add_argument("--results", type=Path, help="add the results to this file, and write the page from all in it")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if missing := patroni_cluster.missing_packages():
        print(f"onecode: Debian packages are missing: apt install {' '.join(missing)}", file=sys.stderr)
        return 1
    if arguments.folder is None:
        return _run_in_namespaces(sys.argv[1:], arguments.keep)
    logging.disable(logging.CRITICAL)
    chosen = Choice(arguments.access or list(ACCESS), arguments.fault or [""], arguments.quick)
    results: list[faults.FaultResult] = []
    for result in _run_faults(arguments.folder, chosen):
        results.append(result)
        print(report.line(result), file=sys.stderr)
        # After each fault, so that an interrupted run leaves what it found.
        if arguments.results:
            report.append_result(arguments.results, result)
            PAGE.write_text(report.page(report.read_results(arguments.results), CUSTOMERS))
        elif not (arguments.quick or arguments.access or arguments.fault):
            PAGE.write_text(report.page(results, CUSTOMERS))
    print(f"\n{report.page(results, CUSTOMERS)}")
    print(json.dumps(report.figures(results)))
    return 1 if any(result.broken or result.ended_early for result in results) else 0


@dataclass(frozen=True)
class Choice:
    """Which faults are run.

    :ivar names: parts of the names of the faults; one of them has to occur.
    """

    accesses: Sequence[str]
    names: Sequence[str]
    is_quick: bool

    def faults(self, cluster: PatroniCluster) -> list[faults.Fault]:
        possible = [
            fault
            for fault in faults.FAULTS
            if (cluster.machines[0].is_namespace or not fault.needs_namespaces)
            and any(name in fault.name for name in self.names)
        ]
        return possible[:2] if self.is_quick else possible


def _run_in_namespaces(arguments: Sequence[str], keep: bool) -> int:
    """Run this program again, with a folder for its files; as root in new namespaces."""
    folder = Path(tempfile.mkdtemp(prefix="onecode-ha-"))
    folder.chmod(0o755)
    command = [sys.executable, "-m", "tests.chaos.ha", *arguments, "--folder", str(folder)]
    if os.geteuid() == 0:
        # The shell reaps processes whose parent was killed. A mount of its own hides /run/netns of the machine.
        script = 'mkdir -p /run/netns && mount -t tmpfs none /run/netns && "$@"; exit $?'
        options = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["unshare", *options, "sh", "-c", script, "sh", *command]
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        if keep:
            print(f"The logs are in {folder}.", file=sys.stderr)
        else:
            subprocess.run(["rm", "-rf", str(folder)], check=False)


def _run_faults(folder: Path, chosen: Choice) -> Iterator[faults.FaultResult]:
    with patroni_cluster.start_cluster(folder) as cluster, ExitStack() as servers:
        print("cluster complete", file=sys.stderr)
        database = durable_database.populate(cluster.haproxy_url, folder, CUSTOMERS)
        used: dict[str, tuple[PopulatedDatabase, LiveProcess]] = {}
        for access in chosen.accesses:
            own = faults.connect_over(database, getattr(cluster, ACCESS[access]))
            server = live_server.web_server_with_log(own.settings, 2, folder / f"web {access}.log")
            used[access] = own, servers.enter_context(server)
        for fault in chosen.faults(cluster):
            for access, (own, web) in used.items():
                if access == "HAProxy" or not fault.needs_haproxy:
                    yield _run_fault(cluster, own, web, access, fault)
                    assert web.process.poll() is None, "a web server has ended"


def _run_fault(
    cluster: PatroniCluster, database: PopulatedDatabase, web: LiveProcess, access: str, fault: faults.Fault
) -> faults.FaultResult:
    """Run a fault; a step after it that does not succeed in time is a broken guarantee."""
    try:
        result = faults.run_fault(cluster, database, web, access, fault)
    except faults.EndedEarly as error:
        result = faults.FaultResult(fault.name, access, ended_early=str(error)[:300])
    except (AssertionError, OSError, psycopg.Error, SQLAlchemyError) as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        result = faults.FaultResult(fault.name, access, broken=[message])
    return dataclasses.replace(result, load=os.getloadavg()[1], nice=os.nice(0))


if __name__ == "__main__":
    sys.exit(main())
