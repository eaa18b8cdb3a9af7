"""Taking three designs through the same steps, each in a fresh database with the same customers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks import jobs
from benchmarks.bank import Bank
from benchmarks.meter import Cost, Meter
from benchmarks.server import Machine

DATABASE = "measured"
FILL, REQUEST, JOB, MAILING = "fill the bank", "launch: the request", "launch: its job", "mailing"
PERCENT = (1, 5, 20)
# A queue that nobody vacuums is slower and slower to take from.
JOBS_AT_ONCE = 10_000
CLIENTS = 16


class Design(Protocol):
    """One way of giving every customer of an offer something to redeem, and of recording who did."""

    name: str

    def set_up(self) -> None: ...
    def new_offer(self) -> int: ...
    def launch(self, offer_id: int) -> bool: ...
    def work(self, at_most: int) -> int: ...
    def mailed(self, offer_id: int) -> int: ...
    def typed(self, offer_id: int, customers: Sequence[int]) -> list[tuple[str, str]]: ...
    def redeem_each(self, asks: Sequence[tuple[str, str]]) -> int: ...
    def connect(self) -> None: ...
    def disconnect(self) -> None: ...


@dataclass(frozen=True)
class Step:
    """What a step cost; how many rows it wrote (inserted, updated, deleted); what stands after it and VACUUM, in all
    tables together, more than after the set-up."""

    cost: Cost
    written: int
    rows: int
    disk: int


@dataclass
class Run:
    """One design's way through all steps."""

    steps: dict[str, Step] = field(default_factory=dict)

    def total(self) -> Cost:
        return sum((step.cost for step in self.steps.values()), Cost())

    def until(self, last: str) -> Run:
        """The same, ended after a step."""
        names = list(self.steps)
        return Run({name: self.steps[name] for name in names[: names.index(last) + 1]})

    @property
    def disk(self) -> int:
        return list(self.steps.values())[-1].disk

    @property
    def peak(self) -> int:
        """The disk when it was fullest."""
        return max(step.disk for step in self.steps.values())


class Bench:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @contextmanager
    def fresh(self, design: Design, customers: str) -> Iterator[Meter]:
        """The design in a fresh copy of a database of customers, set up and vacuumed."""
        self.machine.drop(DATABASE)
        self.machine.create(DATABASE, like=customers)
        design.set_up()
        try:
            yield Meter(self.machine, DATABASE)
        finally:
            design.disconnect()

    def requests(self, design: Design, customers: str, times: int) -> list[Cost]:
        """The launching request alone, of so many offers one after the other; the first right after a checkpoint."""
        with self.fresh(design, customers) as meter:
            offers = [design.new_offer() for _ in range(times)]
            design.connect()
            meter.checkpoint()
            return [meter.of(lambda offer=offer: design.launch(offer)) for offer in offers]  # type: ignore[misc]

    def run(self, design: Design, customers: str, n: int) -> Run:
        """All steps, each right after a checkpoint.

        :raises RuntimeError: when the design has not done its work.
        """
        with self.fresh(design, customers) as meter:
            offer = design.new_offer()
            taking = _Taking(design, meter)
            if isinstance(design, Bank):
                taking.take(FILL, lambda: design.fill(n))
            taking.take(REQUEST, lambda: design.launch(offer))
            taking.take(JOB, lambda: design.work(1))
            taking.take(MAILING, lambda: design.work(JOBS_AT_ONCE), again=True)
            _expect(design.mailed(offer), n, "mails")
            whole = random.Random(1).sample(range(1, n + 1), n * PERCENT[-1] // 100)
            before = 0
            for percent in PERCENT:
                asks = design.typed(offer, whole[before : n * percent // 100])
                parts = [asks[k::CLIENTS] for k in range(CLIENTS)]
                done = taking.take(f"{percent} % redeemed", lambda parts=parts: _redeem(design, parts))  # type: ignore[misc]
                _expect(done, len(asks), "redemptions")
                before = n * percent // 100
            return taking.run


class _Taking:
    """The steps of one run."""

    def __init__(self, design: Design, meter: Meter) -> None:
        self.design = design
        self.meter = meter
        self.run = Run()
        design.disconnect()
        meter.vacuum()
        self.before = self.now = meter.standing()

    def take(self, name: str, work: Callable[[], int | bool | None], again: bool = False) -> int:
        """One step; `again` repeats it until it has nothing more to do. Returns what the work returned, summed."""
        self.design.connect()
        self.meter.checkpoint()
        self.meter.cost = Cost()
        done = 0
        while True:
            with self.meter.measured():
                part = int(work() or 0)
            done += part
            if not again or not part:
                break
            self.meter.vacuum("huey_task")
        self.design.disconnect()
        self.meter.vacuum()
        last, self.now = self.now, self.meter.standing()
        self.run.steps[name] = Step(
            self.meter.cost,
            self.now.written - last.written,
            self.now.rows - self.before.rows,
            self.now.disk - self.before.disk,
        )
        return done


def _redeem(design: Design, parts: list[list[tuple[str, str]]]) -> int:
    return sum(jobs.side_by_side(design.redeem_each, parts))


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} {what} instead of {wanted}")
