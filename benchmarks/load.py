"""HTTP load over persistent connections.

The client is wrk if it is installed, otherwise a simple one.

Both run in a separate process; `python -m benchmarks.load` is the simple client.
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
    """The requests to send and the expected `status`.

    200 means GET requests of `/`; 201 means redemptions of the offer `code`, each for another customer.
    """

    port: int
    status: int
    key: str = "-"
    code: str = "-"
    customers: int = 1

    @property
    def stride(self) -> int:
        """The step from one customer to the next, which avoids the order of the index."""
        step = int(self.customers * 0.618) | 1
        while math.gcd(step, self.customers) > 1:
            step += 2
        return step

    def arguments(self) -> list[str]:
        return [str(self.status), self.key, self.code, str(self.customers), str(self.stride)]


@dataclass(frozen=True)
class LoadResult:
    """The counts of responses, of other statuses, and of failed connections.

    Times are in seconds; `cpu` is that of the clients.
    """

    responses: int
    refused: int
    broken: int
    seconds: float
    p50: float
    p99: float
    cpu: float = 0

    @property
    def rate(self) -> float:
        return self.responses / self.seconds


def load(target: Target, clients: int, seconds: int, wrk: str | None = WRK) -> LoadResult:
    """Send requests from a number of clients for some seconds.

    wrk does not wait for responses that are outstanding at the end.

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
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    cpu = _children_cpu() - before
    if result.returncode or not result.stdout.strip():
        raise RuntimeError(f"the load failed: {result.stderr or result.stdout}")
    parsed = json.loads(result.stdout.strip().splitlines()[-1])
    return LoadResult(
        parsed["responses"],
        parsed["refused"],
        parsed["broken"],
        parsed["seconds"],
        parsed["p50"] / 1e6,
        parsed["p99"] / 1e6,
        cpu,
    )


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def requests(target: Target) -> Iterator[bytes]:
    """The requests in the order of sending."""
    host = f"Host: 127.0.0.1:{target.port}\r\n"
    if target.status == 200:
        hello = f"GET / HTTP/1.1\r\n{host}\r\n".encode()
        while True:
            yield hello
    headers = (
        f"POST /api/v1/redemptions HTTP/1.1\r\n{host}Authorization: Bearer {target.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    customer = 0
    while True:
        body = f'{{"code": "{target.code}", "customer": {{"email": "customer.{customer + 1}@example.com"}}}}'
        customer = (customer + target.stride) % target.customers
        yield f"{headers}{len(body)}\r\n\r\n{body}".encode()


class SimpleClient:
    """One thread with many sockets; each sends a request after every response."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.next = requests(target).__next__
        self.wanted = f" {target.status} ".encode()
        self.refused = self.broken = 0
        self.durations: list[float] = []

    def run(self, clients: int, seconds: float) -> LoadResult:
        poll = select.epoll()
        sockets = {}
        for _ in range(clients):
            connection = socket.create_connection(("127.0.0.1", self.target.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets[connection.fileno()] = connection
            poll.register(connection, select.EPOLLIN)
        started = time.perf_counter()
        sent_at = dict.fromkeys(sockets, started)
        received = dict.fromkeys(sockets, b"")
        for connection in sockets.values():
            connection.sendall(self.next())
        while sockets:
            ready = poll.poll(10)
            if not ready:
                self.broken += len(sockets)
                break
            for number, _ in ready:
                data = sockets[number].recv(65536)
                received[number] += data
                if data and not is_complete(received[number]):
                    continue
                now = time.perf_counter()
                self._count(received[number] if data else b"", now - sent_at[number])
                if data and now - started < seconds:
                    received[number], sent_at[number] = b"", now
                    sockets[number].sendall(self.next())
                else:
                    poll.unregister(number)
                    sockets.pop(number).close()
        return self._result(time.perf_counter() - started)

    def _count(self, response: bytes, duration: float) -> None:
        if not response:
            self.broken += 1
            return
        self.durations.append(duration)
        self.refused += response[8:13] != self.wanted

    def _result(self, seconds: float) -> LoadResult:
        durations = sorted(self.durations) or [0.0]
        middle, last = durations[len(durations) // 2], durations[len(durations) * 99 // 100]
        return LoadResult(len(self.durations), self.refused, self.broken, seconds, middle, last)


def is_complete(response: bytes) -> bool:
    """Whether a response is complete; it must have a Content-Length, not be chunked."""
    headers, parsed, body = response.partition(b"\r\n\r\n")
    if not parsed:
        return False
    _, named, rest = headers.lower().partition(b"\r\ncontent-length:")
    if not named:
        raise ValueError("the response has no Content-Length")
    return len(body) >= int(rest.partition(b"\r\n")[0])


def main() -> None:
    port, clients, seconds, status, key, code, customers = sys.argv[1:]
    client = SimpleClient(Target(int(port), int(status), key, code, int(customers)))
    parsed = client.run(int(clients), float(seconds))
    microseconds = {"p50": round(parsed.p50 * 1e6), "p99": round(parsed.p99 * 1e6)}
    figures = {name: getattr(parsed, name) for name in ("responses", "refused", "broken", "seconds")}
    print(json.dumps(figures | microseconds))


if __name__ == "__main__":
    main()
