"""Run the three designs through the same steps with the same customers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks import jobs
from benchmarks.bank import Bank
from benchmarks.meter import Cost, Meter
from benchmarks.server import DatabaseServer

DATABASE = "measured"
FILL, REQUEST, JOB, SENDING = "fill the bank", "launch: request", "launch: job", "sending"
PERCENT = (1, 5, 20)
# Dequeuing from a table that is not vacuumed becomes slower and slower.
JOBS_AT_ONCE = 10_000
CLIENTS = 16


class Design(Protocol):
    """A design of vouchers: gives each customer a code and records redemptions."""

    name: str

    def set_up(self) -> None: ...
    def new_offer(self) -> int: ...
    def launch(self, offer_id: int) -> bool: ...
    def run_jobs(self, at_most: int) -> int: ...
    def count_mailed(self, offer_id: int) -> int: ...
    def redeem_requests(self, offer_id: int, customers: Sequence[int]) -> list[tuple[str, str]]: ...
    def redeem_each(self, requests: Sequence[tuple[str, str]]) -> int: ...
    def connect(self) -> None: ...
    def disconnect(self) -> None: ...


@dataclass(frozen=True)
class Step:
    """The cost of a step, and the rows that it wrote.

    `written` counts inserts, updates and deletes.

    `rows` and `disk` are the growth of all tables since the set-up, after the step and VACUUM.
    """

    cost: Cost
    written: int
    rows: int
    disk: int


@dataclass
class DesignRun:
    """One run of a design through all steps."""

    steps: dict[str, Step] = field(default_factory=dict)

    def total(self) -> Cost:
        return sum((step.cost for step in self.steps.values()), Cost())

    def until(self, last: str) -> DesignRun:
        """The run up to and including a step."""
        names = list(self.steps)
        return DesignRun({name: self.steps[name] for name in names[: names.index(last) + 1]})

    @property
    def disk(self) -> int:
        return list(self.steps.values())[-1].disk

    @property
    def peak(self) -> int:
        """The peak disk usage."""
        return max(step.disk for step in self.steps.values())


class LaunchBench:
    def __init__(self, database_server: DatabaseServer) -> None:
        self.database_server = database_server

    @contextmanager
    def fresh_database(self, design: Design, customers: str) -> Iterator[Meter]:
        """Set up the design in a fresh copy of a database of customers."""
        self.database_server.drop(DATABASE)
        self.database_server.create(DATABASE, like=customers)
        design.set_up()
        try:
            yield Meter(self.database_server, DATABASE)
        finally:
            design.disconnect()

    def requests(self, design: Design, customers: str, times: int) -> list[Cost]:
        """Measure the launch request of many offers in turn.

        The first follows a checkpoint.
        """
        with self.fresh_database(design, customers) as meter:
            offers = [design.new_offer() for _ in range(times)]
            design.connect()
            meter.checkpoint()
            return [meter.measure(lambda offer=offer: design.launch(offer)) for offer in offers]  # type: ignore[misc]

    def run(self, design: Design, customers: str, n: int) -> DesignRun:
        """Measure all steps, each right after a checkpoint.

        :raises RuntimeError: when the design has not done its work.
        """
        with self.fresh_database(design, customers) as meter:
            offer = design.new_offer()
            recorder = _StepRecorder(design, meter)
            if isinstance(design, Bank):
                recorder.record(FILL, lambda: design.fill(n))
            recorder.record(REQUEST, lambda: design.launch(offer))
            recorder.record(JOB, lambda: design.run_jobs(1))
            recorder.record(SENDING, lambda: design.run_jobs(JOBS_AT_ONCE), repeat=True)
            _check_count(design.count_mailed(offer), n, "emails")
            customers_in_order = random.Random(1).sample(range(1, n + 1), n * PERCENT[-1] // 100)
            before = 0
            for percent in PERCENT:
                requests = design.redeem_requests(offer, customers_in_order[before : n * percent // 100])
                parts = [requests[k::CLIENTS] for k in range(CLIENTS)]
                done = recorder.record(f"{percent} % redeemed", lambda parts=parts: _redeem(design, parts))  # type: ignore[misc]
                _check_count(done, len(requests), "redemptions")
                before = n * percent // 100
            return recorder.run


class _StepRecorder:
    """The steps of one run."""

    def __init__(self, design: Design, meter: Meter) -> None:
        self.design = design
        self.meter = meter
        self.run = DesignRun()
        design.disconnect()
        meter.vacuum()
        self.before = self.now = meter.table_totals()

    def record(self, name: str, work: Callable[[], int | bool | None], repeat: bool = False) -> int:
        """Measure one step; return the summed results of `work`.

        With `repeat`, the step is repeated until nothing is left.
        """
        self.design.connect()
        self.meter.checkpoint()
        self.meter.cost = Cost()
        done = 0
        while True:
            with self.meter.measured():
                part = int(work() or 0)
            done += part
            if not repeat or not part:
                break
            self.meter.vacuum("huey_task")
        self.design.disconnect()
        self.meter.vacuum()
        last, self.now = self.now, self.meter.table_totals()
        self.run.steps[name] = Step(
            self.meter.cost,
            self.now.written - last.written,
            self.now.rows - self.before.rows,
            self.now.disk - self.before.disk,
        )
        return done


def _redeem(design: Design, parts: list[list[tuple[str, str]]]) -> int:
    return sum(jobs.run_in_threads(design.redeem_each, parts))


def _check_count(actual: int, expected: int, unit: str) -> None:
    if actual != expected:
        raise RuntimeError(f"{actual} {unit} instead of {expected}")
