"""Load over HTTP from clients that keep their connections: by wrk where it is installed, else by a light one of ours.

Both drive every server in the same way, in a process of their own: `python -m benchmarks.load` is the light one.
"""

from __future__ import annotations

import json
import math
import resource
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from webapp.core.settings import ROOT

SCRIPT = Path(__file__).with_name("load.lua")
WRK = shutil.which("wrk")


@dataclass(frozen=True)
class Target:
    """What to ask of whom. `status` is the answer that is wanted: 200 asks for a GET of `/`, 201 for redemptions of the
    offer `code`, each by another one of so many customers, while they last."""

    port: int
    status: int
    key: str = "-"
    code: str = "-"
    customers: int = 1

    @property
    def stride(self) -> int:
        """The step from a customer to the next: theirs is no order that an index likes."""
        step = int(self.customers * 0.618) | 1
        while math.gcd(step, self.customers) > 1:
            step += 2
        return step

    def arguments(self) -> list[str]:
        return [str(self.status), self.key, self.code, str(self.customers), str(self.stride)]


@dataclass(frozen=True)
class Answers:
    """What came back: how many answers, how many of them another status, how many connections failed; times in
    seconds, `cpu` being what the clients themselves computed."""

    answers: int
    refused: int
    broken: int
    seconds: float
    p50: float
    p99: float
    cpu: float = 0

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def load(target: Target, clients: int, seconds: int, wrk: str | None = WRK) -> Answers:
    """So many clients for so long. wrk leaves those unanswered who wait when the time is over.

    :raises RuntimeError: when the client itself fails.
    """
    if wrk:
        threads = min(2, clients)
        command = [
            wrk, f"-t{threads}", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(SCRIPT),
            f"http://127.0.0.1:{target.port}/", "--", *target.arguments(), str(threads),
        ]  # fmt: skip
    else:
        command = [sys.executable, "-m", "benchmarks.load", str(target.port), str(clients), str(seconds)]
        command += target.arguments()[:-1]
    before = _children_cpu()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    cpu = _children_cpu() - before
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"the load failed: {done.stderr or done.stdout}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Answers(
        found["answers"],
        found["refused"],
        found["broken"],
        found["seconds"],
        found["p50"] / 1e6,
        found["p99"] / 1e6,
        cpu,
    )


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def requests(target: Target) -> Iterator[bytes]:
    """What is sent, one after the other."""
    host = f"Host: 127.0.0.1:{target.port}\r\n"
    if target.status == 200:
        hello = f"GET / HTTP/1.1\r\n{host}\r\n".encode()
        while True:
            yield hello
    head = (
        f"POST /api/v1/redemptions HTTP/1.1\r\n{host}Authorization: Bearer {target.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    customer = 0
    while True:
        body = f'{{"code": "{target.code}", "customer": {{"email": "customer.{customer + 1}@example.com"}}}}'
        customer = (customer + target.stride) % target.customers
        yield f"{head}{len(body)}\r\n\r\n{body}".encode()


class Light:
    """One thread over many sockets, which asks again as soon as it is answered. It waits for every answer."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.next = requests(target).__next__
        self.wanted = f" {target.status} ".encode()
        self.refused = self.broken = 0
        self.took: list[float] = []

    def run(self, clients: int, seconds: float) -> Answers:
        poll = select.epoll()
        sockets = {}
        for _ in range(clients):
            one = socket.create_connection(("127.0.0.1", self.target.port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets[one.fileno()] = one
            poll.register(one, select.EPOLLIN)
        started = time.perf_counter()
        since = dict.fromkeys(sockets, started)
        got = dict.fromkeys(sockets, b"")
        for one in sockets.values():
            one.sendall(self.next())
        while sockets:
            ready = poll.poll(10)
            if not ready:
                self.broken += len(sockets)
                break
            for number, _ in ready:
                data = sockets[number].recv(65536)
                got[number] += data
                if data and not whole(got[number]):
                    continue
                now = time.perf_counter()
                self._count(got[number] if data else b"", now - since[number])
                if data and now - started < seconds:
                    got[number], since[number] = b"", now
                    sockets[number].sendall(self.next())
                else:
                    poll.unregister(number)
                    sockets.pop(number).close()
        return self._answers(time.perf_counter() - started)

    def _count(self, answer: bytes, took: float) -> None:
        if not answer:
            self.broken += 1
            return
        self.took.append(took)
        self.refused += answer[8:13] != self.wanted

    def _answers(self, seconds: float) -> Answers:
        took = sorted(self.took) or [0.0]
        middle, last = took[len(took) // 2], took[len(took) * 99 // 100]
        return Answers(len(self.took), self.refused, self.broken, seconds, middle, last)


def whole(answer: bytes) -> bool:
    """Whether all of an answer is there. Its length has to be said: chunks are not read."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    _, named, rest = head.lower().partition(b"\r\ncontent-length:")
    if not named:
        raise ValueError("the answer does not say how long it is")
    return len(body) >= int(rest.partition(b"\r\n")[0])


def main() -> None:
    port, clients, seconds, status, key, code, customers = sys.argv[1:]
    light = Light(Target(int(port), int(status), key, code, int(customers)))
    found = light.run(int(clients), float(seconds))
    microseconds = {"p50": round(found.p50 * 1e6), "p99": round(found.p99 * 1e6)}
    figures = {name: getattr(found, name) for name in ("answers", "refused", "broken", "seconds")}
    print(json.dumps(figures | microseconds))


if __name__ == "__main__":
    main()
