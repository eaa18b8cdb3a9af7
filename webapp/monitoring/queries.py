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
from webapp.campaigns.queries import Counts
from webapp.core.extensions import db, huey
from webapp.customers.models import CustomerImport
from webapp.monitoring.models import Worker
from webapp.redemptions import guessing

# A worker that was silent for so long is taken for dead: two beats may be late.
SILENT = timedelta(seconds=60)
# No more campaigns than these, the newest, are told of one by one.
CAMPAIGNS = 20
OPEN = ("preparing", "sending", "paused")


@dataclass(frozen=True)
class Server:
    """PostgreSQL and the queue in it. `version` is the migration that the tables are at, empty without any."""

    version: str
    connections: int
    max_connections: int
    size: int
    queued: int
    scheduled: int


@dataclass(frozen=True)
class Workers:
    """Workers heard of lately, for how many seconds one has been at the same task, and when, in seconds since 1970,
    each of the tasks of every minute was last got through by any of them."""

    alive: int
    busy: float
    swept: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mailings:
    """Campaigns by state, and where each of the open ones stands."""

    by_status: dict[str, int]
    paused_by_itself: int
    is_relay_troubled: bool
    open: dict[int, Counts]


@dataclass(frozen=True)
class Redeeming:
    """Redemptions ever, those of them that were undone, wrong tries in the last hour, offers that are guessed at."""

    redemptions: int
    rollbacks: int
    misses: int
    guessed: int


@dataclass(frozen=True)
class Figures:
    """Everything `/metrics` tells. What is about our own tables is None where they are not as this program knows them:
    before a migration, or after the next one."""

    server: Server
    workers: Workers | None = None
    mailings: Mailings | None = None
    redeeming: Redeeming | None = None
    imports: dict[str, int] | None = None


def figures() -> Figures:
    """The figures as they are now, in one transaction that reads only and gives up after some seconds.

    :raises OperationalError: when the database does not answer, or not in time.
    """
    db.session.rollback()
    db.session.execute(text("set transaction read only"))
    # Prometheus waits for ten seconds unless told otherwise.
    db.session.execute(text("set local statement_timeout = '5s'"))
    found = server()
    try:
        return Figures(found, workers(), mailings(), redeeming(), imports())
    except ProgrammingError:
        return Figures(found)
    finally:
        db.session.rollback()


# What kind a session of another role is, PostgreSQL tells only who has pg_read_all_stats; whose it is and in which
# database it tells everybody, and that none but clients have both.
_SERVER = text(
    """
    select
      (select count(*) from pg_stat_activity where usesysid is not null and datid is not null) as connections,
      current_setting('max_connections')::int as max_connections,
      pg_database_size(current_database()) as size,
      (select count(*) from huey_task where queue = :queue) as queued,
      (select count(*) from huey_schedule where queue = :queue) as scheduled
    """
)


def server() -> Server:
    """How the database is, and what waits in the queue."""
    row = db.session.execute(_SERVER, {"queue": huey.name}).one()
    version = db.session.scalar(text("select version_num from alembic_version"))
    return Server(version or "", *map(int, row))


def workers() -> Workers:
    """Who works, and whether what is to be done every minute is done."""
    alive, busy = db.session.execute(
        select(func.count(), func.max(func.extract("epoch", func.now() - Worker.busy_since))).where(lives())
    ).one()
    swept = db.session.execute(
        text("select s.key as task, max(s.value::float8) as at from worker, jsonb_each_text(swept) s group by s.key")
    )
    return Workers(alive, float(busy or 0), {row.task: row.at for row in swept})


def is_worker_alive(host: str) -> bool:
    """Whether a worker on this machine (or in this container) was heard of in the last minute."""
    found = select(Worker.id).where(Worker.host == host, lives())
    return db.session.scalar(found.limit(1)) is not None


def lives() -> ColumnElement[bool]:
    """Of a worker: it was heard of lately and has not said that it ends."""
    return Worker.stopped_at.is_(None) & (Worker.seen_at > func.now() - SILENT)


def mailings() -> Mailings:
    """How campaigns are doing."""
    by_status = {row.status: row.n for row in db.session.execute(_BY_STATUS)}
    troubled, by_itself = db.session.execute(_TROUBLED).one()
    newest = select(Campaign.id).where(Campaign.status.in_(OPEN)).order_by(Campaign.id.desc()).limit(CAMPAIGNS)
    return Mailings(by_status, by_itself, bool(troubled), campaign_queries.counts_of(db.session.scalars(newest).all()))


_BY_STATUS = select(Campaign.status, func.count().label("n")).group_by(Campaign.status)
_TROUBLED = select(
    func.count().filter(Campaign.status == "sending", Campaign.trouble.is_not(None)),
    # One that staff paused says who did.
    func.count().filter(Campaign.status == "paused", ~Campaign.pause_reason.startswith("paused by ")),
)

# Hours that are over are counted already; offer by offer, so that the rest is found in the index.
_REDEEMING = text(
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


def redeeming() -> Redeeming:
    """How redeeming goes. A redemption that was undone is one that was made."""
    live, undone, missed = map(int, db.session.execute(_REDEEMING).one())
    return Redeeming(live + undone, undone, missed, len(guessing.loudest(CAMPAIGNS)))


def imports() -> dict[str, int]:
    """Imports by state."""
    found = select(CustomerImport.status, func.count().label("n")).group_by(CustomerImport.status)
    return {row.status: row.n for row in db.session.execute(found)}
