"""The figures in the words of Prometheus: names, help, types. docs/monitoring.md says what to do about each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from alembic.script import ScriptDirectory
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from webapp.core.settings import ROOT
from webapp.monitoring.queries import (
    CampaignMetrics,
    DatabaseMetrics,
    MetricsSnapshot,
    RedemptionMetrics,
    WorkerMetrics,
)

# Every state is always told of, with 0 where there is none: a line that only appears in trouble can't be compared.
CAMPAIGN_STATES = ("draft", "scheduled", "preparing", "sending", "paused", "cancelled", "done")
MAIL_STATES = ("waiting", "sent", "deferred", "failed", "uncertain", "skipped", "left")
IMPORT_STATES = ("receiving", "queued", "running", "done", "failed")


def render_metrics(figures: MetricsSnapshot | None, release: str, accept: str = "") -> tuple[bytes, str]:
    """The figures as text, and its media type: that of Prometheus 0.0.4, or OpenMetrics where it is asked for.

    :param figures: None when the database gave none.
    :param accept: the header of the same name (RFC 9110), as Prometheus sends it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_MetricsCollector(figures, release))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


@lru_cache
def expected_migration() -> str:
    """The newest migration that this program brings along."""
    return ScriptDirectory(str(ROOT / "migrations")).get_current_head() or ""


class _MetricsCollector(Collector):
    def __init__(self, figures: MetricsSnapshot | None, release: str) -> None:
        self.snapshot = figures
        self.release = release

    def collect(self) -> Iterator[Metric]:
        found = self.snapshot
        yield InfoMetricFamily("onecode_build", "Which release of Onecode answers.", {"version": self.release})
        yield _gauge(
            "onecode_database_up",
            "Whether the database, in which the queue is too, answered in time.",
            found is not None,
        )
        if found is None:
            return
        yield from _database_metrics(found.database)
        if found.workers:
            yield from _worker_metrics(found.workers)
        if found.campaigns:
            yield from _campaign_metrics(found.campaigns)
        if found.redemptions:
            yield from _redemption_metrics(found.redemptions)
        if found.imports is not None:
            yield _labelled_gauge(
                "onecode_imports", "Imports by state.", "state", {s: found.imports.get(s, 0) for s in IMPORT_STATES}
            )


def _database_metrics(found: DatabaseMetrics) -> Iterator[Metric]:
    expected = expected_migration()
    yield InfoMetricFamily(
        "onecode_migration",
        "The migration the tables are at, and the one that this release was written for.",
        {"current": found.migration, "expected": expected},
    )
    yield _gauge("onecode_migration_differs", "Whether these two differ.", found.migration != expected)
    yield _gauge(
        "onecode_database_connections", "Connections that PostgreSQL has open, of everybody.", found.connections
    )
    yield _gauge("onecode_database_connections_max", "How many PostgreSQL allows.", found.max_connections)
    yield _gauge("onecode_database_size_bytes", "Size of the database on disk.", found.size_bytes)
    yield _gauge("onecode_queue_tasks", "Tasks in the queue that no worker has taken yet.", found.queued_tasks)
    yield _gauge("onecode_queue_scheduled_tasks", "Tasks in the queue for a later time.", found.scheduled_tasks)


def _worker_metrics(found: WorkerMetrics) -> Iterator[Metric]:
    yield _gauge("onecode_workers", "Worker processes heard of in the last minute.", found.alive_count)
    yield _gauge(
        "onecode_worker_busy_seconds",
        "For how long a worker has been at the task that was begun first.",
        found.longest_busy_seconds,
    )
    yield _labelled_gauge(
        "onecode_sweep_timestamp_seconds",
        "When a task of every minute was last got through, by any worker, in seconds since 1970.",
        "task",
        found.periodic_task_times,
    )


def _campaign_metrics(found: CampaignMetrics) -> Iterator[Metric]:
    states = {state: found.counts_by_status.get(state, 0) for state in CAMPAIGN_STATES}
    yield _labelled_gauge("onecode_campaigns", "Campaigns by state.", "state", states)
    yield _gauge("onecode_campaigns_paused_by_themselves", "Campaigns paused, but not by staff.", found.auto_paused)
    yield _gauge(
        "onecode_relay_trouble", "Whether the mail relay can't be reached or takes no mails.", found.has_relay_problem
    )
    mails = GaugeMetricFamily(
        "onecode_campaign_mails", "Mails of a campaign that is open, by state.", labels=["campaign", "state"]
    )
    for campaign_id, counts in found.counts_by_open_campaign.items():
        for state in MAIL_STATES:
            mails.add_metric([str(campaign_id), state], getattr(counts, state))
    yield mails
    yield _labelled_gauge(
        "onecode_campaign_stalled",
        "Whether nothing of an open campaign moves although somebody waits for its mail.",
        "campaign",
        {str(campaign_id): counts.is_stalled for campaign_id, counts in found.counts_by_open_campaign.items()},
    )


def _redemption_metrics(found: RedemptionMetrics) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "onecode_redemptions", "Redemptions ever made, those that were undone too.", found.redemptions
    )
    yield CounterMetricFamily("onecode_rollbacks", "Redemptions ever undone.", found.rollbacks)
    yield _gauge(
        "onecode_code_misses_last_hour",
        "Right codes typed with a wrong e-mail in the last hour.",
        found.failed_attempts,
    )
    yield _gauge(
        "onecode_offers_guessed_at", "Offers whose code somebody seems to be trying out.", found.guessed_offers
    )


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, float(value))


def _labelled_gauge(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
