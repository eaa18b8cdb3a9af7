"""The common command of the benchmarks: measure, print the page and the figures."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from webapp.core.settings import ROOT

Plan = TypeVar("Plan")
Results = TypeVar("Results")
Results_contra = TypeVar("Results_contra", contravariant=True)


class Report(Protocol[Results_contra]):
    """A module that renders the page and computes the figures of results."""

    def page(self, results: Results_contra, /) -> str: ...
    def figures(self, results: Results_contra, /) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class Plans(Generic[Plan]):
    """The plans of a benchmark: usual, `--quick` and SIZE=full.

    `name` is that of its module.
    """

    name: str
    usual: Plan
    quick: Plan
    full: Plan

    def parse_plan(self, arguments: Sequence[str], environ: Mapping[str, str]) -> Plan:
        """Choose the plan by the command's arguments and the environment."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}")
        parser.add_argument("--quick", action="store_true", help="few rows, short runs; only print the results")
        if parser.parse_args(arguments).quick:
            return self.quick
        return self.full if environ.get("SIZE") == "full" else self.usual


def run(
    plans: Plans[Plan],
    measure: Callable[[Plan], Results],
    report: Report[Results],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure by the chosen plan; print the page and the figures as one JSON object.

    The page is written to docs/benchmarks, except after a quick run.
    """
    logging.disable(logging.WARNING)
    plan = plans.parse_plan(sys.argv[1:] if arguments is None else arguments, os.environ)
    load_before = os.getloadavg()[0]
    results = measure(plan)
    publish(plans.name, results, report, load_before, is_trial=plan is plans.quick)


def publish(name: str, results: Results, report: Report[Results], load_before: float, *, is_trial: bool) -> None:
    """Print the page and the figures of a benchmark that has ended; write the page, except after a trial.

    :param name: that of its module.
    :param load_before: load average of the minute before the run.
    """
    page = f"{report.page(results).rstrip()}\n\n{describe_run(load_before)}\n"
    print(f"\n{page}")
    if not is_trial:
        (ROOT / "docs" / "benchmarks" / f"{name.replace('_', '-')}.md").write_text(page)
    print(json.dumps(report.figures(results)))


def describe_run(load_before: float) -> str:
    """Return a sentence about the date and the machine of a run that has ended.

    :param load_before: load average of the minute before the run; near 0, no other program ran.
    """
    return (
        f"Run on {datetime.datetime.now(datetime.UTC):%-d %B %Y} with Python {platform.python_version()} on "
        f"{os.cpu_count()} processors. Load average: {load_before:.1f} in the minute before the run, "
        f"{os.getloadavg()[2]:.1f} in the 15 minutes before its end."
    )
