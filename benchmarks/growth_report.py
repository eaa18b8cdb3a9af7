"""The page and the figures of `make benchmark-growth`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.meter import Cost

REDEEM, USABLE = "redeem", "offers of a customer"
# Targets: CPU relative to an empty table, and bytes per redemption.
CPU, BARE, FULL = 1.3, 110, 180
SET_UP = Path(__file__).with_name("growth.md")


@dataclass(frozen=True)
class Sizes:
    """The bytes of a table of redemptions, its primary key, and the total."""

    rows: int
    table: int
    key: int
    total: int

    @property
    def bare(self) -> float:
        """The bytes of a row and its primary key entry, which every such table needs."""
        return (self.table + self.key) / self.rows

    @property
    def per_row(self) -> float:
        return self.total / self.rows


@dataclass
class GrowthResults:
    """The cost of one operation by name and number of redemptions, per round.

    `bare` and `full` are the sizes of the table without and with orders and keys.
    """

    customers: int
    costs: dict[tuple[str, int], list[Cost]] = field(default_factory=dict)
    bare: Sizes | None = None
    full: Sizes | None = None

    @property
    def levels(self) -> list[int]:
        return sorted({rows for _, rows in self.costs})

    def ratios(self, name: str, rows: int) -> list[float]:
        """The CPU relative to an empty table, round by round."""
        empty = self.costs[name, self.levels[0]]
        return [a.cpu / b.cpu for a, b in zip(self.costs[name, rows], empty, strict=True)]


def figures(results: GrowthResults) -> dict[str, float]:
    """The figures of the JSON line, for the most redemptions.

    The worse of the two operations counts.
    """
    most = results.levels[-1]
    redeem, usable = (round(median(results.ratios(name, most)), 3) for name in (REDEEM, USABLE))
    return {
        "redemptions": most,
        "cpu_ratio": max(redeem, usable),
        "redeem_cpu_ratio": redeem,
        "usable_cpu_ratio": usable,
        "bytes_per_row": round(results.bare.bare, 1) if results.bare else 0,
        "bytes_per_row_full": round(results.full.per_row, 1) if results.full else 0,
    }


def page(results: GrowthResults) -> str:
    """docs/benchmarks/growth.md."""
    return "\n".join([SET_UP.read_text(), *_targets(results), *_costs(results), *_sizes(results)]) + "\n"


def _targets(results: GrowthResults) -> Iterator[str]:
    found = figures(results)
    yield "## Targets\n"
    yield f"With {results.customers:,} customers and up to {results.levels[-1]:,} redemptions.\n"
    cpu, bare, full = found["cpu_ratio"], found["bytes_per_row"], found["bytes_per_row_full"]
    yield from report.target_table(
        [
            ("CPU relative to an empty table", f"≤ {CPU} ×", f"{cpu:.2f} ×", cpu <= CPU),
            ("bytes for a bare redemption with its primary key", f"≤ {BARE}", f"{bare:.0f}", bare <= BARE),
            ("bytes with list index, order and Idempotency-Key", f"≤ {FULL}", f"{full:.0f}", full <= FULL),
        ]
    )
    yield ""


def _costs(results: GrowthResults) -> Iterator[str]:
    yield "## Cost of one operation\n"
    yield "Medians of all rounds, with their spread; the ratio is that of the CPU, round by round.\n"
    yield "| redemptions | operation | CPU, µs | relative to empty table | ms | WAL, bytes |"
    yield "|---:|---|---:|---:|---:|---:|"
    for name in (REDEEM, USABLE):
        for rows in results.levels:
            costs, ratios = results.costs[name, rows], results.ratios(name, rows)
            cpu, ms = report.spread([1e6 * cost.cpu for cost in costs], 0), [1e3 * cost.seconds for cost in costs]
            wal = median(cost.records for cost in costs)
            yield f"| {rows:,} | {name} | {cpu} | {report.spread(ratios)} | {report.spread(ms)} | {wal:,.0f} |"
    yield ""


def _sizes(results: GrowthResults) -> Iterator[str]:
    yield "## Bytes per redemption\n"
    yield "| redemptions | row | table | primary key | list index | total |"
    yield "|---:|---|---:|---:|---:|---:|"
    for name, sizes in (("bare", results.bare), ("with order and Idempotency-Key", results.full)):
        if sizes:
            index = sizes.total - sizes.table - sizes.key
            parts = [part / sizes.rows for part in (sizes.table, sizes.key, index, sizes.total)]
            yield f"| {sizes.rows:,} | {name} | " + " | ".join(f"{part:.1f}" for part in parts) + " |"
