"""The program's own worker, in a process of its own, mailing a launched campaign."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from benchmarks import customers, onecode
from benchmarks.mail_sink import Seen, Sink
from benchmarks.measure import DATABASE
from benchmarks.meter import Cost, Meter
from benchmarks.server import Machine
from webapp.campaigns.models import BATCH_SIZE
from webapp.core.settings import ROOT

SITE = "https://offers.example.com"
LONGEST = 900
# What a .env beside the program says about mail is not for this relay.
_UNSET = ("MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_USE_TLS", "MAIL_USE_SSL", "MAIL_DEFAULT_SENDER")


@dataclass(frozen=True)
class Mailed:
    """What a mailing was: what the relay has seen, seconds from the launch to the last mail, CPU seconds of the worker
    and of PostgreSQL, the WAL, the rows there are more than before the launch, and the worker's memory at its fullest
    in bytes."""

    seen: Seen
    seconds: float
    worker: float
    postgres: float
    wal: Cost
    rows: dict[str, int]
    peak: int


class Mailing:
    """Onecode on a database of so many customers, launched by a door and mailed by a worker."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.folder = machine.server.socket_folder.parent
        machine.create(DATABASE)
        self.ours = onecode.Onecode(onecode.build(machine.url(DATABASE), str(self.folder)))
        onecode.migrate(self.ours.app)
        self.ours.disconnect()
        machine.create("empty", like=DATABASE)
        self.filled: set[int] = set()

    def customers(self, n: int) -> str:
        """A database of so many customers, to be copied."""
        name = f"customers_{n}"
        if n not in self.filled:
            self.machine.create(name, like="empty")
            with self.machine.connect(name) as connection:
                customers.fill(connection, n)
            self.filled.add(n)
        return name

    def run(self, sink: Sink, n: int, connections: int) -> Mailed:
        """Launch to so many customers, and wait until the campaign is done.

        :raises RuntimeError: when the worker dies, when somebody was not mailed exactly once, or when the rows are not
            what they have to be.
        """
        self.ours.disconnect()
        self.machine.drop(DATABASE)
        self.machine.create(DATABASE, like=self.customers(n))
        self.ours.set_up()
        offer = self.ours.new_offer()
        sink.forget()
        with self.machine.connect(DATABASE) as connection, self._worker(sink, connections) as worker:
            before = _rows(connection)
            meter = Meter(self.machine, DATABASE)
            meter.checkpoint()
            cpu, postgres = _cpu(worker.pid), self.machine.cpu_seconds()
            with meter.measured():
                launched = time.monotonic()
                if not self.ours.launch(offer):
                    raise RuntimeError("nothing was launched")
                self._wait(connection, worker)
            seen = sink.seen()
            mailed = Mailed(
                seen,
                seen.last - launched,
                _cpu(worker.pid) - cpu,
                self.machine.cpu_seconds() - postgres,
                meter.cost,
                _more(_rows(connection), before),
                _peak(worker.pid),
            )
        _expect(mailed, n)
        return mailed

    @contextmanager
    def _worker(self, sink: Sink, connections: int) -> Iterator[subprocess.Popen[bytes]]:
        environment = os.environ | dict.fromkeys(_UNSET, "") | {
            "DATABASE_URL": self.machine.url(DATABASE),
            "SECRET_KEY": "only-for-measuring",
            "INSTANCE_PATH": str(self.folder),
            "PUBLIC_URL": SITE,
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": str(sink.port),
            "MAIL_CONNECTIONS": str(connections),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "webapp.worker"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        try:
            self._until("worker started", process)
            yield process
        finally:
            # There is nothing left for it to do.
            process.kill()
            process.wait()

    @property
    def _log(self) -> Path:
        return self.folder / "worker.log"

    def _until(self, words: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while words not in self._log.read_text(errors="replace"):
            self._alive(process, deadline)
            time.sleep(0.02)

    def _wait(self, connection: psycopg.Connection, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + LONGEST
        while connection.execute("select 1 from campaign where status = 'done'").fetchone() is None:
            self._alive(process, deadline)
            time.sleep(0.05)

    def _alive(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker does not come on: {self._log.read_text(errors='replace')[-3000:]}")


def _rows(connection: psycopg.Connection) -> dict[str, int]:
    """How many rows there are in each table but Huey's, whose tasks come and go."""
    tables = [row[0] for row in connection.execute("select relname from pg_stat_user_tables order by 1")]
    count = sql.SQL("select count(*) from {}")
    found = {}
    for table in tables:
        if not table.startswith("huey"):
            (found[table],) = connection.execute(count.format(sql.Identifier(table))).fetchone() or (0,)
    return found


def _more(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {table: n - before[table] for table, n in now.items() if n != before[table]}


def _expect(mailed: Mailed, n: int) -> None:
    """Everybody exactly once, and of the mails nothing but a row for each batch."""
    if (mailed.seen.mails, mailed.seen.recipients) != (n, n):
        raise RuntimeError(f"{n} customers, {mailed.seen.mails} mails to {mailed.seen.recipients}")
    batches = -(-n // BATCH_SIZE)
    if mailed.rows.get("batch") != batches or "mail_issue" in mailed.rows or "batch_cursor" in mailed.rows:
        raise RuntimeError(f"{batches} batches were to be written, and nothing about a single mail: {mailed.rows}")


def _cpu(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def _peak(pid: int) -> int:
    """The most memory that a process has ever had, in bytes. What it has now, where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
