"""The page and the figures of `make benchmark-peers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import textbook
from benchmarks.report import spread, target_table

OSCAR_STEP, ACTION = "oscar's voucher step", "Onecode's action"
OSCAR_ORDER, HTTP = "oscar's whole order", "Onecode's whole HTTP call"
OSCAR_ONE_CLIENT, OSCAR_CAP = "oscar, an offer with a cap, one client alone", "oscar, an offer with a cap"
OSCAR_SINGLE = "oscar, a voucher for single use"
STEPS = (OSCAR_STEP, *(implementation.name for implementation in textbook.IMPLEMENTATIONS), ACTION)
ORDERS = (OSCAR_ORDER, HTTP)
STEP_TARGET, ORDER_TARGET = 15, 50
COLUMNS = ("confirmed", "recorded", "counter", "over_redeemed", "failed")
SET_UP = Path(__file__).with_name("peers.md")


@dataclass(frozen=True)
class PeersSample:
    """One run: redemptions, their rate per second, and CPU seconds per redemption.

    `program` is the CPU of the clients, over HTTP that of the web server.
    """

    redeemed: int
    rate: float
    program: float
    postgres: float

    @property
    def cpu(self) -> float:
        return self.program + self.postgres


@dataclass(frozen=True)
class CapResult:
    """The redemptions when more customers redeem than a cap allows.

    `confirmed` are counted by the responses, `recorded` by the rows; `counter` is what the cap is compared with.
    """

    cap: int
    confirmed: int
    recorded: int
    counter: int
    failed: int = 0
    first_error: str = ""

    @property
    def over_redeemed(self) -> int:
        return max(0, self.recorded - self.cap)


@dataclass
class PeersResults:
    seconds: float
    versions: str
    shapes: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)
    samples: dict[str, list[PeersSample]] = field(default_factory=dict)
    cap_results: dict[str, list[CapResult]] = field(default_factory=dict)
    command: str = ""

    def ratios(
        self, ours: str, theirs: str, value: Callable[[PeersSample], float] = lambda sample: sample.rate
    ) -> list[float]:
        """The ratios of one to another, run by run."""
        return [value(a) / value(b) for a, b in zip(self.samples[ours], self.samples[theirs], strict=True)]


def figures(results: PeersResults) -> dict[str, float]:
    """The figures of the JSON line; over-redemptions are summed over all runs."""
    return {
        "oscar_step_ratio": round(median(results.ratios(ACTION, OSCAR_STEP)), 2),
        "oscar_order_ratio": round(median(results.ratios(HTTP, OSCAR_ORDER)), 2),
        "oscar_over_redeemed": median(result.over_redeemed for result in results.cap_results[OSCAR_CAP]),
        "over_redeemed": sum(result.over_redeemed for name in (ACTION, HTTP) for result in results.cap_results[name]),
    }


def page(results: PeersResults) -> str:
    """docs/benchmarks/peers.md."""
    lines = [SET_UP.read_text(), *_targets(figures(results)), *_speed(results), *_cap_table(results), *_setup(results)]
    return "\n".join(lines) + "\n"


def _targets(found: dict[str, float]) -> Iterator[str]:
    step, order, over_redeemed = found["oscar_step_ratio"], found["oscar_order_ratio"], found["over_redeemed"]
    yield "## Targets\n"
    yield from target_table(
        [
            ("action relative to oscar's voucher step", f"≥ {STEP_TARGET} ×", f"{step:,.1f} ×", step >= STEP_TARGET),
            (
                "HTTP call relative to oscar's whole order",
                f"≥ {ORDER_TARGET} ×",
                f"{order:,.1f} ×",
                order >= ORDER_TARGET,
            ),
            ("over-redemptions by Onecode, all runs", "0", f"{over_redeemed:,}", over_redeemed == 0),
        ]
    )


def _speed(results: PeersResults) -> Iterator[str]:
    yield "\n## The voucher step alone\n"
    yield from _table(results, STEPS, OSCAR_STEP, "CPU of the clients")
    yield "\n## The whole order: different amounts of work\n"
    yield (
        "An order does much more than a redemption: a basket, its lines, prices, stock, the order with its lines.\n"
        "The ratio compares the two as a system for codes; it does not say that either is the\n"
        "better program.\n"
    )
    yield from _table(results, ORDERS, OSCAR_ORDER, "CPU of the program")


def _table(results: PeersResults, names: Sequence[str], baseline: str, program: str) -> Iterator[str]:
    yield (
        f"| | a second (spread) | to {baseline} (spread) | {program}, ms each | CPU of PostgreSQL, ms each "
        "| total CPU relative |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    for name in names:
        samples = results.samples[name]
        cpu = median(results.ratios(name, baseline, lambda sample: sample.cpu))
        yield (
            f"| {name} | {spread([sample.rate for sample in samples], 0)} "
            f"| {spread(results.ratios(name, baseline), 2)} × "
            f"| {1000 * median(sample.program for sample in samples):.3f} "
            f"| {1000 * median(sample.postgres for sample in samples):.3f} | {_format_ratio(cpu)} |"
        )


def _format_ratio(ratio: float) -> str:
    return f"1/{1 / ratio:,.1f}" if ratio < 0.995 else f"{ratio:,.2f} ×"


def _cap_table(results: PeersResults) -> Iterator[str]:
    yield "\n## The last units of a cap\n"
    yield (
        "300 customers and 64 clients at once. Oscar's customers have the voucher in their baskets and send the last\n"
        "request of the checkout, which looks at the offers once more before it places the order. *Recorded*: by the\n"
        "rows, which are orders with the discount for oscar and redemptions for the others. *Counter*: what the cap\n"
        "is compared with; ORM check-then-insert counts rows instead. Oscar's counter is read before the\n"
        "voucher is locked and written back afterwards, so that most increments are lost when many buy at once; a\n"
        "voucher for single use is checked under the lock, and exact. One figure if all runs agree, otherwise one for\n"
        "each.\n"
    )
    yield "| | cap | confirmed | recorded | counter | **over** | errors |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, cap_results in results.cap_results.items():
        each = [_join_values([getattr(result, column) for result in cap_results]) for column in COLUMNS]
        yield f"| {name} | {cap_results[0].cap} | {each[0]} | {each[1]} | {each[2]} | **{each[3]}** | {each[4]} |"
    first_error = next(
        (
            result.first_error
            for cap_results in results.cap_results.values()
            for result in cap_results
            if result.first_error
        ),
        "",
    )
    if first_error:
        yield f"\nThe first error: `{first_error.strip().splitlines()[0]}`"


def _join_values(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _setup(results: PeersResults) -> Iterator[str]:
    yield "\n## Setup\n"
    runs = len(results.samples[ACTION])
    yield f"- {results.versions}; medians of {runs} run{'s'[: runs > 1]} of {results.seconds:g} seconds each."
    for name, shapes in results.shapes.items():
        tried = ", ".join(f"{rate:,.0f}/s with {p} × {t}" for (p, t), rate in shapes.items())
        yield f"- Processes × threads tried for {name}, of which the best is kept: {tried}."
    yield f"- The web server: `{results.command}`."
