"""The page and the figures of `make benchmark-redeem-http`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report

HELLO, OURS, NAIVE = "Flask hello", "Onecode", "naive ORM view"
VARIANTS = ((HELLO, False), (OURS, False), (OURS, True), (NAIVE, False), (NAIVE, True))
PARTS = {"p50": 1e3, "p99": 1e3, "web": 1e6, "postgres": 1e6, "client": 1e6}
SET_UP = Path(__file__).with_name("redeem_http.md")


@dataclass(frozen=True)
class RedeemHttpSample:
    """One run: responses per second, latencies, and CPU seconds per response."""

    rate: float
    p50: float
    p99: float
    web: float
    postgres: float
    client: float

    def __str__(self) -> str:
        parts = "/".join(f"{1e6 * part:.0f}" for part in (self.web, self.postgres, self.client))
        return f"{self.rate:,.0f}/s, p50 {1e3 * self.p50:.1f} ms, p99 {1e3 * self.p99:.1f} ms, {parts} µs"


@dataclass
class RedeemHttpResults:
    """The samples by server, cap and number of clients, in the order of the rounds."""

    customers: int
    seconds: int
    samples: dict[tuple[str, bool, int], list[RedeemHttpSample]] = field(default_factory=dict)
    single_client_seconds: dict[str, list[float]] = field(default_factory=dict)
    command: str = ""

    @property
    def clients(self) -> list[int]:
        return sorted({clients for _, _, clients in self.samples})

    def ratios(self, ours: tuple[str, bool], theirs: tuple[str, bool]) -> list[float]:
        """The ratios of each round, with the most clients."""
        most = self.clients[-1]
        return [a.rate / b.rate for a, b in zip(self.samples[*ours, most], self.samples[*theirs, most], strict=True)]


def title(name: str, capped: bool) -> str:
    return name if name == HELLO else f"{name}, {'capped' if capped else 'uncapped'}"


def figures(results: RedeemHttpResults) -> dict[str, float]:
    """The figures of the JSON line.

    The naive view is compared with the same kind of offer, capped or uncapped; the smaller ratio counts.
    """
    ratios = {key: median(values) for key, values in _ratios(results).items()}
    most = results.clients[-1]
    shipped, direct = (median(results.single_client_seconds[name]) for name in ("as shipped", "direct"))
    return {
        "clients": most,
        "hello_ratio_uncapped": round(ratios["uncapped"], 4),
        "hello_ratio_capped": round(ratios["capped"], 4),
        "capped_ratio": round(ratios["cap"], 4),
        "orm_ratio": round(min(ratios["naive uncapped"], ratios["naive capped"]), 3),
        "alone_ratio": round(shipped / direct, 3),
        "requests_per_second_uncapped": round(median(s.rate for s in results.samples[OURS, False, most])),
        "requests_per_second_capped": round(median(s.rate for s in results.samples[OURS, True, most])),
    }


def _ratios(results: RedeemHttpResults) -> dict[str, list[float]]:
    hello, free, capped = (HELLO, False), (OURS, False), (OURS, True)
    return {
        "uncapped": results.ratios(free, hello),
        "capped": results.ratios(capped, hello),
        "cap": results.ratios(capped, free),
        "naive uncapped": results.ratios(free, (NAIVE, False)),
        "naive capped": results.ratios(capped, (NAIVE, True)),
    }


def page(results: RedeemHttpResults) -> str:
    """docs/benchmarks/redeem-http.md."""
    return "\n".join([SET_UP.read_text(), *_targets(results), *_runs(results), *_single_client(results)]) + "\n"


def _targets(results: RedeemHttpResults) -> Iterator[str]:
    yield "## Targets\n"
    yield (
        f"With {results.clients[-1]} clients: medians of the ratios within a round, and their spread. The server: "
        f"`{results.command}`.\n"
    )
    ratios = _ratios(results)
    lines = [
        (f"{kind} relative to hello", "≥ 0.40", report.spread(ratios[kind]), median(ratios[kind]) >= 0.4)
        for kind in ("uncapped", "capped")
    ]
    cap = median(ratios["cap"])
    lines.append(("capped relative to uncapped", "0.85 or more", report.spread(ratios["cap"]), cap >= 0.85))
    for kind in ("uncapped", "capped"):
        times = ratios[f"naive {kind}"]
        lines.append(
            (f"{kind} relative to the naive view", "≥ 5 ×", f"{report.spread(times, 1)} ×", median(times) >= 5)
        )
    yield from report.target_table(lines)
    yield ""


def _runs(results: RedeemHttpResults) -> Iterator[str]:
    rounds = len(next(iter(results.samples.values())))
    yield "## The runs\n"
    yield f"{results.customers:,} customers; medians of {rounds} runs of {results.seconds} s. CPU is per request.\n"
    yield "| clients | server | requests/s (spread) | p50 ms | p99 ms | web µs | PostgreSQL µs | client µs |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|"
    for clients in results.clients:
        for name, capped in VARIANTS:
            samples = results.samples[name, capped, clients]
            times = " | ".join(_times(samples, part, unit) for part, unit in PARTS.items())
            rates = report.spread([sample.rate for sample in samples], 0)
            yield f"| {clients} | {title(name, capped)} | {rates} | {times} |"
    yield ""


def _times(samples: list[RedeemHttpSample], name: str, unit: float) -> str:
    value = unit * median(getattr(sample, name) for sample in samples)
    return f"{value:,.1f}" if unit == 1e3 else f"{value:,.0f}"


def _single_client(results: RedeemHttpResults) -> Iterator[str]:
    shipped, direct = (sorted(results.single_client_seconds[name]) for name in ("as shipped", "direct"))
    yield "## One client without other load\n"
    yield (
        f"The action called {len(shipped):,} times by one thread of one process, in turn. As shipped, with group "
        f"commit: {_latencies(shipped)}. Directly, without group commit: {_latencies(direct)}. "
        f"Shipped relative to direct: {median(shipped) / median(direct):.2f} ×."
    )


def _latencies(values: list[float]) -> str:
    last = values[len(values) * 99 // 100]
    return f"p50 {1e3 * median(values):.2f} ms, p99 {1e3 * last:.2f} ms"
