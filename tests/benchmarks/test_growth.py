"""The growth benchmark: its tables are realistic, and its figures are correct."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest

from benchmarks import growth, growth_report, growth_tables
from benchmarks.growth_report import REDEEM, USABLE, GrowthResults, Sizes
from benchmarks.meter import Cost
from webapp.core.settings import ROOT

CUSTOMERS, ROWS = 100, 450


@pytest.fixture
def results() -> GrowthResults:
    results = GrowthResults(100, bare=Sizes(10, 700, 400, 1400), full=Sizes(10, 1000, 400, 1750))
    for rows, cpu in ((0, [1.0, 2.0, 4.0]), (1000, [1.2, 2.2, 5.6])):
        results.costs[REDEEM, rows] = [Cost(cpu=seconds) for seconds in cpu]
        results.costs[USABLE, rows] = [Cost(cpu=1) for _ in cpu]
    return results


def test_every_customer_redeems_and_no_offer_twice(connection: psycopg.Connection) -> None:
    growth_tables.fill(connection, CUSTOMERS)
    growth_tables.redeem(connection, CUSTOMERS, ROWS, full=True)

    counts = connection.execute(
        "select count(*), count(distinct (customer_id, offer_id)), count(distinct customer_id),"
        " min(customer_id), max(customer_id), count(order_id), count(idempotency_key) from redemption"
    ).fetchone()
    assert counts == (ROWS, ROWS, CUSTOMERS, 1, CUSTOMERS, ROWS, ROWS)


def test_more_redemptions_than_pairs_are_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(ValueError, match="only once each"):
        growth_tables.redeem(connection, 10, 10 * growth_tables.OFFERS + 1)


def test_the_ratio_is_that_of_the_more_expensive_operation(results: GrowthResults) -> None:
    figures = growth_report.figures(results)
    assert (figures["cpu_ratio"], figures["usable_cpu_ratio"], figures["redemptions"]) == (1.2, 1.0, 1000)


def test_bytes_per_row_exclude_the_list_index_only_when_bare(results: GrowthResults) -> None:
    figures = growth_report.figures(results)
    assert (figures["bytes_per_row"], figures["bytes_per_row_full"]) == (110.0, 175.0)


def test_the_page_marks_missed_targets(results: GrowthResults) -> None:
    page = growth_report.page(results)
    assert "| CPU relative to an empty table | ≤ 1.3 × | 1.20 × | met |" in page
    results.full = Sizes(10, 1000, 400, 1900)
    assert "| ≤ 180 | 190 | **missed** |" in growth_report.page(results)


def test_the_plan_is_chosen_by_the_environment() -> None:
    assert growth.PLANS.parse_plan([], {}).levels == (0, 1_000_000)
    assert growth.PLANS.parse_plan([], {"SIZE": "full"}).levels == (0, 1_000_000, 10_000_000)
    assert growth.PLANS.parse_plan(["--quick"], {}).customers < 100_000


def test_a_small_run_ends_with_its_figures() -> None:
    # In a separate process, since the benchmark starts a server and creates apps.
    process = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert process.returncode == 0, process.stderr
    figures = json.loads(process.stdout.splitlines()[-1])
    assert figures["redemptions"] == ROWS
    assert min(figures["cpu_ratio"], figures["bytes_per_row"], figures["bytes_per_row_full"]) > 0


SMALL = f"""
from benchmarks import growth
small = growth.GrowthPlan(customers=400, levels=(0, {ROWS}), rounds=2, redeemed=100, queried=50)
growth.PLANS = growth.command.Plans("growth", growth.USUAL, small, growth.FULL)
growth.main(["--quick"])
"""
