"""The crash runs of a mailing: what is done to it, and the promises that the audit then holds it to."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from tests.support import live_server
from tests.support.chaos import durable_database
from tests.support.chaos.delivery_audit import Audit, audit
from tests.support.chaos.durable_database import DurableDatabase
from tests.support.chaos.redemption_load import ENOUGH, load, lost
from tests.support.chaos.running_campaign import LEASE, SWEEP, Mailing, under_way
from webapp.campaigns import stats_queries
from webapp.campaigns.models import WINDOW_SIZE

POLICIES = ("resend", "hold")


@dataclass
class Run:
    """One mailing, or a part of it, and what the audit found. `broken` says in words which promises were not kept."""

    name: str
    policy: str
    audit: Audit
    killed_connections: int
    lost_replies: int
    deeds: Counter[str]
    faults: int
    seconds: float
    broken: list[str] = field(default_factory=list)

    @property
    def allowed(self) -> int:
        """How many second copies are within the promise."""
        return self.killed_connections + self.lost_replies if self.policy == "resend" else 0

    def expect(self, kept: object, words: str) -> None:
        if not kept:
            self.broken.append(words)


def kills(place: DurableDatabase, policy: str, seed: int, deaths: int) -> Run:
    """Kill workers, or stop them until others have taken over, so many times; every third one is stopped."""
    with under_way(place, policy, seed) as mailing:
        chance = random.Random(seed)
        for n in range(deaths):
            _go_on(mailing, deaths - n + 1)
            awake = mailing.crew.awake()
            stop = n % 3 == 1 and len(awake) > 1
            (mailing.crew.stop if stop else mailing.crew.kill)(chance.choice(awake))
        mailing.wait_done()
        mailing.wait_at_rest()
        # Time for those that were stopped to do whatever harm they can.
        mailing.pass_time(SWEEP / 2)
        return judge(f"{deaths} × kill -9 or SIGSTOP", mailing)


def pause_and_cancel(place: DurableDatabase, policy: str, seed: int) -> list[Run]:
    """Pause while a worker is killed, resume, cancel while one is killed and one stopped."""
    with under_way(place, policy, seed) as mailing:
        crew = mailing.crew
        _go_on(mailing, 4)
        paused = mailing.pause()
        crew.kill(crew.awake()[0])
        still = _is_still(mailing)
        first = judge("paused, workers killed", mailing)
        first.expect(still, "mails went out after a pause")
        _expect_stopped(first, mailing, paused, "paused")
        mailing.resume()
        _go_on(mailing, 3)
        resumed = mailing.mails
        crew.stop(crew.awake()[0])
        cancelled = mailing.cancel()
        crew.kill(crew.awake()[0])
        ended = "select count(*) from batch where campaign_id = %s and status in ('pending', 'sending')"
        mailing.wait(lambda: mailing.sql(ended, mailing.id) == [(0,)], "all batches of a cancelled mailing are settled")
        still = _is_still(mailing)
        second = judge("resumed, cancelled, workers killed", mailing)
        second.expect(still, "mails went out after a cancellation")
        second.expect(resumed > first.audit.received, "nothing went out after a pause was over")
        _expect_stopped(second, mailing, cancelled, "cancelled")
        return [first, second]


def database_dies(place: DurableDatabase, policy: str, seed: int, times: int, kill: bool) -> Run:
    """Stop PostgreSQL at once in mid-campaign and start it again, so many times.

    :param kill: end a worker meanwhile: with the cursor gone, nobody knows of its windows. Workers that live know,
        unless the database was away for so long that their leases may have ended.
    """
    longest = 0.0
    with under_way(place, policy, seed) as mailing:
        for n in range(times):
            _go_on(mailing, times - n + 1)
            began = time.monotonic()
            if kill:
                mailing.wait(lambda: _dies_with_a_worker(mailing), "a worker is in the middle of a window")
            else:
                place.die()
            time.sleep(0.3)
            place.server.start()
            longest = max(longest, time.monotonic() - began)
        mailing.wait_done()
        run = judge(f"{times} × PostgreSQL stopped at once{', and a worker' if kill else ''}", mailing)
        held = "select 1 from mail_issue where campaign_id = %s and state = 'uncertain' and text like '%%database%%'"
        if kill:
            run.expect(mailing.sql(held, mailing.id), "no window was held though its cursor was lost")
        elif longest < LEASE / 3:
            run.expect(not mailing.sql(held, mailing.id), "a window was held though its owner lived")
        return run


_AT_WORK = """
    select 1 from batch where campaign_id = %s and status = 'sending' and window_end > window_start
      and split_part(owner, ':', 2) = %s
    for update skip locked
"""


def _dies_with_a_worker(mailing: Mailing) -> bool:
    """Stop PostgreSQL at once, and kill a worker that has a window open just then; False when there is none.

    The worker is held first, and its batch is locked until the database dies: however slow the machine is, nobody takes
    the batch over while the cursor is there.
    """
    for worker in mailing.crew.awake():
        mailing.crew.hold(worker)
        died = False
        # The end of the transaction finds the database dead.
        with suppress(psycopg.OperationalError), mailing.place.connect() as connection, connection.transaction():
            died = bool(connection.execute(_AT_WORK, [mailing.id, str(worker.pid)]).fetchall())
            if died:
                mailing.place.die()
        if died:
            mailing.crew.kill_held(worker)
            return True
        worker.send_signal(signal.SIGCONT)
    return False


def relay_away(place: DurableDatabase, policy: str, seed: int, seconds: float) -> Run:
    """Nobody listens at the relay's port for a while."""
    with under_way(place, policy, seed) as mailing:
        _go_on(mailing, 3)
        mailing.post.stop()
        trouble = "select 1 from campaign where id = %s and trouble is not null"
        mailing.wait(lambda: mailing.sql(trouble, mailing.id), "staff see that the relay is away")
        mailing.pass_time(seconds)
        status = mailing.status()
        mailing.post.start()
        mailing.wait_done()
        run = judge(f"relay away for {seconds:.0f} s", mailing)
        run.expect(status == "sending", f"{status} while the relay was away")
        run.expect(not mailing.sql(trouble, mailing.id), "staff still see that the relay is away")
        return run


def relay_away_elsewhere(customers: int, policy: str, seed: int, seconds: float) -> Run:
    """The same in a place of its own, so that it can be waited for beside other runs, from another process."""
    logging.disable(logging.CRITICAL)
    with durable_database.start_durable_database(customers) as place:
        return relay_away(place, policy, seed, seconds)


def restarts(place: DurableDatabase, policy: str, seed: int, times: int) -> Run:
    """End workers in order in mid-window, again and again; the relay makes no faults, so nothing may be uncertain."""
    with under_way(place, policy, seed, rate=0) as mailing:
        for n in range(times):
            _go_on(mailing, times - n + 1)
            mailing.crew.term(mailing.crew.running[0])
        mailing.wait_done()
        run = judge(f"{times} × SIGTERM in mid-window", mailing)
        run.expect(not run.audit.duplicates, f"{run.audit.duplicates} twice after a restart in order")
        run.expect(run.audit.states.keys() == {"sent"}, f"not everybody simply got it: {dict(run.audit.states)}")
        return run


def redemptions(place: DurableDatabase, rounds: int) -> int:
    """How many "redeemed" answers are not in the table after PostgreSQL died so many times under load."""
    with live_server.web_server(place.settings, workers=2) as web, load(place, web, "DYING") as found:
        for _ in range(rounds):
            found.wait_for(201, 4 * ENOUGH)
            place.die()
            found.wait_for(503)
            place.server.start()
        found.wait_for(201)
    return len(lost(place, found))


def judge(name: str, mailing: Mailing) -> Run:
    """Hold what the relay has taken against the program's rows, and both against what is promised in any run."""
    with mailing.place.context():
        counts = stats_queries.get_campaign_stats(mailing.id)
    with mailing.place.connect() as connection:
        found = audit(connection, mailing.post.read(), mailing.id, counts)
    crew, post = mailing.crew, mailing.post
    seconds = time.monotonic() - mailing.launched
    run = Run(
        name, mailing.policy, found, crew.killed_connections, len(post.of("lost")), Counter(crew.deeds),
        len(post.of("fault")), seconds,
    )  # fmt: skip
    run.expect(not found.missing, f"{len(found.missing)} missing: {_some(found.missing)}")
    run.expect(
        found.duplicates <= run.allowed, f"{found.duplicates} twice, {run.allowed} allowed: {_some(found.twice)}"
    )
    run.expect(not found.untrue, f"{len(found.untrue)} untrue: {_some(found.untrue)}")
    run.expect(not crew.died_alone, f"{crew.died_alone} workers ended by themselves")
    return run


def _go_on(mailing: Mailing, parts: int) -> None:
    """Until one of so many parts of what is left has gone out."""
    total = mailing.total()
    mailing.wait_for(mailing.mails + max(1, (total - mailing.mails) // parts))


def _is_still(mailing: Mailing) -> bool:
    """Nothing goes out once all batches are at rest, whoever looks for work."""
    mailing.wait_at_rest()
    before = mailing.mails
    mailing.pass_time(1.5 * SWEEP)
    return mailing.mails == before


def _expect_stopped(run: Run, mailing: Mailing, since: float, status: str) -> None:
    run.expect(mailing.status() == status, f"{mailing.status()} instead of {status}")
    late = Counter(line["connection"] for line in mailing.post.mails(mailing.id) if float(line["at"]) > since)
    worst = max(late.values(), default=0)
    run.expect(worst <= WINDOW_SIZE, f"{worst} mails over one connection after it was {status}")


def _some(lines: Sequence[str]) -> str:
    return "; ".join(lines[:3]) + (" …" if len(lines) > 3 else "")
