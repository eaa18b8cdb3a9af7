"""Measure the cost of work: seconds, CPU, and WAL."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.abc import Query

from benchmarks.server import DatabaseServer
from local import postgresql as embedded_postgresql


@dataclass
class Cost:
    """The cost of work: `wal` are all bytes of WAL, `images` full-page images."""

    seconds: float = 0
    cpu: float = 0
    wal: int = 0
    images: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds, self.cpu + other.cpu, self.wal + other.wal, self.images + other.images
        )

    @property
    def records(self) -> int:
        """The WAL without images, which does not depend on the last checkpoint."""
        return self.wal - self.images


@dataclass(frozen=True)
class TableTotals:
    """Totals of all tables except the customers: row versions, rows, and bytes."""

    written: int
    rows: int
    disk: int


OTHERS = (
    "select count(*) from pg_stat_activity "
    "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
)
TABLES = "select relname from pg_stat_user_tables where relname <> 'customer'"
WRITTEN = "select sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables where relname <> 'customer'"
DISK = "select sum(pg_total_relation_size(relid))::bigint from pg_stat_user_tables where relname <> 'customer'"


class Meter:
    """Measures work on one database; `cost` is the sum so far."""

    def __init__(self, database_server: DatabaseServer, database: str) -> None:
        self.database_server = database_server
        self.database = database
        self.cost = Cost()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Add the cost of the block to `cost`."""
        with self.database_server.connect(self.database) as connection:
            before = _lsn(connection)
            cpu, started = self._cpu(), time.perf_counter()
            yield
            seconds, cpu = time.perf_counter() - started, self._cpu() - cpu
            after = _lsn(connection)
            # WAL of asynchronous commits is still in memory, where pg_waldump can't read it: flush it.
            connection.execute("set synchronous_commit = on")
            connection.execute("select pg_logical_emit_message(true, '', '')")
        self.cost += Cost(seconds, cpu, _bytes(after) - _bytes(before), self._images(before, after))

    def measure(self, work: Callable[[], object]) -> Cost:
        """Measure a function call alone."""
        self.cost = Cost()
        with self.measured():
            work()
        return self.cost

    def table_totals(self) -> TableTotals:
        """Read the totals once all other connections are closed.

        Only then the statistics are complete.
        """
        with self.database_server.connect(self.database) as connection:
            while _number(connection, OTHERS):
                time.sleep(0.01)
            tables = [row[0] for row in connection.execute(TABLES)]
            rows = sum(
                _number(connection, sql.SQL("select count(*) from {}").format(sql.Identifier(t))) for t in tables
            )
            return TableTotals(_number(connection, WRITTEN), rows, _number(connection, DISK))

    def checkpoint(self) -> None:
        with self.database_server.connect(self.database) as connection:
            connection.execute("checkpoint")

    def vacuum(self, table: str | None = None) -> None:
        """Vacuum one table, or all except the customers, like autovacuum; not measured."""
        with self.database_server.connect(self.database) as connection:
            tables = [table] if table else [row[0] for row in connection.execute(TABLES)]
            names = sql.SQL(", ").join(map(sql.Identifier, tables))
            connection.execute(sql.SQL("vacuum (analyze) {}").format(names))

    def _cpu(self) -> float:
        client_times = os.times()
        return client_times.user + client_times.system + self.database_server.cpu_seconds()

    def _images(self, start: str, end: str) -> int:
        if start == end:
            return 0
        command = [
            str(embedded_postgresql.wheel_folder() / "bin" / "pg_waldump"), "--stats", "--path",
            str(self.database_server.embedded.data_folder / "pg_wal"), "--start", start, "--end", end,
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
        if result.returncode:
            # No record was written between the two positions.
            if "could not find a valid record" in result.stderr:
                return 0
            raise RuntimeError(result.stderr)
        return image_bytes(result.stdout)


def image_bytes(stats: str) -> int:
    """The bytes of full-page images in the output of `pg_waldump --stats`."""
    match = re.search(r"^Total\s+\d+\s+\d+ \[[^]]*\]\s+(\d+) \[", stats, re.MULTILINE)
    return int(match[1]) if match else 0


def _lsn(connection: psycopg.Connection) -> str:
    row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
    return str(row[0]) if row else "0/0"


def _number(connection: psycopg.Connection, query: Query) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _bytes(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)
