"""A running campaign whose relay and workers can be stopped and killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.support import live_server, ports
from tests.support.chaos.accelerated_worker import FACTOR
from tests.support.chaos.durable_database import PopulatedDatabase
from tests.support.live_server import wait_until
from webapp.campaigns import timing
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import transitions
from webapp.core.money import Discount
from webapp.core.settings import ROOT
from webapp.offers import actions as offer_actions
from webapp.offers.models import OfferValues

LEASE = timing.LEASE_DURATION / FACTOR
SWEEP = 60 / FACTOR
# Seconds; longer than any step takes on a busy machine.
TIMEOUT = 180


@dataclass
class RelayProcess:
    """The process of the relay, and its log."""

    log: Path
    seed: int
    rate: float
    seconds: float
    port: int = field(default_factory=ports.free_port)
    lines: list[dict[str, str]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    _port_holder: socket.socket | None = None
    _offset: int = 0

    def start(self) -> None:
        if self._port_holder is not None:
            self._port_holder.close()
        values = {"port": self.port, "log": self.log, "seed": self.seed, "rate": self.rate, "seconds": self.seconds}
        options = [part for name, value in values.items() for part in (f"--{name}", str(value))]
        script = str(Path(__file__).with_name("faulty_relay.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """End the process; connections are refused until the next start."""
        if self.process is not None:
            self.process.terminate()
            self.process.communicate()
            self.process = None
            # Keeps the port from other programs without listening on it.
            self._port_holder = socket.socket()
            self._port_holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._port_holder.bind(("127.0.0.1", self.port))

    def end(self) -> None:
        """Stop the relay and release its port."""
        self.stop()
        if self._port_holder is not None:
            self._port_holder.close()

    def read(self) -> list[dict[str, str]]:
        """Return all lines so far."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
            self._offset += len(whole) + 1 if whole else 0
            self.lines += [json.loads(line) for line in whole.splitlines()]
        return self.lines

    def events(self, event: str) -> list[dict[str, str]]:
        return [line for line in self.read() if line["event"] == event]

    def emails(self, campaign: int) -> list[dict[str, str]]:
        """Return the accepted emails of a campaign in the order of arrival."""
        return [line for line in self.events("mail") if line["campaign"] == str(campaign)]


@dataclass
class WorkerPool:
    """Workers, each a process with two connections to the relay.

    A killed worker is replaced, as systemd would do. `killed_connections` counts connections of workers that were
    killed, or stopped for so long that others took over their batches. A worker is suspended before its connections
    are counted, so that it cannot open or close any.
    """

    database: PopulatedDatabase
    relay: RelayProcess
    module: str = "tests.support.chaos.accelerated_worker"
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed_connections: int = 0
    actions: list[str] = field(default_factory=list)
    unexpected_exits: int = 0
    _stopped: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Start one more worker."""
        settings = replace(self.database.settings, mail_port=self.relay.port)
        with (self.database.folder / "workers.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(
                    [sys.executable, "-m", self.module],
                    cwd=ROOT,
                    env=live_server.environment(settings, MAIL_CONNECTIONS="2"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker by SIGKILL and start another one."""
        self.suspend(worker)
        self.kill_suspended(worker)

    def kill_suspended(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker that is suspended already and start another one."""
        self._count_connections(worker)
        worker.kill()
        worker.wait()
        self._replace(worker)
        self.actions.append("kill")

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        """Stop a worker by SIGSTOP; it continues after its leases have expired."""
        self.suspend(worker)
        self._count_connections(worker)
        self._stopped[worker.pid] = time.monotonic() + 1.3 * LEASE
        self.actions.append("stop")

    def term(self, worker: subprocess.Popen[bytes]) -> None:
        """Shut a worker down by SIGTERM, as a deployment does, and start another one."""
        worker.terminate()
        worker.wait(TIMEOUT)
        self._replace(worker)
        self.actions.append("term")

    def supervise(self) -> None:
        """Continue workers whose stop is over; replace those that ended unexpectedly."""
        for worker in list(self.running):
            if self._stopped.get(worker.pid, time.monotonic() + 1) <= time.monotonic():
                del self._stopped[worker.pid]
                worker.send_signal(signal.SIGCONT)
            if worker.poll() is not None:
                self.unexpected_exits += 1
                self._replace(worker)

    def active(self) -> list[subprocess.Popen[bytes]]:
        return [worker for worker in self.running if worker.pid not in self._stopped]

    def end(self) -> None:
        """Shut all workers down, by SIGKILL if SIGTERM is not enough."""
        for worker in self.running:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self.running:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.running.clear()

    def suspend(self, worker: subprocess.Popen[bytes]) -> None:
        """Suspend a worker; the caller must call `kill_suspended` or send SIGCONT."""
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, what="a worker stops")

    def _count_connections(self, worker: subprocess.Popen[bytes]) -> None:
        connections = psutil.Process(worker.pid).net_connections("tcp")
        self.killed_connections += sum(
            1 for c in connections if c.status == "ESTABLISHED" and c.raddr and c.raddr.port == self.relay.port
        )

    def _replace(self, worker: subprocess.Popen[bytes]) -> None:
        self.running.remove(worker)
        self.start()


@dataclass
class RunningCampaign:
    """A launched campaign to all customers of the database."""

    database: PopulatedDatabase
    relay: RelayProcess
    workers: WorkerPool
    policy: str
    id: int
    launched: float = field(default_factory=time.monotonic)

    def total(self) -> int:
        """Return the number of customers."""
        return int(self.sql("select count(*) from customer")[0][0])

    @property
    def emails(self) -> int:
        """The number of emails that the relay has accepted."""
        return len(self.relay.emails(self.id))

    def sql(self, statement: str, *given: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement; none while the database is unavailable."""
        try:
            with self.database.connect() as connection:
                return connection.execute(statement.encode(), given).fetchall()
        except psycopg.OperationalError:
            return []

    def status(self) -> str:
        return "".join(row[0] for row in self.sql("select status from campaign where id = %s", self.id))

    def wait(self, done: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
        """Supervise the workers until a condition is met."""

        def supervise_and_check() -> object:
            self.workers.supervise()
            return done()

        wait_until(supervise_and_check, seconds, what, interval=0.1)

    def wait_for(self, number: int) -> None:
        """Wait until the relay has accepted `number` emails or the campaign is done."""
        self.wait(lambda: self.emails >= number or self.status() == "done", f"{number} emails")

    def wait_done(self) -> None:
        self.wait(lambda: self.status() == "done", "the campaign is done")

    def wait_until_idle(self) -> None:
        """Wait until no batch has a lease and all workers are active."""
        leased = "select count(*) from batch where campaign_id = %s and status = 'sending' and lease_until > now()"
        self.wait(
            lambda: self.sql(leased, self.id) == [(0,)] and len(self.workers.active()) > 1, "no batch has a lease"
        )

    def pass_time(self, seconds: float) -> None:
        """Let the workers run for a while."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end, "time passes", seconds + TIMEOUT)

    def pause(self) -> float:
        """Pause the campaign; return the time, by the clock that the relay's log uses."""
        with self.database.context():
            transitions.pause_campaign(self.id, "chaos")
        return time.time()

    def resume(self) -> None:
        with self.database.context():
            transitions.resume_campaign(self.id, "chaos")

    def cancel(self) -> float:
        with self.database.context():
            transitions.cancel_campaign(self.id, "chaos")
        return time.time()


@contextmanager
def start_campaign(
    database: PopulatedDatabase,
    policy: str,
    seed: int,
    *,
    rate: float = 0.01,
    seconds: float = 0.02,
    workers: int = 2,
    module: str = "tests.support.chaos.accelerated_worker",
) -> Iterator[RunningCampaign]:
    """Launch a campaign with its own relay and workers; end both afterwards.

    :param module: the module that the workers run.
    """
    relay = RelayProcess(database.folder / f"relay-{secrets.token_hex(4)}.log", seed, rate, seconds)
    pool = WorkerPool(database, relay, module)
    try:
        relay.start()
        for _ in range(workers):
            pool.start()
        yield RunningCampaign(database, relay, pool, policy, launch_campaign(database, policy))
    finally:
        pool.end()
        relay.end()


def launch_campaign(database: PopulatedDatabase, policy: str) -> int:
    """Launch the campaign of a new offer to all customers; return its ID."""
    code = f"CHAOS{secrets.token_hex(4).upper()}"
    now = datetime.now(UTC)
    with database.context():
        values = OfferValues(
            "Chaos",
            Discount("percent", percent=Decimal(25)),
            now - timedelta(days=1),
            code=code,
            ends_at=now + timedelta(days=30),
        )
        offer = offer_actions.create_offer(values, "chaos")
        draft_actions.save_offer_draft(offer.id, EmailContent(), policy, "chaos")
        return int(launch_actions.launch_announcement(offer.id, "chaos").campaign.id)
