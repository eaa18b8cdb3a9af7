"""The page and the figures of `make benchmark-pages`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report

# Targets: time to that on an empty database, and statements of a page.
TIME, STATEMENTS = 2.0, 15
# Their point is an exact number of people: whom a launch would mail to.
COUNTS = ("an offer's mail before the launch",)
SET_UP = Path(__file__).with_name("pages.md")


@dataclass(frozen=True)
class Visits:
    """How long a page takes, in seconds: on the empty database, on the one with a pageful, on the full one."""

    empty: float
    little: float
    full: float


@dataclass
class Results:
    """By page, the medians of each round, and the statements on each of the databases."""

    customers: int
    redemptions: int
    visits: dict[str, list[Visits]] = field(default_factory=dict)
    statements: dict[str, Sequence[int]] = field(default_factory=dict)

    def to_empty(self, name: str) -> list[float]:
        return [one.full / one.empty for one in self.visits[name]]

    def to_little(self, name: str) -> list[float]:
        return [one.full / one.little for one in self.visits[name]]

    @property
    def lists(self) -> list[str]:
        return [name for name in self.visits if name not in COUNTS]


def figures(results: Results) -> dict[str, float | str]:
    """What scripts follow. Of the pages that count nobody, the one that loses most counts."""
    empty, little = _most(results, results.to_empty), _most(results, results.to_little)
    return {
        "time_ratio": round(median(results.to_empty(empty)), 3),
        "slowest": empty,
        "growth_ratio": round(median(results.to_little(little)), 3),
        "all_pages_ratio": round(median(_together(results)), 3),
        "statements": max(counts[-1] for counts in results.statements.values()),
    }


def _most(results: Results, ratios: Callable[[str], list[float]]) -> str:
    return max(results.lists, key=lambda name: median(ratios(name)))


def _together(results: Results) -> list[float]:
    """All pages one after the other, full to empty, round by round."""
    rounds = zip(*(results.visits[name] for name in results.lists), strict=True)
    return [sum(one.full for one in visits) / sum(one.empty for one in visits) for visits in rounds]


def page(results: Results) -> str:
    """docs/benchmarks/pages.md."""
    return "\n".join([SET_UP.read_text(), *_goals(results), *_pages(results)]) + "\n"


def _goals(results: Results) -> Iterator[str]:
    found = figures(results)
    yield "## Targets\n"
    yield f"With {results.customers:,} customers and {results.redemptions:,} redemptions of 200 offers.\n"
    time, growth, most = float(found["time_ratio"]), float(found["growth_ratio"]), int(found["statements"])
    together = median(_together(results))
    yield from report.goals(
        [
            (
                f"the page that loses most, to an empty database ({found['slowest']})",
                f"≤ {TIME:.0f} ×",
                f"{time:.2f} ×",
                time <= TIME,
            ),
            (
                "all pages one after the other, to an empty database",
                f"≤ {TIME:.0f} ×",
                f"{together:.2f} ×",
                together <= TIME,
            ),
            (
                f"the page that loses most, to one with a pageful ({_most(results, results.to_little)})",
                f"≤ {TIME:.0f} ×",
                f"{growth:.2f} ×",
                growth <= TIME,
            ),
            ("statements of a page, at most", f"≤ {STATEMENTS}", str(most), most <= STATEMENTS),
        ]
    )
    yield ""


def _pages(results: Results) -> Iterator[str]:
    yield "## Page by page\n"
    yield "Medians of all rounds in milliseconds, with their spread for the full database.\n"
    yield "| page | empty | a pageful | full | full to empty | full to a pageful | statements |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, visits in results.visits.items():
        empty, little, full = zip(*(astuple(one) for one in visits), strict=True)
        ms = f"{1e3 * median(empty):.1f} | {1e3 * median(little):.1f} | {report.spread([1e3 * one for one in full], 1)}"
        ratios = f"{report.spread(results.to_empty(name))} | {median(results.to_little(name)):.2f}"
        yield f"| {name} | {ms} | {ratios} | {results.statements[name][-1]} |"
