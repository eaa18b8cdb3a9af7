"""Onecode's worker in a separate process, sending a launched campaign."""

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
from benchmarks.mail_sink import Sink, SinkTotals
from benchmarks.measure import DATABASE
from benchmarks.meter import Cost, Meter
from benchmarks.server import DatabaseServer
from webapp.campaigns.models import BATCH_SIZE
from webapp.core.settings import ROOT

SITE = "https://offers.example.com"
TIMEOUT = 900
# Mail settings of a .env file are not for this relay.
_UNSET = ("MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_USE_TLS", "MAIL_USE_SSL", "MAIL_DEFAULT_SENDER")


@dataclass(frozen=True)
class CampaignMeasurement:
    """The measurements of a campaign.

    `totals` are the relay's counts, `seconds` the time from the launch to the last email, `worker` and `postgres` CPU
    seconds, `rows` the rows added since the launch by table, `peak` the worker's peak memory in bytes.
    """

    totals: SinkTotals
    seconds: float
    worker: float
    postgres: float
    wal: Cost
    rows: dict[str, int]
    peak: int


class CampaignRunner:
    """Onecode on a database of customers; a worker sends the campaigns."""

    def __init__(self, database_server: DatabaseServer) -> None:
        self.database_server = database_server
        self.folder = database_server.embedded.socket_folder.parent
        database_server.create(DATABASE)
        self.ours = onecode.Onecode(onecode.build(database_server.url(DATABASE), str(self.folder)))
        onecode.migrate(self.ours.app)
        self.ours.disconnect()
        database_server.create("empty", like=DATABASE)
        self.filled: set[int] = set()

    def customers(self, n: int) -> str:
        """The name of a template database with n customers, created on first use."""
        name = f"customers_{n}"
        if n not in self.filled:
            self.database_server.create(name, like="empty")
            with self.database_server.connect(name) as connection:
                customers.fill(connection, n)
            self.filled.add(n)
        return name

    def run(self, sink: Sink, n: int, connections: int) -> CampaignMeasurement:
        """Launch to n customers and wait until the campaign is done.

        :raises RuntimeError: when the worker dies, a customer did not get exactly one email, or the rows are not as
            expected.
        """
        self.ours.disconnect()
        self.database_server.drop(DATABASE)
        self.database_server.create(DATABASE, like=self.customers(n))
        self.ours.set_up()
        offer = self.ours.new_offer()
        sink.reset()
        with self.database_server.connect(DATABASE) as connection, self._worker(sink, connections) as worker:
            before = _rows(connection)
            meter = Meter(self.database_server, DATABASE)
            meter.checkpoint()
            cpu, postgres = _cpu(worker.pid), self.database_server.cpu_seconds()
            with meter.measured():
                launched = time.monotonic()
                if not self.ours.launch(offer):
                    raise RuntimeError("nothing was launched")
                self._wait_for_campaign(connection, worker)
            totals = sink.totals()
            measurement = CampaignMeasurement(
                totals,
                totals.last - launched,
                _cpu(worker.pid) - cpu,
                self.database_server.cpu_seconds() - postgres,
                meter.cost,
                _difference(_rows(connection), before),
                _peak(worker.pid),
            )
        _check_measurement(measurement, n)
        return measurement

    @contextmanager
    def _worker(self, sink: Sink, connections: int) -> Iterator[subprocess.Popen[bytes]]:
        environment = os.environ | dict.fromkeys(_UNSET, "") | {
            "DATABASE_URL": self.database_server.url(DATABASE),
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
            self._wait_for_log("worker started", process)
            yield process
        finally:
            # The campaign is done, so the worker may be killed.
            process.kill()
            process.wait()

    @property
    def _log(self) -> Path:
        return self.folder / "worker.log"

    def _wait_for_log(self, text: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while text not in self._log.read_text(errors="replace"):
            self._check_alive(process, deadline)
            time.sleep(0.02)

    def _wait_for_campaign(self, connection: psycopg.Connection, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while connection.execute("select 1 from campaign where status = 'done'").fetchone() is None:
            self._check_alive(process, deadline)
            time.sleep(0.05)

    def _check_alive(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker does not continue: {self._log.read_text(errors='replace')[-3000:]}")


def _rows(connection: psycopg.Connection) -> dict[str, int]:
    """The number of rows of each table except Huey's, whose tasks are temporary."""
    tables = [row[0] for row in connection.execute("select relname from pg_stat_user_tables order by 1")]
    count = sql.SQL("select count(*) from {}")
    counts = {}
    for table in tables:
        if not table.startswith("huey"):
            (counts[table],) = connection.execute(count.format(sql.Identifier(table))).fetchone() or (0,)
    return counts


def _difference(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {table: n - before[table] for table, n in now.items() if n != before[table]}


def _check_measurement(measurement: CampaignMeasurement, n: int) -> None:
    """Check that each customer got one email and that only batches have rows."""
    if (measurement.totals.mails, measurement.totals.recipients) != (n, n):
        raise RuntimeError(f"{n} customers, {measurement.totals.mails} emails to {measurement.totals.recipients}")
    batches = -(-n // BATCH_SIZE)
    if (
        measurement.rows.get("batch") != batches
        or "mail_issue" in measurement.rows
        or "batch_cursor" in measurement.rows
    ):
        raise RuntimeError(f"{batches} batches and no rows about single emails were expected: {measurement.rows}")


def _cpu(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def _peak(pid: int) -> int:
    """The peak memory of a process in bytes; the current one without /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
