"""The page and the figures of `make benchmark-pages`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report

# Targets: time relative to an empty database, and statements per page.
TIME, STATEMENTS = 2.0, 15
# Pages that count rows exactly, here the recipients of a launch; they are not compared.
COUNTING_PAGES = ("launch page of a campaign",)
SET_UP = Path(__file__).with_name("pages.md")


@dataclass(frozen=True)
class Visits:
    """The seconds that a page takes on the empty, the small and the full database."""

    empty: float
    small: float
    full: float


@dataclass
class PagesResults:
    """By page, the medians of each round, and the statements on each database."""

    customers: int
    redemptions: int
    visits: dict[str, list[Visits]] = field(default_factory=dict)
    statements: dict[str, Sequence[int]] = field(default_factory=dict)

    def ratios_to_empty(self, name: str) -> list[float]:
        return [visit.full / visit.empty for visit in self.visits[name]]

    def ratios_to_small(self, name: str) -> list[float]:
        return [visit.full / visit.small for visit in self.visits[name]]

    @property
    def compared_pages(self) -> list[str]:
        return [name for name in self.visits if name not in COUNTING_PAGES]


def figures(results: PagesResults) -> dict[str, float | str]:
    """The figures of the JSON line; pages that count rows are not compared."""
    empty, small = _slowest(results, results.ratios_to_empty), _slowest(results, results.ratios_to_small)
    return {
        "time_ratio": round(median(results.ratios_to_empty(empty)), 3),
        "slowest": empty,
        "growth_ratio": round(median(results.ratios_to_small(small)), 3),
        "all_pages_ratio": round(median(_all_pages(results)), 3),
        "statements": max(counts[-1] for counts in results.statements.values()),
    }


def _slowest(results: PagesResults, ratios: Callable[[str], list[float]]) -> str:
    return max(results.compared_pages, key=lambda name: median(ratios(name)))


def _all_pages(results: PagesResults) -> list[float]:
    """The ratio of full to empty over all pages together, round by round."""
    rounds = zip(*(results.visits[name] for name in results.compared_pages), strict=True)
    return [sum(visit.full for visit in visits) / sum(visit.empty for visit in visits) for visits in rounds]


def page(results: PagesResults) -> str:
    """docs/benchmarks/pages.md."""
    return "\n".join([SET_UP.read_text(), *_targets(results), *_pages(results)]) + "\n"


def _targets(results: PagesResults) -> Iterator[str]:
    found = figures(results)
    yield "## Targets\n"
    yield f"With {results.customers:,} customers and {results.redemptions:,} redemptions of 200 offers.\n"
    time, growth, most = float(found["time_ratio"]), float(found["growth_ratio"]), int(found["statements"])
    all_pages = median(_all_pages(results))
    yield from report.target_table(
        [
            (
                f"slowest page relative to an empty database ({found['slowest']})",
                f"≤ {TIME:.0f} ×",
                f"{time:.2f} ×",
                time <= TIME,
            ),
            (
                "all pages in sequence, relative to an empty database",
                f"≤ {TIME:.0f} ×",
                f"{all_pages:.2f} ×",
                all_pages <= TIME,
            ),
            (
                f"slowest page relative to a pageful ({_slowest(results, results.ratios_to_small)})",
                f"≤ {TIME:.0f} ×",
                f"{growth:.2f} ×",
                growth <= TIME,
            ),
            ("maximum statements per page", f"≤ {STATEMENTS}", str(most), most <= STATEMENTS),
        ]
    )
    yield ""


def _pages(results: PagesResults) -> Iterator[str]:
    yield "## Page by page\n"
    yield "Medians of all rounds in milliseconds, with their spread for the full database.\n"
    yield "| page | empty | a pageful | full | full to empty | full to a pageful | statements |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, visits in results.visits.items():
        empty, small, full = zip(*(astuple(visit) for visit in visits), strict=True)
        full_ms = report.spread([1e3 * seconds for seconds in full], 1)
        ms = f"{1e3 * median(empty):.1f} | {1e3 * median(small):.1f} | {full_ms}"
        ratios = f"{report.spread(results.ratios_to_empty(name))} | {median(results.ratios_to_small(name)):.2f}"
        yield f"| {name} | {ms} | {ratios} | {results.statements[name][-1]} |"
