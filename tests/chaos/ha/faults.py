"""The faults of a machine, and what is measured and checked for each."""

from __future__ import annotations

import itertools
import socket
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import psutil
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from tests.support.chaos import running_campaign, scenarios
from tests.support.chaos.durable_database import PopulatedDatabase
from tests.support.chaos.patroni_cluster import Machine, PatroniCluster
from tests.support.chaos.redemption_load import RedemptionLoad, check_redemptions, lost_redemptions, redemption_load
from tests.support.chaos.running_campaign import RunningCampaign, start_campaign
from tests.support.live_server import LiveProcess, wait_until
from webapp import create_app
from webapp.campaigns.launch import transitions
from webapp.monitoring import queries as monitoring_queries

# Seconds without service that are allowed after a promoted standby answers, or after a fault without a promotion.
LIMIT = 30
# Seconds from a fault until a promoted standby has to answer: `ttl`, and what an election takes on a busy machine.
PROMOTION_LIMIT = 40
# Seconds between two redemptions of each of the ten clients.
PAUSE = 1.5
# A watchdog resets a machine at the latest this many seconds after its Patroni has stopped: `ttl` less the margin of 5.
WATCHDOG = 15


@dataclass(frozen=True)
class Fault:
    """A fault of the primary's machine, or of the synchronous standby's.

    :ivar role: the role of the machine that is broken, as Patroni names it.
    :ivar is_replaced: whether another machine has to take over the role.
    :ivar pause: seconds from the return of service to the repair.
    """

    name: str
    break_machine: Callable[[PatroniCluster, Machine], object]
    repair: Callable[[PatroniCluster, Machine], object]
    role: str = "leader"
    is_replaced: bool = True
    pause: float = 0
    needs_namespaces: bool = False
    needs_haproxy: bool = False


def _kill(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.kill()


def _boot(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.start()


def _freeze(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.stop_all()


def _resume(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.resume()


def _disconnect(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.disconnect()


def _reconnect(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.reconnect()


def _kill_server(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.kill_server()


def _restart_patroni(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.kill_patroni()
    # As systemd does with `Restart=on-failure`.
    machine.start_patroni()


def _freeze_patroni(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.stop_patroni()


def _freeze_patroni_with_watchdog(_cluster: PatroniCluster, machine: Machine) -> None:
    """Freeze Patroni; do what the watchdog of the machine does."""
    machine.stop_patroni()
    time.sleep(WATCHDOG)
    machine.kill()


def _freeze_etcd(cluster: PatroniCluster, machine: Machine) -> None:
    """Suspend etcd on two machines, so that the third has no majority."""
    other = next(each for each in cluster.machines if each is not machine)
    for each in (machine, other):
        each.stop_etcd()


def _resume_all(cluster: PatroniCluster, _machine: Machine) -> None:
    for each in cluster.machines:
        each.resume()


def _erase(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.erase()


def _replace(cluster: PatroniCluster, machine: Machine) -> None:
    cluster.replace(machine)


def _lose_data(_cluster: PatroniCluster, machine: Machine) -> None:
    machine.lose_data()


def _copy_again(cluster: PatroniCluster, machine: Machine) -> None:
    cluster.copy_again(machine)


def _switch_over(cluster: PatroniCluster, _machine: Machine) -> None:
    cluster.switch_over()


def _nothing(_cluster: PatroniCluster, _machine: Machine) -> None:
    """Nothing has to be repaired."""


STANDBY = "synchronous standby's machine"
FAULTS = [
    Fault("primary's machine killed, boots again", _kill, _boot),
    Fault("primary's machine frozen, continues at once", _freeze, _resume),
    Fault("primary's machine cut off", _disconnect, _reconnect, needs_namespaces=True),
    Fault("primary's machine frozen, continues after a minute", _freeze, _resume, pause=60),
    Fault(f"{STANDBY} frozen, continues", _freeze, _resume, role="sync_standby"),
    Fault("primary's Patroni frozen, watchdog resets the machine", _freeze_patroni_with_watchdog, _boot),
    Fault("primary's PostgreSQL killed", _kill_server, _nothing, is_replaced=False),
    Fault("primary's Patroni killed, restarted by systemd", _restart_patroni, _nothing, is_replaced=False),
    Fault(f"{STANDBY} lost with its disks and replaced", _erase, _replace, role="sync_standby"),
    Fault("planned switchover", _switch_over, _nothing),
    Fault(f"{STANDBY} cut off", _disconnect, _reconnect, role="sync_standby", needs_namespaces=True),
    Fault("etcd frozen on two machines for 30 s", _freeze_etcd, _resume_all, is_replaced=False, pause=30),
    Fault(f"{STANDBY} killed, boots again", _kill, _boot, role="sync_standby"),
    Fault("synchronous standby's database lost, copied again", _lose_data, _copy_again, role="sync_standby"),
    # Without HAProxy, connections stay on a primary that is not demoted and whose commits wait for ever.
    Fault("primary's Patroni frozen, no watchdog", _freeze_patroni, _resume, needs_haproxy=True),
]


class EndedEarly(Exception):
    """A run has ended before its fault; the message says why."""


@dataclass
class FaultResult:
    """What was measured for a fault.

    :ivar ended_early: why the run ended before the fault, so that it says nothing about the guarantees; empty if the
        fault was caused.
    :ivar is_audited: whether the run came to the audit; otherwise nothing is known about what was lost.
    :ivar promotion_seconds: from the fault until another machine answered in the role; 0 when none had to.
    :ivar seconds: for redemptions, emails, `/readyz` and launches, the time without them from that moment.
    :ivar redemption_gap: the longest time without an accepted redemption after the fault.
    :ivar email_gap: the longest time without an email after the fault.
    :ivar load: the load average of the machine over the five minutes before the end.
    :ivar nice: the nice value of the processes.
    """

    fault: str
    access: str
    accepted: int = 0
    emails: int = 0
    is_audited: bool = False
    lost: int = 0
    missing: int = 0
    duplicates: int = 0
    is_leader_changed: bool = False
    promotion_seconds: float = 0
    seconds: dict[str, float] = field(default_factory=dict)
    redemption_gap: float = 0
    email_gap: float = 0
    broken: list[str] = field(default_factory=list)
    ended_early: str = ""
    load: float = 0
    nice: int = 0


def connect_over(database: PopulatedDatabase, url: str) -> PopulatedDatabase:
    """Return the same database over another connection string."""
    settings = replace(database.settings, database_url=url)
    return PopulatedDatabase(settings, database.key, create_app(settings), database.folder)


def run_fault(
    cluster: PatroniCluster, database: PopulatedDatabase, web: LiveProcess, access: str, fault: Fault
) -> FaultResult:
    """Break a machine under redemptions and a campaign, repair it later, and audit what was acknowledged.

    :raises EndedEarly: when redemptions or the campaign did not work before the fault.
    """
    cluster.wait_until_complete()
    leader = cluster.leader()
    machine = leader if fault.role == "leader" else cluster.synchronous_standby()
    result = FaultResult(fault.name, access)
    processes = _children(web)
    code = f"FAULT{time.time_ns()}"
    with (
        start_campaign(database, "hold", 1, rate=0, seconds=0.08, module="webapp.worker") as campaign,
        redemption_load(database, web, code, PAUSE) as load,
    ):
        try:
            campaign.wait_for(200)
            load.wait_for(201)
        except AssertionError as error:
            raise EndedEarly(str(error)) from error
        broken_at = time.time()
        try:
            fault.break_machine(cluster, machine)
            answered_at = _wait_for_role(cluster, machine, fault, broken_at)
            result.promotion_seconds = answered_at - broken_at
            _wait_for_service(database, web, campaign, load, result, answered_at)
            time.sleep(fault.pause)
        finally:
            fault.repair(cluster, machine)
        cluster.wait_until_complete()
        load.wait_for(201)
        load.stopping.set()
        campaign.wait(lambda: campaign.status() == "done", "the campaign is done", 600)
        with database.context():
            wait_until(lambda: monitoring_queries.is_worker_alive(socket.gethostname()), what="the worker is alive")
        audit_responses(result, database, campaign, load)
        emails = [float(line["at"]) for line in campaign.relay.emails(campaign.id)]
    result.seconds["redemptions"] = longest_gap(load.accepted_at, answered_at)
    result.seconds["emails"] = longest_gap(emails, answered_at)
    result.redemption_gap = longest_gap(load.accepted_at, broken_at)
    result.email_gap = longest_gap(emails, broken_at)
    result.is_leader_changed = cluster.leader() != leader
    _check_times(result)
    if processes != _children(web):
        result.broken.append("a web process was restarted")
    return result


def longest_gap(times: list[float], since: float) -> float:
    """Return the longest time between two events, of that part which is after `since`."""
    pairs = itertools.pairwise(sorted(times))
    return max((after - max(before, since) for before, after in pairs if after > since), default=0.0)


def _wait_for_role(cluster: PatroniCluster, machine: Machine, fault: Fault, broken_at: float) -> float:
    """Wait until another machine has the role of the broken one; return the time."""
    if not fault.is_replaced:
        return broken_at
    wait_until(lambda: cluster.is_replaced(machine, fault.role), what="another machine has the role", interval=0.1)
    return time.time()


def _wait_for_service(
    database: PopulatedDatabase,
    web: LiveProcess,
    campaign: RunningCampaign,
    load: RedemptionLoad,
    result: FaultResult,
    since: float,
) -> None:
    """Wait until all parts of the service work again; measure those that are tried only now."""
    # Two web processes accept connections in turn.
    wait_until(lambda: all(_is_ready(web) for _ in range(10)), what="/readyz is 200", interval=0.1)
    result.seconds["/readyz"] = time.time() - since
    launched: list[int] = []
    wait_until(lambda: _can_launch(database, launched), what="a campaign can be launched", interval=0.5)
    result.seconds["launch"] = time.time() - since
    with database.context():
        transitions.cancel_campaign(launched[0], "chaos")
    again = time.time()
    campaign.wait(
        lambda: (
            load.accepted_at[-1] > again
            and max((float(line["at"]) for line in campaign.relay.emails(campaign.id)), default=0.0) > again
        ),
        "redemptions and emails continue",
    )


def _is_ready(web: LiveProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{web.url}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _can_launch(database: PopulatedDatabase, launched: list[int]) -> bool:
    """Launch a campaign and append its ID to `launched`; return whether that succeeds."""
    try:
        launched.append(running_campaign.launch_campaign(database, "hold"))
    except (SQLAlchemyError, psycopg.Error):
        return False
    return True


def _children(web: LiveProcess) -> set[int]:
    return {process.pid for process in psutil.Process(web.process.pid).children(recursive=True)}


def audit_responses(
    result: FaultResult, database: PopulatedDatabase, campaign: RunningCampaign, load: RedemptionLoad
) -> None:
    """Compare the responses and the relay's log with the rows; add what is wrong to the result."""
    run = scenarios.audit_run(result.fault, campaign)
    result.is_audited = True
    result.accepted, result.emails = len(load.accepted_at), run.audit.received
    result.lost = len(lost_redemptions(database, load))
    result.missing, result.duplicates = len(run.audit.missing), run.audit.duplicates
    result.broken += run.broken
    try:
        check_redemptions(database, load)
    except AssertionError as error:
        result.broken.append(str(error))


def _check_times(result: FaultResult) -> None:
    if result.promotion_seconds > PROMOTION_LIMIT:
        result.broken.append(f"{result.promotion_seconds:.0f} s until another machine took over")
    for name, seconds in result.seconds.items():
        if seconds > LIMIT:
            result.broken.append(f"{name}: {seconds:.0f} s until they worked again")
