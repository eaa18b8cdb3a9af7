"""Queries for monitoring: the values of `/metrics`, and whether a worker is alive.

Metrics are scraped often, so each query reads part of an index or a table that stays small: workers, offers,
campaigns, imports, rollbacks, hourly totals. None of them returns personal data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import psycopg
from flask import current_app
from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.exc import ProgrammingError

from webapp.campaigns import stats_queries
from webapp.campaigns.models import STAFF_PAUSE_PREFIX, Campaign
from webapp.campaigns.stats_queries import CampaignStats
from webapp.core.extensions import db, huey
from webapp.customers.models import CustomerImport
from webapp.monitoring import readiness
from webapp.monitoring.models import Worker
from webapp.redemptions import guessing

# Seconds after which the server cancels a statement of `/metrics`. The default scrape timeout of Prometheus is ten.
STATEMENT_TIMEOUT_SECONDS = 5.0
# A worker without a heartbeat for this long does not count as alive: two heartbeats may be missed.
HEARTBEAT_TIMEOUT = timedelta(seconds=60)
# Maximum number of campaigns with their own time series; the newest are chosen.
MAX_CAMPAIGN_SERIES = 20
# Maximum number of guessing alerts that are counted.
MAX_GUESSING_ALERTS = 20
# Statuses of a campaign that was launched and is not finished.
UNFINISHED_STATUSES = ("preparing", "sending", "paused")
# Why no worker has sent a heartbeat: none is running, or the database saves nothing.
WorkerProblem = Literal["worker_missing", "nothing_saved"]


@dataclass(frozen=True)
class DatabaseMetrics:
    """Metrics of PostgreSQL and of the queue in it.

    :ivar migration: the Alembic revision of the schema; empty when there is none.
    :ivar size_bytes: size of the database on disk.
    :ivar lock_waits: sessions that wait for a lock.
    :ivar standby_waits: sessions whose commit waits for a synchronous standby.
    """

    migration: str
    connections: int
    max_connections: int
    size_bytes: int
    queued_tasks: int
    scheduled_tasks: int
    lock_waits: int
    standby_waits: int


@dataclass(frozen=True)
class WorkerMetrics:
    """Metrics of the workers and of the tasks that wait for them.

    :ivar oldest_task_seconds: age of the oldest task in the queue; 0 when there is none.
    :ivar longest_busy_seconds: age of their longest-running task.
    :ivar periodic_task_completed_at: Unix time when any worker last completed each periodic task, by task name.
    """

    alive_count: int
    longest_busy_seconds: float
    oldest_task_seconds: float
    periodic_task_completed_at: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CampaignMetrics:
    """Campaigns by status, and the deliveries of the newest unfinished campaigns.

    :ivar auto_paused_count: number of campaigns that are paused now, but not by staff.
    :ivar has_delivery_warning: whether a campaign can't be sent: the relay is unreachable or rejects its emails, or the
        disk of the database is full.
    :ivar stats_by_campaign: counts of deliveries by campaign id, for up to `MAX_CAMPAIGN_SERIES` campaigns.
    """

    counts_by_status: dict[str, int]
    auto_paused_count: int
    has_delivery_warning: bool
    stats_by_campaign: dict[int, CampaignStats]


@dataclass(frozen=True)
class RedemptionMetrics:
    """Counts of redemptions.

    :ivar redemptions: includes the redemptions that were rolled back.
    :ivar failed_attempts: in the last hour.
    :ivar addresses_over_limit: client addresses that exceeded the limit of customers in the last hour.
    :ivar guessing_alert_count: number of offers with a guessing alert, at most `MAX_GUESSING_ALERTS`.
    """

    redemptions: int
    rollbacks: int
    failed_attempts: int
    addresses_over_limit: int
    guessing_alert_count: int


@dataclass(frozen=True)
class MetricsSnapshot:
    """All values of `/metrics`.

    Values read from application tables are None when the schema belongs to another version: before a migration, or
    after a newer one.
    """

    database: DatabaseMetrics
    workers: WorkerMetrics | None = None
    campaigns: CampaignMetrics | None = None
    redemptions: RedemptionMetrics | None = None
    imports: dict[str, int] | None = None


def collect_metrics() -> MetricsSnapshot:
    """Collect all metrics in one read-only transaction with a statement timeout.

    :raises OperationalError: when the database is unavailable or a statement times out.
    """
    db.session.rollback()
    db.session.execute(text("set transaction read only"))
    db.session.execute(
        text("select set_config('statement_timeout', :timeout, true)"), {"timeout": f"{STATEMENT_TIMEOUT_SECONDS:g}s"}
    )
    database = load_database_metrics()
    try:
        return MetricsSnapshot(
            database,
            load_worker_metrics(),
            load_campaign_metrics(),
            load_redemption_metrics(),
            count_imports_by_status(),
        )
    except ProgrammingError:
        return MetricsSnapshot(database)
    finally:
        db.session.rollback()


# The backend type of another role's session is visible only with pg_read_all_stats; its user and database are visible
# to everyone, and only client sessions and background workers in a database, such as parallel workers, have both. Waits
# are visible for sessions of the same role, as are those of all web and worker processes.
_SELECT_DATABASE_METRICS = text(
    """
    select
      (select count(*) from pg_stat_activity where usesysid is not null and datid is not null) as connections,
      current_setting('max_connections')::int as max_connections,
      pg_database_size(current_database()) as size,
      (select count(*) from huey_task where queue = :queue) as queued,
      (select count(*) from huey_schedule where queue = :queue) as scheduled,
      (select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')
        as lock_waits,
      (select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'SyncRep')
        as standby_waits
    """
)


def load_database_metrics() -> DatabaseMetrics:
    """Load the metrics of the database and the queue."""
    row = db.session.execute(_SELECT_DATABASE_METRICS, {"queue": huey.name}).one()
    migration = db.session.scalar(text("select version_num from alembic_version"))
    return DatabaseMetrics(migration or "", *map(int, row))


def load_worker_metrics() -> WorkerMetrics:
    """Load the metrics of the workers and the periodic tasks."""
    alive_count, longest_busy_seconds = db.session.execute(
        select(func.count(), func.max(func.extract("epoch", func.now() - Worker.busy_since))).where(
            worker_alive_condition()
        )
    ).one()
    completed_rows = db.session.execute(
        text("select s.key as task, max(s.value::float8) as at from worker, jsonb_each_text(swept) s group by s.key")
    )
    oldest_task_seconds = db.session.scalar(
        text("select extract(epoch from now() - min(enqueued_at)) from huey_task where queue = :queue"),
        {"queue": huey.name},
    )
    return WorkerMetrics(
        alive_count,
        float(longest_busy_seconds or 0),
        float(oldest_task_seconds or 0),
        {row.task: row.at for row in completed_rows},
    )


def is_worker_alive(host: str) -> bool:
    """Return whether a worker on this host (or in this container) is alive."""
    statement = select(Worker.id).where(Worker.host == host, worker_alive_condition())
    return db.session.scalar(statement.limit(1)) is not None


# Without any heartbeat, since no worker has ever run or a crash of the database has emptied the table, only a task that
# waits shows that a worker is needed.
_SELECT_WORKER_MISSING = text(
    """
    select coalesce(
      (select max(seen_at) from worker),
      (select min(enqueued_at) from huey_task where queue = :queue)
    ) < now() - cast(:timeout as interval)
    """
)


def is_worker_missing() -> bool:
    """Return whether no worker has sent a heartbeat within `HEARTBEAT_TIMEOUT`.

    One that was shut down counts until then, since another may be about to start.
    """
    return bool(db.session.scalar(_SELECT_WORKER_MISSING, {"queue": huey.name, "timeout": HEARTBEAT_TIMEOUT}))


def find_worker_problem() -> WorkerProblem | None:
    """Return why work that waits for a worker does not continue; None if a worker is alive.

    While the database saves nothing, workers cannot send heartbeats, so it is not known whether one is running. To find
    out takes up to `readiness.CHECK_SECONDS`, but only while no worker is alive.
    """
    if not is_worker_missing():
        return None
    return "nothing_saved" if isinstance(readiness.check_readiness(current_app), psycopg.Error) else "worker_missing"


def worker_alive_condition() -> ColumnElement[bool]:
    """Return the condition that a worker is alive.

    A worker is alive if it has sent a heartbeat within `HEARTBEAT_TIMEOUT` and was not shut down.
    """
    return Worker.stopped_at.is_(None) & (Worker.seen_at > func.now() - HEARTBEAT_TIMEOUT)


def load_campaign_metrics() -> CampaignMetrics:
    """Load the metrics of campaigns."""
    by_status = {row.status: row.n for row in db.session.execute(_COUNT_CAMPAIGNS_BY_STATUS)}
    delivery_warnings, auto_paused_count = db.session.execute(_COUNT_CAMPAIGN_PROBLEMS).one()
    newest_ids = (
        select(Campaign.id)
        .where(Campaign.status.in_(UNFINISHED_STATUSES))
        .order_by(Campaign.id.desc())
        .limit(MAX_CAMPAIGN_SERIES)
    )
    return CampaignMetrics(
        by_status,
        auto_paused_count,
        bool(delivery_warnings),
        stats_queries.get_stats_by_campaign(db.session.scalars(newest_ids).all()),
    )


_COUNT_CAMPAIGNS_BY_STATUS = select(Campaign.status, func.count().label("n")).group_by(Campaign.status)
_COUNT_CAMPAIGN_PROBLEMS = select(
    func.count().filter(Campaign.status == "sending", Campaign.delivery_warning.is_not(None)),
    # The reason of a campaign that was paused by staff names the user.
    func.count().filter(Campaign.status == "paused", ~Campaign.pause_reason.startswith(STAFF_PAUSE_PREFIX)),
)

# Hours before `counted_until` are in `hour_total`. Later redemptions are counted per offer, so that the index on
# (offer_id, redeemed_at) is used.
_SELECT_REDEMPTION_METRICS = text(
    """
    select
      (select coalesce(sum(n), 0) from hour_total) + (
        select coalesce(sum(rest.n), 0) from offer_counter o cross join lateral (
          select count(*) as n from redemption r
          where r.offer_id = o.offer_id
            and r.redeemed_at >= (select counted_until from redemption_tally where id = 1)
        ) rest
      ) as redemption_count,
      (select count(*) from rollback) as rollback_count,
      (select coalesce(sum(n), 0) from code_miss where minute > now() - interval '1 hour') as failed_attempts,
      (select count(distinct address) from address_excess where last_at > now() - interval '1 hour')
        as addresses_over_limit
    """
)


def load_redemption_metrics() -> RedemptionMetrics:
    """Load the metrics of redemptions."""
    current, rollbacks, failed_attempts, addresses = map(int, db.session.execute(_SELECT_REDEMPTION_METRICS).one())
    guessing_alert_count = len(guessing.list_top_guessing_alerts(MAX_GUESSING_ALERTS))
    return RedemptionMetrics(current + rollbacks, rollbacks, failed_attempts, addresses, guessing_alert_count)


def count_imports_by_status() -> dict[str, int]:
    """Count imports by status."""
    counts = select(CustomerImport.status, func.count().label("n")).group_by(CustomerImport.status)
    return {row.status: row.n for row in db.session.execute(counts)}
