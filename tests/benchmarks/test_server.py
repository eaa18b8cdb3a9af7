"""The CPU time of the benchmark server."""

from __future__ import annotations

import threading

import pytest

from benchmarks import server

pytestmark = pytest.mark.slow


def test_the_cpu_time_of_the_server_never_decreases_while_its_processes_end() -> None:
    """A process that ends while the times are read is neither missed nor counted twice."""
    stopped = threading.Event()
    ended: list[int] = []

    def connect_again_and_again(database_server: server.DatabaseServer) -> None:
        while not stopped.is_set():
            with database_server.connect() as connection:
                connection.execute("select count(*) from generate_series(1, 500000)")
            ended.append(1)

    with server.running() as database_server:
        threads = [threading.Thread(target=connect_again_and_again, args=[database_server]) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            times = [database_server.cpu_seconds()]
            while len(ended) < 60:
                times.append(database_server.cpu_seconds())
        finally:
            stopped.set()
            for thread in threads:
                thread.join()

    assert times[0] > 0
    # The clock ticks every ten milliseconds; sums of floating-point numbers differ by less.
    rounded = [round(seconds, 3) for seconds in times]
    assert rounded == sorted(rounded)
