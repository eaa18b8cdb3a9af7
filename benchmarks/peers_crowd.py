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


class Side(Protocol):
    """The system under test.

    It is sent to each process, where `open` is called first and `close` last.
    """

    def open(self, threads: int) -> None: ...
    def client(self) -> AbstractContextManager[Work]:
        """A function for one thread: redeems one item; returns False when it is refused."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Crowd:
    """The number of clients; they stop after `seconds`, even if items are left."""

    processes: int
    threads: int
    seconds: float = 600

    @property
    def clients(self) -> int:
        return self.processes * self.threads


@dataclass(frozen=True)
class Done:
    """The result of all clients: `cpu` is in seconds, `why` is the first error."""

    redeemed: int
    refused: int
    failed: int
    seconds: float
    cpu: float
    why: str = ""

    @property
    def rate(self) -> float:
        return self.redeemed / self.seconds

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def run(side: Side, items: Sequence[int], crowd: Crowd, ready: Callable[[], None] = lambda: None) -> Done:
    """Process each item once.

    `ready` is called when all clients are connected and wait for the start.

    :raises RuntimeError: when a process ends early.
    """
    pipes, processes = [], []
    for k in range(crowd.processes):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_work, args=(side, list(items[k :: crowd.processes]), crowd, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            _next(pipe)
        ready()
        for pipe in pipes:
            pipe.send("go")
        return _sum([_next(pipe) for pipe in pipes])
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _next(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a client process has ended too early") from None


@dataclass(frozen=True)
class _Part:
    redeemed: int
    refused: int
    failed: int
    started: float
    ended: float
    cpu: float
    why: str


def _sum(parts: Sequence[_Part]) -> Done:
    # The monotonic clock is the same in all processes.
    seconds = max(part.ended for part in parts) - min(part.started for part in parts)
    return Done(
        sum(part.redeemed for part in parts),
        sum(part.refused for part in parts),
        sum(part.failed for part in parts),
        seconds,
        sum(part.cpu for part in parts),
        next((part.why for part in parts if part.why), ""),
    )


def _work(side: Side, items: Sequence[int], crowd: Crowd, pipe: Connection) -> None:
    """Run one process: its threads connect, wait for the start, then share its items."""
    side.open(crowd.threads)
    try:
        connected, go, shared = threading.Barrier(crowd.threads + 1), threading.Event(), _Shared(items)
        clients = [_Client(side, shared, connected, go) for _ in range(crowd.threads)]
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
            client.until = started + crowd.seconds
        go.set()
        for client in clients:
            client.join()
        pipe.send(
            _Part(
                sum(client.redeemed for client in clients),
                sum(client.refused for client in clients),
                sum(client.failed for client in clients),
                started,
                time.monotonic(),
                _cpu() - cpu,
                next((client.why for client in clients if client.why), ""),
            )
        )
    finally:
        side.close()


class _Client(threading.Thread):
    def __init__(self, side: Side, items: _Shared, connected: threading.Barrier, go: threading.Event) -> None:
        super().__init__(daemon=True)
        self.side, self.items, self.connected, self.go = side, items, connected, go
        self.redeemed = self.refused = self.failed = 0
        self.why = ""
        self.until = 0.0

    def run(self) -> None:
        try:
            with self.side.client() as work:
                self.connected.wait()
                self.go.wait()
                for item in self.items:
                    self._do(work, item)
                    if time.monotonic() > self.until:
                        return
        finally:
            # A thread that can't connect must not leave the others waiting.
            if not self.go.is_set():
                self.connected.abort()

    def _do(self, work: Work, item: int) -> None:
        try:
            if work(item):
                self.redeemed += 1
            else:
                self.refused += 1
        except Exception as error:
            self.failed += 1
            self.why = self.why or f"{type(error).__name__}: {error}"


class _Shared:
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
