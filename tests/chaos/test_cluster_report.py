"""The page about a Patroni cluster shows what was run, how often, and what was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.ha import faults, report
from tests.chaos.ha.faults import FaultResult
from tests.support.chaos import patroni_cluster

KILLED, CUT_OFF = faults.FAULTS[0].name, faults.FAULTS[2].name


def run(fault: str, *broken: str, access: str = "HAProxy", is_audited: bool = True, **figures: float) -> FaultResult:
    numbers = {name: int(figures.pop(name, 0)) for name in ("accepted", "lost", "emails", "missing", "duplicates")}
    times = {"seconds": {"launch": figures.pop("launch", 0)}, "redemption_gap": figures.pop("gap", 0)}
    return FaultResult(fault, access, broken=list(broken), is_audited=is_audited, **numbers, **times, **figures)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patroni_cluster, "read_versions", lambda: {"Patroni": "patroni 3.0.2"})


def test_runs_of_a_fault_are_counted_and_summed() -> None:
    page = report.page(
        [
            run(KILLED, accepted=900, lost=1, emails=4000, launch=4.2, gap=24.6, load=3.6),
            run(KILLED, "launch: 31 s", accepted=200, missing=2, emails=4000, duplicates=3, launch=31, load=12.2),
            run(KILLED, accepted=50, access="multi-host URL"),
        ],
        4000,
    )

    assert f"| {KILLED} | no | **1 of 2** | 1,100 | 1 | 8,000 | 2 | 3 | 4 to 12 |" in page
    assert f"| {KILLED} | – | – | – | – | 31.0 | 24.6 | – |" in page
    assert f"| {KILLED} | no | 1 of 1 | 50 | 0 | 0 | 0 | 0 | 0 |" in page
    assert f"\n- {KILLED}, HAProxy: launch: 31 s\n" in page


def test_a_run_that_was_not_audited_has_no_figures() -> None:
    failed = run(CUT_OFF, "AssertionError: timed out", is_audited=False, accepted=7)

    page = report.page([failed], 4000)
    both = report.page([failed, run(CUT_OFF, accepted=5)], 4000)

    assert f"| {CUT_OFF} | – | **0 of 1**, not audited | – | – | – | – | – | 0 |" in page
    assert f"\n- {CUT_OFF}, HAProxy: AssertionError: timed out\n" in page
    assert f"| {CUT_OFF} | no | **1 of 2** | 5 | 0 | 0 | 0 | 0 | 0 |" in both


def test_a_run_that_ended_before_its_fault_is_no_broken_guarantee() -> None:
    early = FaultResult(CUT_OFF, "HAProxy", ended_early="timed out: 200 emails", load=46)

    page = report.page([early], 4000)
    both = report.page([early, run(CUT_OFF, accepted=5, load=8)], 4000)

    assert f"| {CUT_OFF} | – | ended before the fault | – | – | – | – | – | 46 |" in page
    assert f"\n## Runs that ended before their fault\n\n- {CUT_OFF}, HAProxy: timed out: 200 emails\n" in page
    assert "Broken guarantees" not in page
    assert f"| {CUT_OFF} | no | 1 of 1 | 5 | 0 | 0 | 0 | 0 | 8 to 46 |" in both


def test_the_longest_interruptions_are_beside_the_guarantee() -> None:
    page = report.page([run(KILLED, launch=4.2, gap=24.6), run(CUT_OFF, launch=33, gap=9)], 4000)

    assert "24.6 seconds without a redemption" in page
    assert "33.0 seconds after the promotion" in page


def test_faults_without_an_audited_run_are_listed() -> None:
    every = {(f.name, a) for f in faults.FAULTS for a in report.ACCESS if a == "HAProxy" or not f.needs_haproxy}

    some = report.page([run(KILLED), run(CUT_OFF, is_audited=False)], 4000).partition("## Not run\n\n")[2]

    assert set(some.splitlines()) == {f"- {name}, {access}" for name, access in every - {(KILLED, "HAProxy")}}
    assert "Not run" not in report.page([run(name, access=access) for name, access in every], 4000)


def test_results_are_read_as_they_were_added(tmp_path: Path) -> None:
    results = [run(KILLED, accepted=3, launch=1.5), run(CUT_OFF, "timed out", is_audited=False)]

    for result in results:
        report.append_result(tmp_path / "results", result)

    assert report.read_results(tmp_path / "results") == results
    assert report.read_results(tmp_path / "none") == []
