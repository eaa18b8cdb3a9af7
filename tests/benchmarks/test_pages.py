"""The pages benchmark: every page is requested, and the report is correct."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest

from benchmarks import pages, pages_report, pages_tables
from benchmarks.pages_report import PagesResults, Visits
from webapp.core.settings import ROOT


@pytest.fixture
def results() -> PagesResults:
    results = PagesResults(1000, 2000)
    results.visits = {
        "quick": [Visits(1, 2, 2), Visits(1, 2, 2), Visits(2, 2, 3)],
        "slow": [Visits(1, 3, 3), Visits(2, 2, 5), Visits(1, 3, 2)],
        pages_report.COUNTING_PAGES[0]: [Visits(1, 1, 9)] * 3,
    }
    results.statements = {"quick": [2, 2, 2], "slow": [3, 4, 5], pages_report.COUNTING_PAGES[0]: [9, 9, 9]}
    return results


def test_the_slowest_page_counts_except_the_one_that_counts_rows(results: PagesResults) -> None:
    figures = pages_report.figures(results)
    assert (figures["time_ratio"], figures["slowest"]) == (2.5, "slow")
    assert (figures["growth_ratio"], figures["statements"]) == (1, 9)
    # 5/2, 7/3 and 5/3.
    assert figures["all_pages_ratio"] == round(7 / 3, 3)


def test_the_page_marks_missed_targets(results: PagesResults) -> None:
    page = pages_report.page(results)
    assert "to an empty database (slow) | ≤ 2 × | 2.50 × | **missed** |" in page
    assert "| quick | 1000.0 | 2000.0 | 2,000.0 (2,000.0–3,000.0) | 2.00 (1.50–2.00) | 1.00 | 2 |" in page


def test_the_counters_agree_with_the_rows(connection: psycopg.Connection) -> None:
    pages_tables.fill(connection, 2000, 3000)

    row = connection.execute(
        "select (select sum(n) from redemption_total), (select sum(n) from hour_total),"
        " (select count(*) from redemption, redemption_tally where redeemed_at < counted_until),"
        " (select sum(sent) from batch), (select sum(total) from campaign)"
    ).fetchone()
    assert row is not None
    assert row[0] == row[1] == row[2] > 2900
    assert row[3] == row[4] > 0


def test_the_plan_is_chosen_by_the_environment() -> None:
    assert pages.PLANS.parse_plan([], {}).redemptions == 1_000_000
    assert pages.PLANS.parse_plan([], {"SIZE": "full"}).redemptions == 10_000_000
    assert pages.PLANS.parse_plan(["--quick"], {}).customers < 100_000


def test_a_small_run_requests_every_page_and_ends_with_its_figures() -> None:
    # In a separate process, since the benchmark starts a server and creates apps.
    process = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert process.returncode == 0, process.stderr
    assert all(f"| {name} |" in process.stdout for name in pages.PAGES)
    assert json.loads(process.stdout.splitlines()[-1])["time_ratio"] > 0


SMALL = """
from benchmarks import pages
small = pages.PagesPlan(customers=600, redemptions=900, rounds=1, visits=1)
pages.PLANS = pages.command.Plans("pages", pages.USUAL, small, pages.FULL)
pages.main(["--quick"])
"""
