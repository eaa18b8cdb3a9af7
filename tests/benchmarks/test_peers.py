"""The peers benchmark, as far as possible without oscar and a network."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from benchmarks import concurrent_clients, customers, peers, peers_environment, peers_report
from benchmarks.concurrent_clients import Concurrency
from benchmarks.peers_environment import NotInstalled
from benchmarks.peers_report import (
    ACTION,
    HTTP,
    OSCAR_CAP,
    OSCAR_ORDER,
    OSCAR_STEP,
    CapResult,
    PeersResults,
    PeersSample,
)
from benchmarks.systems_under_test import ActionSystem, TextbookSystem
from benchmarks.textbook import ForUpdate
from tests.support.benchmark_clients import CUSTOMERS, CrashingRecorder, FileRecorder
from webapp.core.settings import Settings
from webapp.offers.models import Offer

SCRIPTS = sorted((Path(peers.__file__).parent / "oscar").glob("*.py"))


def test_clients_process_every_item_once_and_count_the_results(tmp_path: Path) -> None:
    result = concurrent_clients.run(FileRecorder(str(tmp_path)), range(12), Concurrency(2, 3))
    assert (result.redeemed, result.refused, result.failed) == (6, 6, 0)
    assert len(list(tmp_path.glob("closed by *"))) == 2


def test_clients_continue_after_an_error_and_report_the_first(tmp_path: Path) -> None:
    result = concurrent_clients.run(FileRecorder(str(tmp_path)), range(10, 16), Concurrency(1, 2))
    assert (result.redeemed, result.refused, result.failed, result.first_error) == (3, 2, 1, "ValueError: thirteen")


def test_clients_stop_when_the_time_is_over(tmp_path: Path) -> None:
    result = concurrent_clients.run(FileRecorder(str(tmp_path)), range(100, 1_100), Concurrency(1, 2, seconds=0.1))
    assert 0 < result.redeemed + result.refused < 1000


def test_no_client_begins_before_all_are_ready(tmp_path: Path) -> None:
    counts: list[int] = []
    concurrent_clients.run(
        FileRecorder(str(tmp_path)), range(4), Concurrency(2, 1), lambda: counts.append(len(list(tmp_path.iterdir())))
    )
    assert counts == [0]


def test_a_client_process_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended too early"):
        concurrent_clients.run(CrashingRecorder(str(tmp_path)), range(4), Concurrency(1, 1))


def test_clients_of_the_action_never_exceed_a_cap(
    make_offer: Callable[..., Offer], connection: psycopg.Connection, test_settings: Settings
) -> None:
    customers.fill(connection, CUSTOMERS)
    capped = make_offer(max_redemptions=20)
    system = ActionSystem(test_settings.libpq_url, str(test_settings.instance_path), capped.code, has_order=True)
    result = concurrent_clients.run(system, range(1, CUSTOMERS + 1), Concurrency(2, 4))
    assert (result.redeemed, result.refused, result.failed) == (20, CUSTOMERS - 20, 0), result.first_error


def test_clients_can_use_a_textbook_implementation(
    make_offer: Callable[..., Offer], connection: psycopg.Connection, test_settings: Settings
) -> None:
    customers.fill(connection, CUSTOMERS)
    capped = make_offer(max_redemptions=20)
    system = TextbookSystem(ForUpdate, test_settings.libpq_url, capped.id, capped.code)
    result = concurrent_clients.run(system, range(1, CUSTOMERS + 1), Concurrency(1, 4))
    assert (result.redeemed, result.refused, result.failed) == (20, CUSTOMERS - 20, 0), result.first_error


# --- the environment of oscar ---


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_in_oscars_environment_do_not_import_the_application(script: Path) -> None:
    tree = ast.parse(script.read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in names if name.startswith("webapp")]
    assert {name for name in names if name.startswith("benchmarks")} <= {"benchmarks", "benchmarks.oscar"}


def test_requirements_are_pinned_with_hashes_and_name_no_index() -> None:
    text = peers_environment.REQUIREMENTS.read_text()
    pins = [line for line in text.splitlines() if line and line[0] not in " #"]
    assert pins
    assert all("==" in pin and pin.endswith("\\") for pin in pins)
    assert "://" not in text


def test_the_versions_are_read_from_the_requirements() -> None:
    assert peers_environment.versions().startswith("django-oscar 4.")


def test_an_existing_environment_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("nothing==1")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "venv" / "installed").write_text("6eef1543d939597a4578a4dea83a69b16fadfe0a100cbb9b7a0ebe921b7802d2")
    assert peers_environment.python(tmp_path / "venv", requirements) == python


def test_an_unreachable_index_is_reported_and_no_incomplete_environment_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_index = {
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
    }
    for name, value in (no_index | {"PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}).items():
        monkeypatch.setenv(name, value)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"nothing-of-this-name==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(NotInstalled, match=r"^the package index can't be reached, [^\n]*$"):
        peers_environment.python(tmp_path / "venv", requirements)
    assert not (tmp_path / "venv" / "installed").exists()


def test_other_errors_are_reported_by_their_first_line() -> None:
    output = "WARNING: old\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nERROR: more\n"
    assert peers_environment.explain_pip_error(output).endswith("failed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")


# --- the page ---


@pytest.fixture
def results() -> PeersResults:
    results = PeersResults(5, "django-oscar 4 on Django 5", {OSCAR_STEP: {(2, 8): 100.0, (4, 4): 120.0}}, command="web")
    rates = {name: [10.0, 20.0, 30.0] for name in (*peers_report.STEPS, *peers_report.ORDERS)}
    rates |= {ACTION: [200.0, 360.0, 630.0], HTTP: [400.0, 900.0, 1500.0]}
    results.samples = {
        name: [PeersSample(100, rate, 0.001, 0.002) for rate in run_rates] for name, run_rates in rates.items()
    }
    results.cap_results = {
        OSCAR_CAP: [CapResult(100, 300, 300, 2), CapResult(100, 290, 290, 3), CapResult(100, 299, 299, 2)],
        ACTION: [CapResult(100, 100, 100, 100)] * 3,
        HTTP: [CapResult(100, 100, 100, 100)] * 3,
    }
    return results


def test_ratios_are_medians_of_ratios_within_a_run(results: PeersResults) -> None:
    figures = peers_report.figures(results)
    assert (figures["oscar_step_ratio"], figures["oscar_order_ratio"]) == (20, 45)
    assert (figures["oscar_over_redeemed"], figures["over_redeemed"]) == (199, 0)


def test_a_single_over_redemption_of_onecode_misses_the_target(results: PeersResults) -> None:
    results.cap_results[HTTP] = [
        CapResult(100, 100, 100, 100),
        CapResult(100, 101, 101, 100),
        CapResult(100, 100, 100, 100),
    ]
    assert peers_report.figures(results)["over_redeemed"] == 1
    assert "| over-redemptions by Onecode, all runs | 0 | 1 | **missed** |" in peers_report.page(results)


def test_the_page_marks_missed_targets_and_names_every_implementation(results: PeersResults) -> None:
    page = peers_report.page(results)
    assert "| action relative to oscar's voucher step | ≥ 15 × | 20.0 × | met |" in page
    assert "| HTTP call relative to oscar's whole order | ≥ 50 × | 45.0 × | **missed** |" in page
    assert f"| {OSCAR_CAP} | 100 | 300, 290, 299 | 300, 290, 299 | 2, 3, 2 | **200, 190, 199** | 0 |" in page
    assert [name for name in (*peers_report.STEPS, OSCAR_ORDER, HTTP) if f"\n| {name} | " not in page] == []


def test_the_plan_is_chosen_by_arguments_and_environment() -> None:
    plans = [peers.parse_plan(["--quick"], {}), peers.parse_plan([], {}), peers.parse_plan([], {"SIZE": "full"})]
    assert [plan.runs for plan in plans] == [1, 3, 5]
    assert peers.parse_plan([], {"RUNS": "2"}).runs == 2
    assert [plan.is_trial for plan in plans] == [True, False, False]
