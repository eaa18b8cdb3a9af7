"""The benchmark of growth: what it fills in is real, and what it counts is what happened."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest

from benchmarks import growth, growth_report, growth_tables
from benchmarks.growth_report import REDEEM, USABLE, Results, Sizes
from benchmarks.meter import Cost
from webapp.core.settings import ROOT

PEOPLE, ROWS = 100, 450


@pytest.fixture
def results() -> Results:
    found = Results(100, bare=Sizes(10, 700, 400, 1400), full=Sizes(10, 1000, 400, 1750))
    for rows, cpu in ((0, [1.0, 2.0, 4.0]), (1000, [1.2, 2.2, 5.6])):
        found.costs[REDEEM, rows] = [Cost(cpu=one) for one in cpu]
        found.costs[USABLE, rows] = [Cost(cpu=1) for _ in cpu]
    return found


def test_everybody_redeems_and_nobody_the_same_offer_twice(connection: psycopg.Connection) -> None:
    growth_tables.fill(connection, PEOPLE)
    growth_tables.redeem(connection, PEOPLE, ROWS, full=True)

    counted = connection.execute(
        "select count(*), count(distinct (customer_id, offer_id)), count(distinct customer_id),"
        " min(customer_id), max(customer_id), count(order_id), count(idempotency_key) from redemption"
    ).fetchone()
    assert counted == (ROWS, ROWS, PEOPLE, 1, PEOPLE, ROWS, ROWS)


def test_more_redemptions_than_pairs_there_can_not_be(connection: psycopg.Connection) -> None:
    with pytest.raises(ValueError, match="only so often"):
        growth_tables.redeem(connection, 10, 10 * growth_tables.OFFERS + 1)


def test_the_ratio_is_that_of_the_dearer_work_round_by_round(results: Results) -> None:
    figures = growth_report.figures(results)
    assert (figures["cpu_ratio"], figures["usable_cpu_ratio"], figures["redemptions"]) == (1.2, 1.0, 1000)


def test_bytes_are_those_of_one_row_bare_without_and_full_with_the_list_index(results: Results) -> None:
    figures = growth_report.figures(results)
    assert (figures["bytes_per_row"], figures["bytes_per_row_full"]) == (110.0, 175.0)


def test_the_page_says_what_was_missed(results: Results) -> None:
    page = growth_report.page(results)
    assert "| CPU to that on an empty table | ≤ 1.3 × | 1.20 × | met |" in page
    results.full = Sizes(10, 1000, 400, 1900)
    assert "| ≤ 180 | 190 | **missed** |" in growth_report.page(results)


def test_how_much_is_measured_comes_from_the_environment() -> None:
    assert growth.PLANS.asked_for([], {}).levels == (0, 1_000_000)
    assert growth.PLANS.asked_for([], {"SIZE": "full"}).levels == (0, 1_000_000, 10_000_000)
    assert growth.PLANS.asked_for(["--quick"], {}).customers < 100_000


def test_a_quick_look_measures_both_and_ends_with_its_figures() -> None:
    # In a process of its own: it brings a server and apps of its own.
    done = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["redemptions"] == ROWS
    assert min(figures["cpu_ratio"], figures["bytes_per_row"], figures["bytes_per_row_full"]) > 0


SMALL = f"""
from benchmarks import growth
small = growth.Plan(customers=400, levels=(0, {ROWS}), rounds=2, redeemed=100, asked=50)
growth.PLANS = growth.command.Plans("growth", growth.USUAL, small, growth.FULL)
growth.main(["--quick"])
"""
