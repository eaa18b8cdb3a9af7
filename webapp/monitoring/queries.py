"""Every SELECT that watches over the program: the figures of `/metrics`, and whether a worker lives.

Whoever scrapes comes every few seconds, so each of these reads an index, or a table that stays small: workers, offers,
campaigns, imports, full hours. Nothing here names a customer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.exc import ProgrammingError

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.models import Campaign
from webapp.campaigns.queries import CampaignStats
from webapp.core.extensions import db, huey
from webapp.customers.models import CustomerImport
from webapp.monitoring.models import Worker
from webapp.redemptions import guessing

# A worker that was silent for so long is taken for dead: two beats may be late.
HEARTBEAT_TIMEOUT = timedelta(seconds=60)
# No more campaigns than these, the newest, are told of one by one.
DETAIL_LIMIT = 20
OPEN_STATUSES = ("preparing", "sending", "paused")


@dataclass(frozen=True)
class DatabaseMetrics:
    """PostgreSQL and the queue in it. `version` is the migration that the tables are at, empty without any."""

    migration: str
    connections: int
    max_connections: int
    size_bytes: int
    queued_tasks: int
    scheduled_tasks: int


@dataclass(frozen=True)
class WorkerMetrics:
    """Workers heard of lately, for how many seconds one has been at the same task, and when, in seconds since 1970,
    each of the tasks of every minute was last got through by any of them."""

    alive_count: int
    longest_busy_seconds: float
    periodic_task_times: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CampaignMetrics:
    """Campaigns by state, and where each of the open ones stands."""

    counts_by_status: dict[str, int]
    auto_paused: int
    has_relay_problem: bool
    counts_by_open_campaign: dict[int, CampaignStats]


@dataclass(frozen=True)
class RedemptionMetrics:
    """Redemptions ever, those of them that were undone, wrong tries in the last hour, offers that are guessed at."""

    redemptions: int
    rollbacks: int
    failed_attempts: int
    guessed_offers: int


@dataclass(frozen=True)
class MetricsSnapshot:
    """Everything `/metrics` tells. What is about our own tables is None where they are not as this program knows them:
    before a migration, or after the next one."""

    database: DatabaseMetrics
    workers: WorkerMetrics | None = None
    campaigns: CampaignMetrics | None = None
    redemptions: RedemptionMetrics | None = None
    imports: dict[str, int] | None = None


def collect_metrics() -> MetricsSnapshot:
    """The figures as they are now, in one transaction that reads only and gives up after some seconds.

    :raises OperationalError: when the database does not answer, or not in time.
    """
    db.session.rollback()
    db.session.execute(text("set transaction read only"))
    # Prometheus waits for ten seconds unless told otherwise.
    db.session.execute(text("set local statement_timeout = '5s'"))
    found = load_database_metrics()
    try:
        return MetricsSnapshot(
            found, load_worker_metrics(), load_campaign_metrics(), load_redemption_metrics(), count_imports_by_status()
        )
    except ProgrammingError:
        return MetricsSnapshot(found)
    finally:
        db.session.rollback()


# What kind a session of another role is, PostgreSQL tells only who has pg_read_all_stats; whose it is and in which
# database it tells everybody, and that none but clients have both.
_SELECT_DATABASE_METRICS = text(
    """
    select
      (select count(*) from pg_stat_activity where usesysid is not null and datid is not null) as connections,
      current_setting('max_connections')::int as max_connections,
      pg_database_size(current_database()) as size,
      (select count(*) from huey_task where queue = :queue) as queued,
      (select count(*) from huey_schedule where queue = :queue) as scheduled
    """
)


def load_database_metrics() -> DatabaseMetrics:
    """How the database is, and what waits in the queue."""
    row = db.session.execute(_SELECT_DATABASE_METRICS, {"queue": huey.name}).one()
    version = db.session.scalar(text("select version_num from alembic_version"))
    return DatabaseMetrics(version or "", *map(int, row))


def load_worker_metrics() -> WorkerMetrics:
    """Who works, and whether what is to be done every minute is done."""
    alive, busy = db.session.execute(
        select(func.count(), func.max(func.extract("epoch", func.now() - Worker.busy_since))).where(
            worker_alive_condition()
        )
    ).one()
    swept = db.session.execute(
        text("select s.key as task, max(s.value::float8) as at from worker, jsonb_each_text(swept) s group by s.key")
    )
    return WorkerMetrics(alive, float(busy or 0), {row.task: row.at for row in swept})


def is_worker_alive(host: str) -> bool:
    """Whether a worker on this machine (or in this container) was heard of in the last minute."""
    found = select(Worker.id).where(Worker.host == host, worker_alive_condition())
    return db.session.scalar(found.limit(1)) is not None


def worker_alive_condition() -> ColumnElement[bool]:
    """Of a worker: it was heard of lately and has not said that it ends."""
    return Worker.stopped_at.is_(None) & (Worker.seen_at > func.now() - HEARTBEAT_TIMEOUT)


def load_campaign_metrics() -> CampaignMetrics:
    """How campaigns are doing."""
    by_status = {row.status: row.n for row in db.session.execute(_COUNT_CAMPAIGNS_BY_STATUS)}
    troubled, by_itself = db.session.execute(_COUNT_CAMPAIGN_PROBLEMS).one()
    newest = (
        select(Campaign.id).where(Campaign.status.in_(OPEN_STATUSES)).order_by(Campaign.id.desc()).limit(DETAIL_LIMIT)
    )
    return CampaignMetrics(
        by_status, by_itself, bool(troubled), campaign_queries.get_stats_by_campaign(db.session.scalars(newest).all())
    )


_COUNT_CAMPAIGNS_BY_STATUS = select(Campaign.status, func.count().label("n")).group_by(Campaign.status)
_COUNT_CAMPAIGN_PROBLEMS = select(
    func.count().filter(Campaign.status == "sending", Campaign.trouble.is_not(None)),
    # One that staff paused says who did.
    func.count().filter(Campaign.status == "paused", ~Campaign.pause_reason.startswith("paused by ")),
)

# Hours that are over are counted already; offer by offer, so that the rest is found in the index.
_SELECT_REDEMPTION_METRICS = text(
    """
    select
      (select coalesce(sum(n), 0) from hour_total) + (
        select coalesce(sum(rest.n), 0) from offer o, redemption_tally t, lateral (
          select count(*) as n from redemption r where r.offer_id = o.id and r.redeemed_at >= t.counted_until
        ) rest
      ) as live,
      (select count(*) from rollback) as undone,
      (select coalesce(sum(n), 0) from code_miss where minute > now() - interval '1 hour') as misses
    """
)


def load_redemption_metrics() -> RedemptionMetrics:
    """How redeeming goes. A redemption that was undone is one that was made."""
    live, undone, missed = map(int, db.session.execute(_SELECT_REDEMPTION_METRICS).one())
    return RedemptionMetrics(live + undone, undone, missed, len(guessing.list_top_guessing_alerts(DETAIL_LIMIT)))


def count_imports_by_status() -> dict[str, int]:
    """Imports by state."""
    found = select(CustomerImport.status, func.count().label("n")).group_by(CustomerImport.status)
    return {row.status: row.n for row in db.session.execute(found)}
