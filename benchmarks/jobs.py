"""Connections and jobs of the pools.

A job per customer is inserted into Huey's table in bulk, then dequeued and run by Huey itself.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from huey import PostgresHuey

A = TypeVar("A")
B = TypeVar("B")


class ConnectionPool:
    """A pool of connections in autocommit mode."""

    def __init__(self, url: str, async_commit: bool = False) -> None:
        self.url = url
        self.options = ASYNC_COMMIT if async_commit else ""
        self.free: deque[psycopg.Connection] = deque()

    @contextmanager
    def acquire(self) -> Iterator[psycopg.Connection]:
        try:
            connection = self.free.pop()
        except IndexError:
            connection = psycopg.connect(self.url, autocommit=True, options=self.options)
        try:
            yield connection
        finally:
            self.free.append(connection)

    def close(self) -> None:
        while self.free:
            self.free.pop().close()


# Workers do not wait for the disk after each job: a job lost in a server crash is run again.
ASYNC_COMMIT = "-c synchronous_commit=off"


def queue(name: str, url: str, async_commit: bool = False) -> Any:
    """A Huey queue in this database's existing tables.

    Each worker has its own, as processes do: threads of one queue share a connection and wait for each other.
    """
    options = {"options": ASYNC_COMMIT} if async_commit else {}
    return PostgresHuey(name, dsn=url, create_tables=False, results=False, blocking=False, **options)


def enqueue_all(connection: psycopg.Connection, huey: Any, tasks: Iterable[Any]) -> None:
    """Enqueue many tasks in the transaction of the caller.

    Writes the same rows as Huey, by COPY instead of an INSERT and a commit each, to the advantage of the pools.
    """
    with connection.cursor() as cursor:
        with cursor.copy("copy huey_task (queue, data, priority) from stdin") as copy:
            for task in tasks:
                copy.write_row((huey.name, huey.serialize_task(task), 0))
        cursor.execute("select pg_notify(%s, '')", [huey.storage.channel])


def run(hueys: Sequence[Any], at_most: int) -> int:
    """Run at most `at_most` queued tasks, one thread per Huey; return their number."""
    remaining_runs = iter(range(at_most))
    lock = threading.Lock()

    def work(huey: Any) -> int:
        done = 0
        while True:
            with lock:
                if next(remaining_runs, None) is None:
                    return done
            task = huey.dequeue()
            if task is None:
                return done
            huey.execute(task)
            done += 1

    return sum(run_in_threads(work, hueys))


def run_in_threads(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Call `work` for each item in its own thread; raise the first error."""
    with ThreadPoolExecutor(len(items)) as threads:
        return list(threads.map(work, items))


def slices(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Split the items into lists of at most `size`."""
    remaining = iter(items)
    while part := list(itertools.islice(remaining, size)):
        yield part
