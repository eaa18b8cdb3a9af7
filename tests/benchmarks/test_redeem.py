"""The redemption benchmarks: their reports, and a small run of each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from benchmarks import naive, redeem_db, redeem_db_report, redeem_http, redeem_http_report, web
from benchmarks.redeem_db_report import INSERT, LOCK, ORM
from benchmarks.redeem_http_report import HELLO, NAIVE, OURS
from webapp.accounts.models import ApiKey
from webapp.core.extensions import db
from webapp.core.settings import ROOT, Settings
from webapp.customers.models import Customer
from webapp.offers.models import Offer


def http_results(rates: dict[tuple[str, bool], list[float]]) -> redeem_http_report.RedeemHttpResults:
    results = redeem_http_report.RedeemHttpResults(
        1000, 3, single_client_seconds={"as shipped": [0.002] * 9, "direct": [0.001] * 9}
    )
    for (name, capped), values in rates.items():
        results.samples[name, capped, 1] = [redeem_http_report.RedeemHttpSample(1, 0, 0, 0, 0, 0) for _ in values]
        results.samples[name, capped, 128] = [
            redeem_http_report.RedeemHttpSample(rate, 0.001, 0.002, 3e-6, 4e-6, 5e-6) for rate in values
        ]
    return results


@pytest.fixture
def http() -> redeem_http_report.RedeemHttpResults:
    return http_results(
        {
            (HELLO, False): [100, 200, 50],
            (OURS, False): [50, 90, 30],
            (OURS, True): [30, 90, 15],
            (NAIVE, False): [10, 15, 5],
            (NAIVE, True): [5, 30, 3],
        }
    )


def test_http_ratios_are_medians_of_the_rounds_with_the_most_clients(
    http: redeem_http_report.RedeemHttpResults,
) -> None:
    figures = redeem_http_report.figures(http)
    assert (figures["hello_ratio_uncapped"], figures["hello_ratio_capped"]) == (0.5, 0.3)
    # The uncapped ratio would be 6; the smaller one counts.
    assert (figures["orm_ratio"], figures["capped_ratio"], figures["alone_ratio"]) == (5, 0.6, 2)


def test_the_http_page_marks_missed_targets(http: redeem_http_report.RedeemHttpResults) -> None:
    page = redeem_http_report.page(http)
    assert "| uncapped relative to hello | ≥ 0.40 | 0.50 (0.45–0.60) | met |" in page
    assert "| capped relative to hello | ≥ 0.40 | 0.30 (0.30–0.45) | **missed** |" in page
    assert "| 128 | Onecode, capped | 30 (15–90) | 1.0 | 2.0 | 3 | 4 | 5 |" in page


def test_database_ratios_are_those_of_the_worst_number_of_threads() -> None:
    results = redeem_db_report.RedeemDbResults(1000, 3, cap_rows={OURS: [100], ORM: [104], LOCK: [100]})
    for threads, ours in ((16, 50), (64, 40)):
        for name, capped in redeem_db_report.VARIANTS:
            rate = 100 if name == INSERT else ours if name == OURS else 10
            results.samples[name, capped, threads] = [redeem_db_report.RedeemDbSample(rate, 1e-6, 2e-6, 9)] * 3
    figures, page = redeem_db_report.figures(results), redeem_db_report.page(results)
    assert (figures["insert_ratio_uncapped"], figures["insert_ratio_uncapped_16"]) == (0.4, 0.5)
    assert "| uncapped, 64 threads | ≥ 0.45 | 0.40 (0.40–0.40) | **missed** |" in page
    assert "| capped, 64 threads | ≥ 0.40 | 0.40 (0.40–0.40) | met |" in page
    assert "| 64 | Onecode, capped | 40 (40–40) | 0.40 | 3 | 1 | 2 |" in page


def test_other_apps_are_served_by_the_applications_command(test_settings: Settings) -> None:
    ours, hello = (web.command(test_settings, app) for app in (web.PROGRAM, "benchmarks.hello:app"))
    assert web.PROGRAM in ours
    assert [word for word in hello if word != "benchmarks.hello:app"] == [word for word in ours if word != web.PROGRAM]


@pytest.fixture(scope="module")
def naive_app(test_settings: Settings) -> Flask:
    naive.configure(test_settings.libpq_url)
    return naive.app


@pytest.fixture
def shop(naive_app: Flask, make_customer: Callable[..., Customer], make_offer: Callable[..., Offer]) -> FlaskClient:
    """A client of the naive view, with an API key, a customer and an offer."""
    make_customer("ada@example.com")
    make_offer(code="SUMMER")
    db.session.add(
        ApiKey(public_id="plain", name="p", secret_hash=naive.hash_secret("s"), key_version=1, scopes=["redeem"])
    )
    db.session.commit()
    return naive_app.test_client()


def redeem(shop: FlaskClient, key: str = "plain_s", **body: Any) -> int:
    body = {"code": "summer", "customer": {"email": "Ada@example.com"}} | body
    headers = {"Authorization": f"Bearer {key}"}
    return shop.post("/api/v1/redemptions", json=body, headers=headers).status_code


def test_the_naive_view_redeems_once(shop: FlaskClient) -> None:
    assert [redeem(shop), redeem(shop)] == [201, 409]
    assert db.session.connection().exec_driver_sql("select count(*) from redemption").scalar() == 1


@pytest.mark.parametrize("key", ["", "plain", "plain_t", "other_s"])
def test_the_naive_view_needs_a_valid_key(shop: FlaskClient, key: str) -> None:
    assert redeem(shop, key) == 401


@pytest.mark.parametrize("body", [{"code": 1}, {"customer": "ada"}, {"customer": {}}])
def test_the_naive_view_validates_the_body(shop: FlaskClient, body: dict[str, Any]) -> None:
    assert redeem(shop, **body) == 422


def test_the_plan_is_chosen_by_arguments_and_environment() -> None:
    assert redeem_http.PLANS.parse_plan(["--quick"], {}) is redeem_http.QUICK
    assert redeem_http.PLANS.parse_plan([], {"SIZE": "full"}).customers == 1_000_000
    assert redeem_db.PLANS.parse_plan([], {}) is redeem_db.USUAL


def run_in_process(script: str) -> str:
    """Run a script in a separate process; return its last output line.

    The script starts a server and a second app, and a process has one task queue.
    """
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


def test_a_small_http_run_is_exact() -> None:
    plan = "rounds=1, seconds=1, clients=(2,), customers=20_000, single_calls=5"
    last_line = run_in_process(
        "import benchmarks.redeem_http as it\n"
        f"it.PLANS = it.command.Plans('redeem_http', it.USUAL, it.RedeemHttpPlan({plan}), it.FULL)\n"
        "it.main(['--quick'])"
    )
    assert json.loads(last_line)["hello_ratio_capped"] > 0


def test_a_small_database_run_is_exact_and_uses_up_the_cap() -> None:
    redeemed = run_in_process(
        "import benchmarks.redeem_db as it\n"
        "with it.prepared(it.RedeemDbPlan(seconds=0.3, customers=3_000)) as bench:\n"
        "    bench.sample(it.OURS, True, 4)\n"
        "    print(bench.count_rows_at_cap(it.OURS, 4))"
    )
    assert redeemed == str(redeem_db_report.CAP)
