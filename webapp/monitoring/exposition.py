"""Render metrics for Prometheus: names, help texts and types.

docs/monitoring.md explains how to react to each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from webapp.core.settings import ROOT
from webapp.core.web_metrics import Histogram, WebMetrics
from webapp.monitoring.queries import (
    CampaignMetrics,
    DatabaseMetrics,
    MetricsSnapshot,
    RedemptionMetrics,
    WorkerMetrics,
)

# Every status and state has a time series, also with the value 0: a series that appears only with a problem cannot be
# compared.
CAMPAIGN_STATUSES = ("draft", "scheduled", "preparing", "sending", "paused", "cancelled", "done")
DELIVERY_STATES = ("waiting", "sent", "deferred", "failed", "uncertain", "skipped", "left")
IMPORT_STATUSES = ("receiving", "queued", "running", "done", "failed")


@dataclass(frozen=True)
class WriteCheck:
    """The result of a check whether the database accepts writes.

    :ivar seconds: its duration, or the time until it failed.
    """

    is_writable: bool
    seconds: float


@dataclass(frozen=True)
class ServerMetrics:
    """Metrics of the web server that responds.

    :ivar version: version of Onecode.
    :ivar web: None for a client that could not be authenticated. It then gets no duration of the check either.
    """

    version: str
    web: WebMetrics | None
    write: WriteCheck


def render_metrics(snapshot: MetricsSnapshot | None, server: ServerMetrics, accept: str = "") -> tuple[bytes, str]:
    """Render metrics as text; return it and its media type.

    That is Prometheus 0.0.4, or OpenMetrics if accepted.

    :param snapshot: None when the database is unavailable.
    :param accept: the Accept header (RFC 9110) of the request.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_MetricsCollector(snapshot, server))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


@lru_cache
def expected_migration() -> str:
    """Return the newest migration of this version of Onecode."""
    # Imported here: importing Alembic takes a fifteenth of the start of a process, and only metrics need it.
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(ROOT / "migrations")).get_current_head() or ""


class _MetricsCollector(Collector):
    def __init__(self, snapshot: MetricsSnapshot | None, server: ServerMetrics) -> None:
        self.snapshot = snapshot
        self.server = server

    def collect(self) -> Iterator[Metric]:
        snapshot = self.snapshot
        yield InfoMetricFamily("onecode_build", "Version of Onecode.", {"version": self.server.version})
        yield _gauge(
            "onecode_database_up",
            "Whether the database, which also holds the queue, responded in time.",
            snapshot is not None,
        )
        yield _gauge(
            "onecode_database_writable",
            "Whether the database committed a write of this server in time.",
            self.server.write.is_writable,
        )
        if self.server.web is not None:
            if self.server.write.is_writable:
                yield _gauge("onecode_database_write_seconds", "Duration of that write.", self.server.write.seconds)
            yield from _web_metrics(self.server.web)
        if snapshot is None:
            return
        yield from _database_metrics(snapshot.database)
        if snapshot.workers:
            yield from _worker_metrics(snapshot.workers)
        if snapshot.campaigns:
            yield from _campaign_metrics(snapshot.campaigns)
        if snapshot.redemptions:
            yield from _redemption_metrics(snapshot.redemptions)
        if snapshot.imports is not None:
            counts = {status: snapshot.imports.get(status, 0) for status in IMPORT_STATUSES}
            yield _labelled_gauge("onecode_imports", "Imports by status.", "state", counts)


def _web_metrics(web: WebMetrics) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "onecode_requests", "Responses of this server by group of routes and status.", labels=["group", "status"]
    )
    for labels, count in web.requests.items():
        requests.add_metric(labels, count)
    yield requests
    durations = HistogramMetricFamily(
        "onecode_request_seconds", "Time until the response was ready to be sent.", labels=["group"]
    )
    for group, histogram in web.request_seconds.items():
        durations.add_metric([group], _bucket_pairs(histogram), histogram.sum)
    yield durations
    yield HistogramMetricFamily(
        "onecode_database_wait_seconds",
        "Wait of a request for a connection to the database.",
        _bucket_pairs(web.wait_seconds),
        web.wait_seconds.sum,
    )
    errors = CounterMetricFamily(
        "onecode_database_errors", "Errors of the database in this server, by kind.", labels=["kind"]
    )
    for kind, count in web.errors.items():
        errors.add_metric([kind], count)
    yield errors


def _bucket_pairs(histogram: Histogram) -> list[tuple[str, float]]:
    return [("+Inf" if bucket == math.inf else str(bucket), count) for bucket, count in histogram.counts.items()]


def _database_metrics(database: DatabaseMetrics) -> Iterator[Metric]:
    expected = expected_migration()
    yield InfoMetricFamily(
        "onecode_migration",
        "Migration of the database, and the one that this version expects.",
        {"current": database.migration, "expected": expected},
    )
    yield _gauge(
        "onecode_migration_differs",
        "Whether the current and the expected migration differ.",
        database.migration != expected,
    )
    yield _gauge(
        "onecode_database_connections", "Open connections to PostgreSQL, of all clients.", database.connections
    )
    yield _gauge(
        "onecode_database_connections_max", "Maximum number of connections of PostgreSQL.", database.max_connections
    )
    yield _gauge("onecode_database_size_bytes", "Size of the database on disk.", database.size_bytes)
    yield _gauge("onecode_queue_tasks", "Tasks in the queue that no worker has started.", database.queued_tasks)
    yield _gauge("onecode_queue_scheduled_tasks", "Tasks scheduled for a later time.", database.scheduled_tasks)
    yield _labelled_gauge(
        "onecode_database_waiting_sessions",
        "Sessions of this database that wait for a lock, or for a standby to confirm a commit.",
        "cause",
        {"lock": database.lock_waits, "standby": database.standby_waits},
    )


def _worker_metrics(workers: WorkerMetrics) -> Iterator[Metric]:
    yield _gauge("onecode_workers", "Worker processes with a heartbeat in the last minute.", workers.alive_count)
    yield _gauge(
        "onecode_worker_busy_seconds", "Age of the longest-running task of any worker.", workers.longest_busy_seconds
    )
    yield _gauge(
        "onecode_queue_oldest_task_seconds",
        "Age of the oldest task in the queue; 0 when there is none.",
        workers.oldest_task_seconds,
    )
    yield _labelled_gauge(
        "onecode_sweep_timestamp_seconds",
        "When a periodic task was last completed by any worker, as Unix time.",
        "task",
        workers.periodic_task_completed_at,
    )


def _campaign_metrics(campaigns: CampaignMetrics) -> Iterator[Metric]:
    counts = {status: campaigns.counts_by_status.get(status, 0) for status in CAMPAIGN_STATUSES}
    yield _labelled_gauge("onecode_campaigns", "Campaigns by status.", "state", counts)
    yield _gauge(
        "onecode_campaigns_paused_by_themselves",
        "Campaigns that were paused automatically.",
        campaigns.auto_paused_count,
    )
    yield _gauge(
        "onecode_relay_trouble",
        "Whether the mail relay is unreachable or rejects emails, or the disk of the database is full.",
        campaigns.has_delivery_warning,
    )
    emails = GaugeMetricFamily(
        "onecode_campaign_mails", "Emails of an unfinished campaign, by state.", labels=["campaign", "state"]
    )
    for campaign_id, stats in campaigns.stats_by_campaign.items():
        for state in DELIVERY_STATES:
            emails.add_metric([str(campaign_id), state], getattr(stats, state))
    yield emails
    yield _labelled_gauge(
        "onecode_campaign_stalled",
        "Whether an unfinished campaign makes no progress although emails are queued.",
        "campaign",
        {str(campaign_id): stats.is_stalled for campaign_id, stats in campaigns.stats_by_campaign.items()},
    )


def _redemption_metrics(redemptions: RedemptionMetrics) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "onecode_redemptions", "Redemptions, including those that were rolled back.", redemptions.redemptions
    )
    yield CounterMetricFamily("onecode_rollbacks", "Redemptions that were rolled back.", redemptions.rollbacks)
    yield _gauge(
        "onecode_code_misses_last_hour",
        "Failed attempts in the last hour: a valid code with the wrong email address.",
        redemptions.failed_attempts,
    )
    yield _gauge(
        "onecode_offers_guessed_at",
        "Offers with a guessing alert, because of many failed attempts.",
        redemptions.guessing_alert_count,
    )
    yield _gauge(
        "onecode_addresses_over_customer_limit",
        "Client addresses that exceeded the limit of customers on the public form in the last hour.",
        redemptions.addresses_over_limit,
    )


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, float(value))


def _labelled_gauge(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
