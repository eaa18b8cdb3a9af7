"""The page and the figures of `make benchmark-mail`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import report
from webapp.campaigns.models import BATCH_SIZE

OURS, RAW, FLASK_MAIL, CEILING = "Onecode", "raw smtplib", "Flask-Mail", "prepared bytes"
FAST, PLAIN, SLOW = "fast", "fast, without PIPELINING", "replies after 10 ms"
FAR, FAR_PLAIN = "5 ms latency", "5 ms latency, without PIPELINING"
# Targets.
TO_RAW, TO_FLASK_MAIL, TO_ONE, WAL, MEMORY = 0.40, 2.5, 7, 60, 1.1
SET_UP = Path(__file__).with_name("mail.md")


@dataclass(frozen=True)
class Case:
    """A sender (`implementation`), a relay and the number of connections."""

    relay: str
    implementation: str
    connections: int = 1


ONE_CONNECTION, EIGHT_CONNECTIONS = Case(FAST, OURS), Case(FAST, OURS, 8)
RAW_LOOP, FLASK_MAIL_LOOP = Case(FAST, RAW), Case(FAST, FLASK_MAIL)
SLOW_ONE, SLOW_EIGHT = Case(SLOW, OURS), Case(SLOW, OURS, 8)


@dataclass(frozen=True)
class MailSample:
    """One run of `mails` emails.

    `rate` is in emails per second from the first to the last; CPU seconds, `size` and `wal` in bytes are per email.
    For Onecode, `rate_from_launch` is the rate from the launch on, and `peak` the worker's peak memory in bytes.
    """

    mails: int
    rate: float
    sender: float
    postgres: float
    sink: float
    size: float
    rate_from_launch: float = 0
    wal: float = 0
    peak: int = 0

    @property
    def cpu(self) -> float:
        """The CPU seconds of the sender and its database per email."""
        return self.sender + self.postgres


@dataclass
class MailResults:
    """Samples in the order of the rounds.

    `quarter_runs` are runs with a quarter of the emails; `rows` are the rows that a run of `mails` emails added, by
    table.
    """

    samples: dict[Case, list[MailSample]] = field(default_factory=dict)
    quarter_runs: list[MailSample] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    mails: int = 0

    def ratios(
        self, case: Case, other: Case, value: Callable[[MailSample], float] = lambda sample: sample.rate
    ) -> list[float]:
        """The ratios of one case to another, round by round."""
        return [value(a) / value(b) for a, b in zip(self.samples[case], self.samples[other], strict=True)]

    def memory(self) -> list[float]:
        """The peak memory relative to that with a quarter of the emails, round by round."""
        return [a.peak / b.peak for a, b in zip(self.samples[ONE_CONNECTION], self.quarter_runs, strict=True)]

    def wal(self) -> list[float]:
        """The WAL per email over one or several connections, the larger, per round."""
        return [
            max(a.wal, b.wal)
            for a, b in zip(self.samples[ONE_CONNECTION], self.samples[EIGHT_CONNECTIONS], strict=True)
        ]

    def batches_are_all(self) -> bool:
        """Whether there is one row per batch and none about single emails."""
        return self.rows.get("batch") == -(-self.mails // BATCH_SIZE) and not {"mail_issue", "batch_cursor"} & {
            *self.rows
        }


def figures(results: MailResults) -> dict[str, float]:
    """The figures of the JSON line."""
    return {
        "raw_ratio": _median(results.ratios(ONE_CONNECTION, RAW_LOOP)),
        "flask_mail_ratio": _median(results.ratios(ONE_CONNECTION, FLASK_MAIL_LOOP)),
        "connections_ratio": _median(results.ratios(SLOW_EIGHT, SLOW_ONE)),
        "wal_per_mail": round(median(results.wal()), 1),
        "memory_ratio": _median(results.memory()),
        "rows": sum(results.rows.values()),
        "mails": results.mails,
        "raw_ratio_without_pipelining": _median(results.ratios(Case(PLAIN, OURS), RAW_LOOP)),
        "raw_cpu_ratio": _median(results.ratios(ONE_CONNECTION, RAW_LOOP, lambda sample: sample.cpu)),
        "flask_mail_cpu_ratio": _median(results.ratios(ONE_CONNECTION, FLASK_MAIL_LOOP, lambda sample: sample.cpu)),
    }


def page(results: MailResults) -> str:
    """docs/benchmarks/mail.md."""
    return (
        "\n".join([SET_UP.read_text(), *_targets(results), *_runs(results), *_costs(results), *_memory(results)]) + "\n"
    )


def _targets(results: MailResults) -> Iterator[str]:
    yield "## Targets\n"
    yield "Medians of the ratios within a round, and their spread.\n"
    relative_to_raw, relative_to_loop = (
        results.ratios(ONE_CONNECTION, RAW_LOOP),
        results.ratios(ONE_CONNECTION, FLASK_MAIL_LOOP),
    )
    relative_to_one, wal, memory = results.ratios(SLOW_EIGHT, SLOW_ONE), results.wal(), results.memory()
    rows = ", ".join(f"{n} {table}" for table, n in results.rows.items())
    batches = -(-results.mails // BATCH_SIZE)
    yield from report.target_table(
        [
            (
                "emails/s relative to a raw smtplib loop, one connection",
                f"≥ {TO_RAW:.2f}",
                *_measured(relative_to_raw, relative_to_raw, TO_RAW),
            ),
            (
                "emails/s relative to a Flask-Mail loop, one connection",
                f"≥ {TO_FLASK_MAIL}",
                *_measured(relative_to_loop, relative_to_loop, TO_FLASK_MAIL),
            ),
            (
                "8 connections relative to one, relay replies after 10 ms",
                f"≥ {TO_ONE}",
                *_measured(relative_to_one, relative_to_one, TO_ONE),
            ),
            ("WAL per email without full-page images", f"≤ {WAL} bytes", report.spread(wal, 1), median(wal) <= WAL),
            (
                f"rows that {results.mails:,} emails leave",
                f"{batches} batch and the campaign's own",
                rows,
                results.batches_are_all(),
            ),
            (
                "peak memory of the worker relative to a quarter of the emails",
                f"≤ {MEMORY}",
                report.spread(memory),
                median(memory) <= MEMORY,
            ),
        ]
    )
    yield ""


def _measured(shown: list[float], ratios: list[float], wanted: float) -> tuple[str, bool]:
    return report.spread(shown), median(ratios) >= wanted


def _runs(results: MailResults) -> Iterator[str]:
    yield "## Speed\n"
    yield (
        "Medians of all rounds and their spread. *From the launch* includes everything before the first email: "
        "the task queue, the preparation of batches, the connection.\n"
    )
    yield "| relay | implementation | connections | emails | emails/s (spread) | from the launch | relative to raw |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for case, samples in results.samples.items():
        raw = Case(case.relay, RAW)
        if raw not in results.samples and case.relay == PLAIN:
            raw = RAW_LOOP
        relative_to_raw = f"{_relative_rate(results, case, raw):.2f}" if raw in results.samples else "–"
        rate_from_launch = (
            f"{median(sample.rate_from_launch for sample in samples):,.0f}" if case.implementation == OURS else "–"
        )
        rate = report.spread([sample.rate for sample in samples], 0)
        case_cells = f"{case.relay} | {case.implementation} | {case.connections} | {samples[0].mails:,}"
        yield f"| {case_cells} | {rate} | {rate_from_launch} | {relative_to_raw} |"
    yield ""


def _relative_rate(results: MailResults, case: Case, other: Case) -> float:
    """The ratio of two rates, within the rounds if both were run in each."""
    if len(results.samples[case]) == len(results.samples[other]):
        return median(results.ratios(case, other))
    ours, theirs = (median(sample.rate for sample in results.samples[each]) for each in (case, other))
    return ours / theirs


def _costs(results: MailResults) -> Iterator[str]:
    yield "## Cost of an email\n"
    yield "CPU in µs of the sender, of PostgreSQL and of the sink. WAL without full-page images.\n"
    yield "| relay | implementation | connections | sender | PostgreSQL | sink | WAL, bytes | bytes sent |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for case, samples in results.samples.items():
        parts = [1e6 * median(getattr(one, part) for one in samples) for part in ("sender", "postgres", "sink")]
        wal = f"{median(one.wal for one in samples):.1f}" if case.implementation == OURS else "–"
        size = median(one.size for one in samples)
        cpu = " | ".join(f"{part:,.0f}" for part in parts)
        yield f"| {case.relay} | {case.implementation} | {case.connections} | {cpu} | {wal} | {size:,.0f} |"
    yield ""


def _memory(results: MailResults) -> Iterator[str]:
    yield "## Memory\n"
    yield "Peak memory of the worker with one connection.\n"
    yield "| emails | MB (spread) |"
    yield "|---:|---:|"
    for samples in (results.quarter_runs, results.samples[ONE_CONNECTION]):
        yield f"| {samples[0].mails:,} | {report.spread([one.peak / 1e6 for one in samples], 1)} |"


def _median(values: list[float]) -> float:
    return round(median(values), 3)
