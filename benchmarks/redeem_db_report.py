"""The page and the figures of `make benchmark-redeem-db`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.textbook import ForUpdate, OneStatement, OrmHabit, PlainInsert

INSERT, ONE, ORM, LOCK = PlainInsert.name, OneStatement.name, OrmHabit.name, ForUpdate.name
OURS = "Onecode"
VARIANTS = ((INSERT, False), *((name, capped) for name in (OURS, ONE, ORM, LOCK) for capped in (False, True)))
# Targets relative to the rate of a plain INSERT, without and with a cap.
TARGET_RATIOS = {False: 0.45, True: 0.40}
# The last units of a cap: the units, and the customers who try to redeem one.
CAP, CAP_CUSTOMERS = 100, 600
SET_UP = Path(__file__).with_name("redeem_db.md")


@dataclass(frozen=True)
class RedeemDbSample:
    """One run: redemptions per second, and CPU seconds per redemption."""

    rate: float
    caller: float
    postgres: float
    rows: int

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s, {1e6 * self.caller:.0f}/{1e6 * self.postgres:.0f} µs, {self.rows:,} rows"


@dataclass
class RedeemDbResults:
    """The samples by implementation, cap and number of threads, per round.

    `cap_rows` are the redemptions that each implementation recorded for a cap of `CAP`.
    """

    customers: int
    seconds: float
    samples: dict[tuple[str, bool, int], list[RedeemDbSample]] = field(default_factory=dict)
    cap_rows: dict[str, list[int]] = field(default_factory=dict)

    @property
    def threads(self) -> list[int]:
        return sorted({threads for _, _, threads in self.samples})

    def ratios(self, name: str, capped: bool, threads: int) -> list[float]:
        """The rate relative to a plain INSERT with as many threads, round by round."""
        limit = self.samples[INSERT, False, threads]
        return [a.rate / b.rate for a, b in zip(self.samples[name, capped, threads], limit, strict=True)]


def title(name: str, capped: bool) -> str:
    return name if name == INSERT else f"{name}, {'capped' if capped else 'uncapped'}"


def figures(results: RedeemDbResults) -> dict[str, float]:
    """The figures of the JSON line; the worst number of threads counts."""
    ratios_by_name: dict[str, float] = {}
    for kind, capped in (("uncapped", False), ("capped", True)):
        by_threads = {n: round(median(results.ratios(OURS, capped, n)), 4) for n in results.threads}
        ratios_by_name[f"insert_ratio_{kind}"] = min(by_threads.values())
        ratios_by_name |= {f"insert_ratio_{kind}_{n}": ratio for n, ratio in by_threads.items()}
    return ratios_by_name | {"sold": max(results.cap_rows[OURS]), "sold_orm": max(results.cap_rows[ORM])}


def page(results: RedeemDbResults) -> str:
    """docs/benchmarks/redeem-db.md."""
    return "\n".join([SET_UP.read_text(), *_targets(results), *_runs(results), *_cap_table(results)]) + "\n"


def _targets(results: RedeemDbResults) -> Iterator[str]:
    yield "## Targets\n"
    yield "Redemptions per second relative to plain INSERTs: medians of the ratios within a round, and their spread.\n"
    lines = []
    for capped, wanted in TARGET_RATIOS.items():
        for threads in results.threads:
            ratios = results.ratios(OURS, capped, threads)
            label = f"{'capped' if capped else 'uncapped'}, {threads} threads"
            lines.append((label, f"≥ {wanted:.2f}", report.spread(ratios), median(ratios) >= wanted))
    yield from report.target_table(lines)
    yield ""


def _runs(results: RedeemDbResults) -> Iterator[str]:
    rounds = len(next(iter(results.samples.values())))
    yield "## The runs\n"
    yield (
        f"{results.customers:,} customers; medians of {rounds} runs of at most {results.seconds:g} s. "
        "CPU is per redemption.\n"
    )
    yield ("| threads | implementation | redemptions/s (spread) | relative to INSERT | CPU µs | callers | PostgreSQL |")
    yield "|---:|---|---:|---:|---:|---:|---:|"
    for threads in results.threads:
        for name, capped in VARIANTS:
            samples = results.samples[name, capped, threads]
            rate = report.spread([sample.rate for sample in samples], 0)
            caller, postgres = (
                1e6 * median(getattr(sample, part) for sample in samples) for part in ("caller", "postgres")
            )
            ratio = median(results.ratios(name, capped, threads))
            yield (
                f"| {threads} | {title(name, capped)} | {rate} | {ratio:.2f} "
                f"| {caller + postgres:,.0f} | {caller:,.0f} | {postgres:,.0f} |"
            )
    yield ""


def _cap_table(results: RedeemDbResults) -> Iterator[str]:
    yield "## The last units of a cap\n"
    threads = results.threads[-1]
    yield (
        f"{threads} threads redeem for {CAP_CUSTOMERS:,} customers with a cap of {CAP}. Rows afterwards, run by run:\n"
    )
    yield "| implementation | rows |"
    yield "|---|---:|"
    for name, rows in results.cap_rows.items():
        yield f"| {name} | {', '.join(map(str, rows))} |"
