"""Concurrent clients, in processes with threads.

Only the standard library is used, since oscar's environment runs this code.
"""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

# New processes, as servers are, which inherit nothing from the parent.
PROCESSES = multiprocessing.get_context("spawn")
Work = Callable[[int], bool]


class SystemUnderTest(Protocol):
    """The system under test.

    It is sent to each process, where `open` is called first and `close` last.
    """

    def open(self, threads: int) -> None: ...
    def client(self) -> AbstractContextManager[Work]:
        """A function for one thread: redeems one item; returns False when it is refused."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Concurrency:
    """The number of clients; they stop after `seconds`, even if items are left."""

    processes: int
    threads: int
    seconds: float = 600

    @property
    def clients(self) -> int:
        return self.processes * self.threads


@dataclass(frozen=True)
class ClientResult:
    """The result of all clients: `cpu` is in seconds, `first_error` its message."""

    redeemed: int
    refused: int
    failed: int
    seconds: float
    cpu: float
    first_error: str = ""

    @property
    def rate(self) -> float:
        return self.redeemed / self.seconds

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def run(
    system: SystemUnderTest, items: Sequence[int], concurrency: Concurrency, ready: Callable[[], None] = lambda: None
) -> ClientResult:
    """Process each item once.

    `ready` is called when all clients are connected and wait for the start.

    :raises RuntimeError: when a process ends early.
    """
    pipes, processes = [], []
    for k in range(concurrency.processes):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(
            target=_run_process, args=(system, list(items[k :: concurrency.processes]), concurrency, theirs)
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            _receive(pipe)
        ready()
        for pipe in pipes:
            pipe.send("go")
        return _combine([_receive(pipe) for pipe in pipes])
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a client process has ended too early") from None


@dataclass(frozen=True)
class _ProcessResult:
    redeemed: int
    refused: int
    failed: int
    started: float
    ended: float
    cpu: float
    first_error: str


def _combine(results: Sequence[_ProcessResult]) -> ClientResult:
    # The monotonic clock is the same in all processes.
    seconds = max(result.ended for result in results) - min(result.started for result in results)
    return ClientResult(
        sum(result.redeemed for result in results),
        sum(result.refused for result in results),
        sum(result.failed for result in results),
        seconds,
        sum(result.cpu for result in results),
        next((result.first_error for result in results if result.first_error), ""),
    )


def _run_process(system: SystemUnderTest, items: Sequence[int], concurrency: Concurrency, pipe: Connection) -> None:
    """Run one process: its threads connect, wait for the start, then share its items."""
    system.open(concurrency.threads)
    try:
        connected, go, shared = threading.Barrier(concurrency.threads + 1), threading.Event(), _SharedItems(items)
        clients = [_Client(system, shared, connected, go) for _ in range(concurrency.threads)]
        for client in clients:
            client.start()
        connected.wait()
        pipe.send("ready")
        try:
            pipe.recv()
        except EOFError:
            # Another process has failed, and the parent has closed the pipe.
            return
        cpu, started = _cpu(), time.monotonic()
        for client in clients:
            client.until = started + concurrency.seconds
        go.set()
        for client in clients:
            client.join()
        pipe.send(
            _ProcessResult(
                sum(client.redeemed for client in clients),
                sum(client.refused for client in clients),
                sum(client.failed for client in clients),
                started,
                time.monotonic(),
                _cpu() - cpu,
                next((client.first_error for client in clients if client.first_error), ""),
            )
        )
    finally:
        system.close()


class _Client(threading.Thread):
    def __init__(
        self, system: SystemUnderTest, items: _SharedItems, connected: threading.Barrier, go: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        self.system, self.items, self.connected, self.go = system, items, connected, go
        self.redeemed = self.refused = self.failed = 0
        self.first_error = ""
        self.until = 0.0

    def run(self) -> None:
        try:
            with self.system.client() as work:
                self.connected.wait()
                self.go.wait()
                for item in self.items:
                    self._process(work, item)
                    if time.monotonic() > self.until:
                        return
        finally:
            # A thread that can't connect must not leave the others waiting.
            if not self.go.is_set():
                self.connected.abort()

    def _process(self, work: Work, item: int) -> None:
        try:
            if work(item):
                self.redeemed += 1
            else:
                self.refused += 1
        except Exception as error:
            self.failed += 1
            self.first_error = self.first_error or f"{type(error).__name__}: {error}"


class _SharedItems:
    """An iterator that threads can share."""

    def __init__(self, items: Sequence[int]) -> None:
        self.items = iter(items)
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self.lock:
            return next(self.items)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
