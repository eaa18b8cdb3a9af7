"""The page and the figures of `make benchmark-launch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.bank import Bank
from benchmarks.eager import Eager
from benchmarks.measure import PERCENT, DesignRun
from benchmarks.meter import Cost
from benchmarks.onecode import Onecode

EAGER, BANK, OURS = Eager.name, Bank.name, Onecode.name
DESIGNS = (EAGER, BANK, OURS)

LAST = f"{PERCENT[-1]} % redeemed"
FIGURES = {
    "wal": "WAL, bytes",
    "wal_without_images": "WAL without images, bytes",
    "disk": "disk, bytes",
    "peak_disk": "peak disk usage, bytes",
    "seconds": "time, µs",
    "cpu": "CPU, µs",
}
SET_UP = Path(__file__).with_name("launch.md")


@dataclass
class LaunchResults:
    """The measurements by number of customers and design.

    `requests` are single launch requests, `runs` complete runs.
    """

    requests: dict[tuple[int, str], list[Cost]] = field(default_factory=dict)
    runs: dict[tuple[int, str], list[DesignRun]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        return sorted({n for n, _ in self.runs})


def page(results: LaunchResults) -> str:
    """docs/benchmarks/launch.md."""
    lines = [SET_UP.read_text(), *targets(figures(results)), *_requests(results)]
    for n in results.sizes:
        lines += [*_steps(results, n), *_ratios(results, n)]
    return "\n".join(lines) + "\n"


def figures(results: LaunchResults) -> dict[str, float]:
    """The figures of the JSON line: Onecode relative to the others."""
    n = results.sizes[-1]
    launches = [_steady(results, size, OURS) for size, name in results.requests if name == OURS]
    wal = [cost.wal for cost in launches]
    found: dict[str, float] = {"customers": n, "launch_wal_bytes": max(wal), "launch_wal_spread": max(wal) - min(wal)}
    for key, other in (("eager", EAGER), ("bank", BANK)):
        for name, title in FIGURES.items():
            ours, theirs = (_median(results, n, design, MEASURES[title], LAST) for design in (OURS, other))
            found[f"{name}_vs_{key}_20"] = round(ours / theirs, 4)
    return found


def targets(found: Mapping[str, float]) -> Iterator[str]:
    """The table of targets and whether they were met."""
    yield "## Targets\n"
    yield f"With {found['customers']:,} customers; the request with any number of them.\n"
    launch, spread = found["launch_wal_bytes"], found["launch_wal_spread"]
    lines = [
        ("WAL of the launch request", "≤ 1,024 bytes", f"{launch:,.0f} bytes", launch <= 1024),
        ("the same for few and for many customers", "± 0 bytes", f"± {spread:,.0f} bytes", spread == 0),
    ]
    for title, name, part in (("WAL", "wal", 5), ("disk", "disk", 8)):
        ratio = found[f"{name}_vs_eager_20"]
        label = f"{title} of launch, sending, 20 % redeemed"
        lines.append((label, f"≤ 1/{part} of eager", _ratio_text(ratio, 1), ratio <= 1 / part))
    yield from report.target_table(lines)
    yield ""


def _requests(results: LaunchResults) -> Iterator[str]:
    yield "## The launch request\n"
    yield "For many offers, one after the other: the medians, and the first request, right after a checkpoint.\n"
    yield "| customers | design | ms (spread) | WAL, bytes | WAL of the first, of it images |"
    yield "|---:|---|---:|---:|---:|"
    for (n, name), costs in results.requests.items():
        steady = costs[1:]
        first = costs[0]
        yield (
            f"| {n:,} | {name} | {report.spread([1000 * cost.seconds for cost in steady])} "
            f"| {_steady(results, n, name).wal:,} | {first.wal:,}, {first.images:,} |"
        )


def _steps(results: LaunchResults, n: int) -> Iterator[str]:
    runs = {name: results.runs[n, name] for name in DESIGNS}
    yield f"\n## {n:,} customers\n"
    yield f"Medians of {len(runs[OURS])}. The redemptions of a line are those since the previous line.\n"
    yield (
        "| step | design | seconds (spread) | CPU s | rows written | WAL kB | images kB | rows after | disk after, kB |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for step in runs[BANK][0].steps:
        for name in DESIGNS:
            if step in runs[name][0].steps:
                yield _step(step, name, [run.steps[step].cost for run in runs[name]], runs[name])
    for name in DESIGNS:
        totals = [run.total() for run in runs[name]]
        yield _line("**total**", name, totals, sum(s.written for s in runs[name][0].steps.values()), runs[name], "")


def _step(step: str, name: str, costs: list[Cost], runs: list[DesignRun]) -> str:
    return _line(step, name, costs, runs[0].steps[step].written, runs, step)


def _line(title: str, name: str, costs: Sequence[Cost], written: int, runs: list[DesignRun], step: str) -> str:
    last = step or list(runs[0].steps)[-1]
    wal, images = (median(getattr(cost, part) for cost in costs) / 1000 for part in ("wal", "images"))
    disk = median(run.steps[last].disk for run in runs) / 1000
    seconds, cpu = report.spread([cost.seconds for cost in costs]), median(cost.cpu for cost in costs)
    return (
        f"| {title} | {name} | {seconds} | {cpu:,.2f} "
        f"| {written:,} | {wal:,.1f} | {images:,.1f} | {runs[0].steps[last].rows:,} | {disk:,.0f} |"
    )


def _ratios(results: LaunchResults, n: int) -> Iterator[str]:
    yield "\nPer customer, from the launch on (for the bank: from its filling on):\n"
    yield "| until | measure | eager pool | voucher bank | Onecode | Onecode / eager | Onecode / bank |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for last in list(results.runs[n, OURS][0].steps)[2:]:
        for title, value in MEASURES.items():
            values = [_median(results, n, name, value, last) for name in DESIGNS]
            if title in TIMES:
                values = [value * 1e6 for value in values]
            yield (
                f"| {last} | {title} | "
                + " | ".join(f"{value / n:,.0f}" for value in values)
                + f" | {_ratio_text(values[2], values[0])} | {_ratio_text(values[2], values[1])} |"
            )


def _ratio_text(ours: float, theirs: float) -> str:
    if not ours or not theirs:
        return "–"
    return f"1/{theirs / ours:.1f}" if ours <= theirs else f"{ours / theirs:.1f} ×"


TIMES = {
    "time, µs": lambda run: run.total().seconds,
    "CPU, µs": lambda run: run.total().cpu,
}
MEASURES: dict[str, Callable[[DesignRun], float]] = {
    "WAL, bytes": lambda run: run.total().wal,
    "WAL without images, bytes": lambda run: run.total().records,
    "disk, bytes": lambda run: run.disk,
    "peak disk usage, bytes": lambda run: run.peak,
    **TIMES,
}


def _median(results: LaunchResults, n: int, name: str, value: Callable[[DesignRun], float], last: str) -> float:
    return median(value(run.until(last)) for run in results.runs[n, name])


def _steady(results: LaunchResults, n: int, name: str) -> Cost:
    """The median request, excluding the first."""
    costs = results.requests[n, name][1:]
    return Cost(median(cost.seconds for cost in costs), wal=int(median(cost.wal for cost in costs)))
