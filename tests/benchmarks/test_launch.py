"""The launch benchmark: its figures are correct, and a small run goes through."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import launch, launch_report
from benchmarks.launch_report import BANK, EAGER, OURS, LaunchResults
from benchmarks.measure import DesignRun, Step
from benchmarks.meter import Cost, image_bytes
from webapp.core.settings import ROOT

N = 200
WALDUMP = """\
WAL statistics between 0/1000000 and 0/2000000:
Type                                           N      (%)          Record size      (%)             FPI size      (%)
----                                           -      ---          -----------      ---             --------      ---
Heap                                          12 ( 50.00)                 1000 ( 45.45)                 8192 ( 66.67)
Btree                                         12 ( 50.00)                 1200 ( 54.55)                 4096 ( 33.33)
                                        --------                      --------                      --------
Total                                         24                          2200 [15.18%]                12288 [84.82%]
"""


def make_run(cost: Cost, disk: int) -> DesignRun:
    """Build a run in which only the last step has a cost."""
    names = ["launch: request", "launch: job", "sending", "1 % redeemed", "5 % redeemed"]
    steps = {name: Step(Cost(), 0, 0, 0) for name in names}
    return DesignRun(steps | {"20 % redeemed": Step(cost, 0, 0, disk)})


@pytest.fixture
def results() -> LaunchResults:
    results = LaunchResults()
    for name, wal, disk in ((EAGER, 1000, 400), (BANK, 2000, 800), (OURS, 100, 50)):
        for n in (10, 20):
            results.requests[n, name] = [Cost(1, 1, 9000, 8000), *(Cost(1, 1, wal + n, 0) for _ in range(3))]
            runs = [make_run(Cost(k + 1, 1, wal * n * (k + 1), 60 * n), disk * n) for k in range(3)]
            results.runs[n, name] = runs
    return results


def test_full_page_images_are_parsed_from_pg_waldump() -> None:
    assert image_bytes(WALDUMP) == 12288


def test_figures_are_medians_of_the_largest_number_of_customers(results: LaunchResults) -> None:
    figures = launch_report.figures(results)
    assert (figures["customers"], figures["wal_vs_eager_20"], figures["disk_vs_eager_20"]) == (20, 0.1, 0.125)
    assert (figures["wal_vs_bank_20"], figures["disk_vs_bank_20"]) == (0.05, 0.0625)
    assert figures["wal_without_images_vs_eager_20"] == round((200 - 60) / (2000 - 60), 4)


def test_the_request_figure_is_the_maximum_of_all_sizes_without_the_first(results: LaunchResults) -> None:
    figures = launch_report.figures(results)
    assert (figures["launch_wal_bytes"], figures["launch_wal_spread"]) == (120, 10)


def test_the_page_marks_missed_targets(results: LaunchResults) -> None:
    page = launch_report.page(results)
    assert "| WAL of the launch request | ≤ 1,024 bytes | 120 bytes | met |" in page
    assert "| ± 0 bytes | ± 10 bytes | **missed** |" in page
    assert "| disk of launch, sending, 20 % redeemed | ≤ 1/8 of eager | 1/8.0 | met |" in page


def test_the_page_shows_every_step_of_every_design(results: LaunchResults) -> None:
    page = launch_report.page(results)
    assert "| 20 % redeemed | eager pool | 2.00 (1.00–3.00) | 1.00 | 0 | 40.0 | 1.2 | 0 | 8 |" in page
    assert "| 20 % redeemed | WAL, bytes | 2,000 | 4,000 | 200 | 1/10.0 | 1/20.0 |" in page
    assert page.count("| sending | Onecode |") == 2


def test_sizes_and_runs_are_chosen_by_the_environment() -> None:
    assert list(launch.parse_sizes({})) == [10_000, 100_000]
    assert max(launch.parse_sizes({"SIZE": "full"})) == 1_000_000
    assert launch.parse_sizes({"CUSTOMERS": "500", "RUNS": "2"}) == {500: 2}


def test_a_small_run_measures_all_designs_and_steps() -> None:
    # In a separate process: it starts a server and a second app, and a process has one task queue.
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.launch"],
        cwd=ROOT,
        env=os.environ | {"CUSTOMERS": str(N)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    rows_written = {tuple(row[1:3]): row[5] for row in map(split_cells, process.stdout.splitlines()) if len(row) == 11}
    # A voucher and a job per customer, and the offer's position per block; the redemptions between 5 and 20 %.
    assert rows_written["launch: job", "eager pool"] == str(2 * N + 3)
    assert rows_written["20 % redeemed", "Onecode"] == str(N * 15 // 100)
    figures = json.loads(process.stdout.splitlines()[-1])
    assert figures["customers"] == N
    assert 0 < figures["wal_vs_eager_20"] < 1


def split_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]
