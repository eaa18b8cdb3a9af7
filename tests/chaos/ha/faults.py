"""The faults of a machine, and what is measured and checked for each."""

from __future__ import annotations

import itertools
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.support.chaos import scenarios
from tests.support.chaos.durable_database import PopulatedDatabase
from tests.support.chaos.patroni_cluster import Machine, PatroniCluster, wait_until
from tests.support.chaos.redemption_load import RedemptionLoad, check_redemptions, lost_redemptions, redemption_load
from tests.support.chaos.running_campaign import RunningCampaign, start_campaign
from tests.support.live_server import LiveProcess
from webapp import create_app
from webapp.monitoring import queries as monitoring_queries

# Seconds without service that are allowed after a fault, including the time until a standby is promoted.
LIMIT = 30 + 25
# Seconds between two redemptions of each of the ten clients.
PAUSE = 0.1


@dataclass(frozen=True)
class Fault:
    """A fault of the primary's machine, or of the synchronous standby's.

    :ivar role: the role of the machine that is broken, as Patroni names it.
    """

    name: str
    break_machine: Callable[[Machine], object]
    repair: Callable[[Machine], object]
    role: str = "leader"
    needs_namespaces: bool = False
    needs_haproxy: bool = False


FAULTS = [
    Fault("primary's machine killed", Machine.kill, Machine.start),
    Fault("primary's machine frozen", Machine.stop_all, Machine.resume),
    Fault("primary's machine cut off", Machine.disconnect, Machine.reconnect, needs_namespaces=True),
    Fault("synchronous standby's machine frozen", Machine.stop_all, Machine.resume, role="sync_standby"),
    # Without HAProxy, connections stay on a primary that is not demoted and whose commits wait for ever.
    Fault("primary's Patroni frozen", Machine.stop_patroni, Machine.resume, needs_haproxy=True),
]


@dataclass
class FaultResult:
    """What was measured for a fault.

    :ivar redemption_seconds: the longest time without an accepted redemption after the fault.
    :ivar mail_seconds: the longest time without an email after the fault.
    """

    fault: str
    access: str
    accepted: int
    redemption_seconds: float
    emails: int
    mail_seconds: float
    lost: int = 0
    missing: int = 0
    duplicates: int = 0
    leader_changed: bool = False
    broken: list[str] = field(default_factory=list)


def connect_over(database: PopulatedDatabase, url: str) -> PopulatedDatabase:
    """Return the same database over another connection string."""
    settings = replace(database.settings, database_url=url)
    return PopulatedDatabase(settings, database.key, create_app(settings), database.folder)


def run_fault(
    cluster: PatroniCluster, database: PopulatedDatabase, web: LiveProcess, access: str, fault: Fault
) -> FaultResult:
    """Break a machine under redemptions and a campaign, repair it later, and audit what was acknowledged."""
    cluster.wait_until_complete()
    leader = cluster.leader()
    machine = leader if fault.role == "leader" else cluster.synchronous_standby()
    code = f"FAULT{time.time_ns()}"
    with (
        start_campaign(database, "hold", 1, rate=0, seconds=0.04, module="webapp.worker") as campaign,
        redemption_load(database, web, code, PAUSE) as load,
    ):
        campaign.wait_for(200)
        load.wait_for(201)
        broken_at = time.time()
        fault.break_machine(machine)
        # Another machine takes over, also after faults that have an effect only after a timeout.
        wait_until(lambda: cluster.is_replaced(machine, fault.role), "another machine has the role", 120)
        _wait_for_service(campaign, load)
        wait_until(lambda: _is_ready(web), "/readyz is 200", 60)
        fault.repair(machine)
        cluster.wait_until_complete()
        load.wait_for(201)
        load.stopping.set()
        campaign.wait(lambda: campaign.status() == "done", "the campaign is done", 600)
        audited = scenarios.audit_run(fault.name, campaign)
        with database.context():
            wait_until(lambda: monitoring_queries.is_worker_alive(socket.gethostname()), "the worker is alive", 60)
        mails = [float(line["at"]) for line in campaign.relay.emails(campaign.id)]
    result = FaultResult(
        fault.name, access, len(load.accepted_at), _longest_pause(load.accepted_at, broken_at), len(mails),
        _longest_pause(mails, broken_at), len(lost_redemptions(database, load)), len(audited.audit.missing),
        audited.audit.duplicates, cluster.leader() != leader, audited.broken,
    )  # fmt: skip
    _check(result, database, load)
    return result


def _wait_for_service(campaign: RunningCampaign, load: RedemptionLoad) -> None:
    """Wait until redemptions and emails have continued."""
    since = time.time()
    campaign.wait(
        lambda: (
            load.accepted_at[-1] > since
            and max((float(line["at"]) for line in campaign.relay.emails(campaign.id)), default=0.0) > since
        ),
        "redemptions and emails continue",
    )


def _is_ready(web: LiveProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{web.url}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        return False


def _longest_pause(times: list[float], since: float) -> float:
    """Return the longest time between two events that ends after `since`."""
    ordered = sorted(times)
    return max((b - max(a, since) for a, b in itertools.pairwise(ordered) if b > since), default=0.0)


def _check(result: FaultResult, database: PopulatedDatabase, load: RedemptionLoad) -> None:
    if result.lost:
        result.broken.append(f"{result.lost} accepted redemptions are missing")
    for name, seconds in (("redemptions", result.redemption_seconds), ("emails", result.mail_seconds)):
        if seconds > LIMIT:
            result.broken.append(f"no {name} for {seconds:.0f} s")
    try:
        check_redemptions(database, load)
    except AssertionError as error:
        result.broken.append(f"a response is not true: {str(error)[:300]}")
