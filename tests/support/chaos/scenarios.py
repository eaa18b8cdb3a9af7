"""Crash scenarios for a campaign, and the guarantees that are checked after each."""

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
from tests.support.chaos.redemption_load import ENOUGH, lost_redemptions, redemption_load
from tests.support.chaos.running_campaign import LEASE, SWEEP, RunningCampaign, start_campaign
from webapp.campaigns import stats_queries
from webapp.campaigns.models import WINDOW_SIZE

POLICIES = ("resend", "hold")


@dataclass
class ChaosRun:
    """A campaign, or a part of it, with its audit.

    `broken` describes the guarantees that were violated.
    """

    name: str
    policy: str
    audit: Audit
    killed_connections: int
    lost_replies: int
    actions: Counter[str]
    faults: int
    seconds: float
    broken: list[str] = field(default_factory=list)

    @property
    def allowed(self) -> int:
        """The number of duplicates that the policy allows."""
        return self.killed_connections + self.lost_replies if self.policy == "resend" else 0

    def expect(self, condition: object, message: str) -> None:
        if not condition:
            self.broken.append(message)


def kill_workers(database: DurableDatabase, policy: str, seed: int, deaths: int) -> ChaosRun:
    """Kill `deaths` workers; stop every third one until its leases expire instead."""
    with start_campaign(database, policy, seed) as campaign:
        chance = random.Random(seed)
        for n in range(deaths):
            _wait_for_part(campaign, deaths - n + 1)
            active = campaign.workers.active()
            stop = n % 3 == 1 and len(active) > 1
            (campaign.workers.stop if stop else campaign.workers.kill)(chance.choice(active))
        campaign.wait_done()
        campaign.wait_until_idle()
        # Workers that were stopped get time to do damage.
        campaign.pass_time(SWEEP / 2)
        return audit_run(f"{deaths} × kill -9 or SIGSTOP", campaign)


def pause_and_cancel(database: DurableDatabase, policy: str, seed: int) -> list[ChaosRun]:
    """Pause and cancel a campaign while workers are killed or stopped."""
    with start_campaign(database, policy, seed) as campaign:
        workers = campaign.workers
        _wait_for_part(campaign, 4)
        paused = campaign.pause()
        workers.kill(workers.active()[0])
        is_idle = _sends_nothing(campaign)
        first = audit_run("paused, workers killed", campaign)
        first.expect(is_idle, "emails were sent after a pause")
        _expect_stopped(first, campaign, paused, "paused")
        campaign.resume()
        _wait_for_part(campaign, 3)
        resumed = campaign.emails
        workers.stop(workers.active()[0])
        cancelled = campaign.cancel()
        workers.kill(workers.active()[0])
        ended = "select count(*) from batch where campaign_id = %s and status in ('pending', 'sending')"
        campaign.wait(
            lambda: campaign.sql(ended, campaign.id) == [(0,)], "all batches of a cancelled campaign have ended"
        )
        is_idle = _sends_nothing(campaign)
        second = audit_run("resumed, cancelled, workers killed", campaign)
        second.expect(is_idle, "emails were sent after a cancellation")
        second.expect(resumed > first.audit.received, "nothing was sent after the pause")
        _expect_stopped(second, campaign, cancelled, "cancelled")
        return [first, second]


def crash_database(database: DurableDatabase, policy: str, seed: int, times: int, kill: bool) -> ChaosRun:
    """Crash PostgreSQL in mid-campaign and restart it, several times.

    :param kill: also kill a worker: without it and the cursor, the progress of its windows is unknown. Workers that
        survive know theirs, unless the outage was so long that their leases may have expired.
    """
    longest = 0.0
    with start_campaign(database, policy, seed) as campaign:
        for n in range(times):
            _wait_for_part(campaign, times - n + 1)
            start = time.monotonic()
            if kill:
                campaign.wait(lambda: _crash_with_a_worker(campaign, database), "a worker is in the middle of a window")
            else:
                database.crash()
            time.sleep(0.3)
            database.server.start()
            longest = max(longest, time.monotonic() - start)
        campaign.wait_done()
        run = audit_run(f"{times} × PostgreSQL killed{', and a worker' if kill else ''}", campaign)
        uncertain = (
            "select 1 from mail_issue where campaign_id = %s and state = 'uncertain' and text like '%%database%%'"
        )
        if kill:
            run.expect(campaign.sql(uncertain, campaign.id), "no delivery is uncertain although a cursor was lost")
        elif longest < LEASE / 3:
            run.expect(not campaign.sql(uncertain, campaign.id), "a delivery is uncertain although its worker survived")
        return run


_OPEN_WINDOW = """
    select 1 from batch where campaign_id = %s and status = 'sending' and window_end > window_start
      and split_part(owner, ':', 2) = %s
    for update skip locked
"""


def _crash_with_a_worker(campaign: RunningCampaign, database: DurableDatabase) -> bool:
    """Crash PostgreSQL and kill a worker that has an open window.

    Returns False when no worker has one.
    The worker is suspended first, and its batch is locked until the crash: even on a slow machine, no other worker
    takes over the batch while the cursor exists.
    """
    for worker in campaign.workers.active():
        campaign.workers.suspend(worker)
        crashed = False
        # The transaction cannot end after the crash.
        with suppress(psycopg.OperationalError), database.connect() as connection, connection.transaction():
            crashed = bool(connection.execute(_OPEN_WINDOW, [campaign.id, str(worker.pid)]).fetchall())
            if crashed:
                database.crash()
        if crashed:
            campaign.workers.kill_suspended(worker)
            return True
        worker.send_signal(signal.SIGCONT)
    return False


def relay_outage(database: DurableDatabase, policy: str, seed: int, seconds: float) -> ChaosRun:
    """Stop the relay for `seconds`."""
    with start_campaign(database, policy, seed) as campaign:
        _wait_for_part(campaign, 3)
        campaign.relay.stop()
        notice = "select 1 from campaign where id = %s and trouble is not null"
        campaign.wait(lambda: campaign.sql(notice, campaign.id), "staff see that the relay is unavailable")
        campaign.pass_time(seconds)
        status = campaign.status()
        campaign.relay.start()
        campaign.wait_done()
        run = audit_run(f"relay unavailable for {seconds:.0f} s", campaign)
        run.expect(status == "sending", f"{status} while the relay was unavailable")
        run.expect(not campaign.sql(notice, campaign.id), "staff still see that the relay is unavailable")
        return run


def relay_outage_in_own_database(customers: int, policy: str, seed: int, seconds: float) -> ChaosRun:
    """Run `relay_outage` with its own database, so that it can run in parallel."""
    logging.disable(logging.CRITICAL)
    with durable_database.start_durable_database(customers) as database:
        return relay_outage(database, policy, seed, seconds)


def restart_workers(database: DurableDatabase, policy: str, seed: int, times: int) -> ChaosRun:
    """Shut workers down in mid-window.

    The relay injects no faults, so no delivery may be uncertain.
    """
    with start_campaign(database, policy, seed, rate=0) as campaign:
        for n in range(times):
            _wait_for_part(campaign, times - n + 1)
            campaign.workers.term(campaign.workers.running[0])
        campaign.wait_done()
        run = audit_run(f"{times} × SIGTERM in mid-window", campaign)
        run.expect(not run.audit.duplicates, f"{run.audit.duplicates} duplicates after clean restarts")
        run.expect(run.audit.states.keys() == {"sent"}, f"some are not sent: {dict(run.audit.states)}")
        return run


def redeem_during_crashes(database: DurableDatabase, rounds: int) -> int:
    """Crash PostgreSQL under load; count confirmed redemptions without a row."""
    with live_server.web_server(database.settings, workers=2) as web, redemption_load(database, web, "DYING") as load:
        for _ in range(rounds):
            load.wait_for(201, 4 * ENOUGH)
            database.crash()
            load.wait_for(503)
            database.server.start()
        load.wait_for(201)
    return len(lost_redemptions(database, load))


def audit_run(name: str, campaign: RunningCampaign) -> ChaosRun:
    """Audit a campaign and check the guarantees that apply to every run."""
    with campaign.database.context():
        counts = stats_queries.get_campaign_stats(campaign.id)
    with campaign.database.connect() as connection:
        found = audit(connection, campaign.relay.read(), campaign.id, counts)
    workers, relay = campaign.workers, campaign.relay
    seconds = time.monotonic() - campaign.launched
    run = ChaosRun(
        name, campaign.policy, found, workers.killed_connections, len(relay.events("lost")), Counter(workers.actions),
        len(relay.events("fault")), seconds,
    )  # fmt: skip
    run.expect(not found.missing, f"{len(found.missing)} missing: {_some(found.missing)}")
    run.expect(
        found.duplicates <= run.allowed,
        f"{found.duplicates} duplicates, {run.allowed} allowed: {_some(found.duplicated)}",
    )
    run.expect(not found.contradictions, f"{len(found.contradictions)} contradictions: {_some(found.contradictions)}")
    run.expect(not workers.unexpected_exits, f"{workers.unexpected_exits} workers ended unexpectedly")
    return run


def _wait_for_part(campaign: RunningCampaign, parts: int) -> None:
    """Wait until one of `parts` equal parts of the remaining emails was sent."""
    total = campaign.total()
    campaign.wait_for(campaign.emails + max(1, (total - campaign.emails) // parts))


def _sends_nothing(campaign: RunningCampaign) -> bool:
    """Whether no email is sent once no batch has a lease."""
    campaign.wait_until_idle()
    before = campaign.emails
    campaign.pass_time(1.5 * SWEEP)
    return campaign.emails == before


def _expect_stopped(run: ChaosRun, campaign: RunningCampaign, since: float, status: str) -> None:
    run.expect(campaign.status() == status, f"{campaign.status()} instead of {status}")
    late = Counter(line["connection"] for line in campaign.relay.emails(campaign.id) if float(line["at"]) > since)
    worst = max(late.values(), default=0)
    run.expect(worst <= WINDOW_SIZE, f"{worst} emails over one connection after it was {status}")


def _some(lines: Sequence[str]) -> str:
    return "; ".join(lines[:3]) + (" …" if len(lines) > 3 else "")
