"""A mailing under way: the relay and the workers as processes of their own, and what can be done to them."""

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
from tests.support.chaos.durable_database import DurableDatabase
from webapp.campaigns import timing
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import transitions
from webapp.core.extensions import db
from webapp.core.settings import ROOT
from webapp.offers.models import Offer, OfferCode

LEASE = timing.LEASE_DURATION / FACTOR
SWEEP = 60 / FACTOR
# Longer than anything here takes on a busy machine; whoever waits so long waits in vain.
PATIENCE = 180


def wait_until(done: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain: {what}")
        time.sleep(0.1)


@dataclass
class Post:
    """The relay's process and what it has written down."""

    log: Path
    seed: int
    rate: float
    seconds: float
    port: int = field(default_factory=ports.free_port)
    lines: list[dict[str, str]] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    _kept: socket.socket | None = None
    _offset: int = 0

    def start(self) -> None:
        if self._kept is not None:
            self._kept.close()
        given = {"port": self.port, "log": self.log, "seed": self.seed, "rate": self.rate, "seconds": self.seconds}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        script = str(Path(__file__).with_name("faulty_relay.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """From now on connections are refused."""
        if self.process is not None:
            self.process.terminate()
            self.process.communicate()
            self.process = None
            # Nobody listens, but nobody else gets the port meanwhile.
            self._kept = socket.socket()
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._kept.bind(("127.0.0.1", self.port))

    def end(self) -> None:
        """Stop for good."""
        self.stop()
        if self._kept is not None:
            self._kept.close()

    def read(self) -> list[dict[str, str]]:
        """All lines so far."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
            self._offset += len(whole) + 1 if whole else 0
            self.lines += [json.loads(line) for line in whole.splitlines()]
        return self.lines

    def of(self, what: str) -> list[dict[str, str]]:
        return [line for line in self.read() if line["what"] == what]

    def mails(self, campaign: int) -> list[dict[str, str]]:
        """What was taken of a campaign, in the order in which it came."""
        return [line for line in self.of("mail") if line["campaign"] == str(campaign)]


@dataclass
class Crew:
    """Workers, each a process with two connections to the relay. One that is killed is started again, as systemd would.

    `killed_connections` counts those of workers that were killed, or stopped for so long that others took over from
    them. A worker is held first, then counted, so that none opens or closes unseen.
    """

    place: DurableDatabase
    post: Post
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed_connections: int = 0
    deeds: list[str] = field(default_factory=list)
    died_alone: int = 0
    _stopped: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """One more worker."""
        settings = replace(self.place.settings, mail_port=self.post.port)
        with (self.place.folder / "workers.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.chaos.accelerated_worker"],
                    cwd=ROOT,
                    env=live_server.environment(settings, MAIL_CONNECTIONS="2"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """`kill -9`; another one takes its place."""
        self.hold(worker)
        self.kill_held(worker)

    def kill_held(self, worker: subprocess.Popen[bytes]) -> None:
        """`kill -9` of one that is held already."""
        self._count_connections(worker)
        worker.kill()
        worker.wait()
        self._replace(worker)
        self.deeds.append("kill")

    def stop(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP: it goes on, believing that nothing happened, when its leases are long over."""
        self.hold(worker)
        self._count_connections(worker)
        self._stopped[worker.pid] = time.monotonic() + 1.3 * LEASE
        self.deeds.append("stop")

    def term(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGTERM, as by a deployment; it ends in order, and another one takes its place."""
        worker.terminate()
        worker.wait(PATIENCE)
        self._replace(worker)
        self.deeds.append("term")

    def look_after(self) -> None:
        """What a supervisor does all the time: wake those whose time has come, start those that ended by themselves."""
        for worker in list(self.running):
            if self._stopped.get(worker.pid, time.monotonic() + 1) <= time.monotonic():
                del self._stopped[worker.pid]
                worker.send_signal(signal.SIGCONT)
            if worker.poll() is not None:
                self.died_alone += 1
                self._replace(worker)

    def awake(self) -> list[subprocess.Popen[bytes]]:
        return [worker for worker in self.running if worker.pid not in self._stopped]

    def end(self) -> None:
        """All of them, in order where that is possible."""
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

    def hold(self, worker: subprocess.Popen[bytes]) -> None:
        """Let it do nothing for a moment: `kill_held`, or SIGCONT, has to follow."""
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, "a worker stops")

    def _count_connections(self, worker: subprocess.Popen[bytes]) -> None:
        found = psutil.Process(worker.pid).net_connections("tcp")
        self.killed_connections += sum(
            1 for one in found if one.status == "ESTABLISHED" and one.raddr and one.raddr.port == self.post.port
        )

    def _replace(self, worker: subprocess.Popen[bytes]) -> None:
        self.running.remove(worker)
        self.start()


@dataclass
class Mailing:
    """A launched campaign to all customers of the place."""

    place: DurableDatabase
    post: Post
    crew: Crew
    policy: str
    id: int
    launched: float = field(default_factory=time.monotonic)

    def total(self) -> int:
        """How many customers there are to be mailed."""
        return int(self.sql("select count(*) from customer")[0][0])

    @property
    def mails(self) -> int:
        """How many the relay has taken."""
        return len(self.post.mails(self.id))

    def sql(self, statement: str, *given: Any) -> list[tuple[Any, ...]]:
        """Rows; none while the database is away."""
        try:
            with self.place.connect() as connection:
                return connection.execute(statement.encode(), given).fetchall()
        except psycopg.OperationalError:
            return []

    def status(self) -> str:
        return "".join(row[0] for row in self.sql("select status from campaign where id = %s", self.id))

    def wait(self, done: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Until it is so, with somebody who looks after the workers meanwhile."""

        def look() -> object:
            self.crew.look_after()
            return done()

        wait_until(look, what, seconds)

    def wait_for(self, mails: int) -> None:
        """Until the relay has taken so many, or there is nothing more to take."""
        self.wait(lambda: self.mails >= mails or self.status() == "done", f"{mails} mails")

    def wait_done(self) -> None:
        self.wait(lambda: self.status() == "done", "the campaign is done")

    def wait_at_rest(self) -> None:
        """Until nobody holds a batch any more and no stopped worker is left, after a pause or a cancellation."""
        held = "select count(*) from batch where campaign_id = %s and status = 'sending' and lease_until > now()"
        self.wait(lambda: self.sql(held, self.id) == [(0,)] and len(self.crew.awake()) > 1, "all batches are at rest")

    def pass_time(self, seconds: float) -> None:
        """Let the workers do what they do."""
        over = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > over, "time passes", seconds + PATIENCE)

    def pause(self) -> float:
        """When it was paused, by the clock that the relay goes by too."""
        with self.place.context():
            transitions.pause_campaign(self.id, "chaos")
        return time.time()

    def resume(self) -> None:
        with self.place.context():
            transitions.resume_campaign(self.id, "chaos")

    def cancel(self) -> float:
        with self.place.context():
            transitions.cancel_campaign(self.id, "chaos")
        return time.time()


@contextmanager
def under_way(
    place: DurableDatabase, policy: str, seed: int, *, rate: float = 0.01, seconds: float = 0.02, workers: int = 2
) -> Iterator[Mailing]:
    """A mailing that has just been launched, with a relay and workers of its own."""
    post = Post(place.folder / f"relay-{secrets.token_hex(4)}.log", seed, rate, seconds)
    crew = Crew(place, post)
    try:
        post.start()
        for _ in range(workers):
            crew.start()
        yield Mailing(place, post, crew, policy, _launch(place, policy))
    finally:
        crew.end()
        post.end()


def _launch(place: DurableDatabase, policy: str) -> int:
    code = f"CHAOS{secrets.token_hex(4).upper()}"
    now = datetime.now(UTC)
    with place.context():
        offer = Offer(
            code=code,
            code_as_written=code,
            name="Chaos",
            discount_type="percent",
            percent=Decimal(25),
            starts_at=now - timedelta(days=1),
            ends_at=now + timedelta(days=30),
        )
        db.session.add(offer)
        db.session.flush()
        db.session.add(OfferCode(code=code, offer_id=offer.id, code_as_written=code))
        db.session.commit()
        draft_actions.save_offer_draft(offer.id, EmailContent(), policy, "chaos")
        return int(launch_actions.launch_announcement(offer.id, "chaos").campaign.id)
