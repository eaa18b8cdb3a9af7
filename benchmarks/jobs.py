"""What the pools need of PostgreSQL and Huey: connections, and a job for each customer, put into Huey's table in bulk,
then taken and run by Huey itself."""

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


class Connections:
    """Connections in autocommit, lent to one thread at a time and kept for the next."""

    def __init__(self, url: str, hasty: bool = False) -> None:
        self.url = url
        self.options = HASTY if hasty else ""
        self.free: deque[psycopg.Connection] = deque()

    @contextmanager
    def one(self) -> Iterator[psycopg.Connection]:
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


# A worker that does not wait for the disk after each small step: what a crash of the server undoes is done again.
HASTY = "-c synchronous_commit=off"


def queue(name: str, url: str, hasty: bool = False) -> Any:
    """A queue in the tables that Huey has in this database already. Each worker has one of its own, as processes do:
    within one, Huey's threads share a connection and wait for each other."""
    options = {"options": HASTY} if hasty else {}
    return PostgresHuey(name, dsn=url, create_tables=False, results=False, blocking=False, **options)


def put_all(connection: psycopg.Connection, huey: Any, tasks: Iterable[Any]) -> None:
    """Enqueue many tasks in the transaction of the caller: the rows that Huey would write, by COPY instead of an INSERT
    and a commit for each. Kinder to the pools than calling the task in a loop."""
    with connection.cursor() as cursor:
        with cursor.copy("copy huey_task (queue, data, priority) from stdin") as copy:
            for task in tasks:
                copy.write_row((huey.name, huey.serialize_task(task), 0))
        cursor.execute("select pg_notify(%s, '')", [huey.storage.channel])


def run(hueys: Sequence[Any], at_most: int) -> int:
    """Take tasks and run them, one thread for each Huey, until so many are done or none is left; how many it were."""
    tickets = iter(range(at_most))
    lock = threading.Lock()

    def work(huey: Any) -> int:
        done = 0
        while True:
            with lock:
                if next(tickets, None) is None:
                    return done
            task = huey.dequeue()
            if task is None:
                return done
            huey.execute(task)
            done += 1

    return sum(side_by_side(work, hueys))


def side_by_side(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Do the work on each item in a thread of its own; the first error is raised."""
    with ThreadPoolExecutor(len(items)) as threads:
        return list(threads.map(work, items))


def slices(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """The items in lists of at most `size`."""
    left = iter(items)
    while part := list(itertools.islice(left, size)):
        yield part
