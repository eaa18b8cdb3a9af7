"""Every value of `/metrics` is rendered under its own name and labels."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from webapp.campaigns.stats_queries import CampaignStats
from webapp.core.web_metrics import Histogram, WebMetrics
from webapp.monitoring import exposition
from webapp.monitoring.exposition import ServerMetrics, WriteCheck
from webapp.monitoring.queries import (
    CampaignMetrics,
    DatabaseMetrics,
    MetricsSnapshot,
    RedemptionMetrics,
    WorkerMetrics,
)

SNAPSHOT = MetricsSnapshot(
    DatabaseMetrics("0012", 11, 12, 13, 14, 15, 16, 17),
    WorkerMetrics(21, 22.5, 23.5, {"campaigns.sweep": 24.0, "retention.run": 25.0}),
    CampaignMetrics(
        {"draft": 31, "paused": 32},
        33,
        True,
        {
            5: CampaignStats(total=140, sent=41, failed=42, deferred=3, uncertain=4, skipped=5, left=6),
            6: CampaignStats(total=9, sent=2, is_overdue=True),
        },
    ),
    RedemptionMetrics(51, 52, 53, 54, 55),
    {"queued": 61, "failed": 62},
)
WEB = WebMetrics(
    {("redeem", "201"): 71},
    {"redeem": Histogram({0.005: 72, math.inf: 73}, 74.5)},
    Histogram({0.001: 75, math.inf: 76}, 77.5),
    {"disk_full": 78},
)
VALUES = """
onecode_build_info{version="1.2"} 1
onecode_campaign_mails{campaign="5",state="deferred"} 3
onecode_campaign_mails{campaign="5",state="failed"} 42
onecode_campaign_mails{campaign="5",state="left"} 6
onecode_campaign_mails{campaign="5",state="sent"} 41
onecode_campaign_mails{campaign="5",state="skipped"} 5
onecode_campaign_mails{campaign="5",state="uncertain"} 4
onecode_campaign_mails{campaign="5",state="waiting"} 39
onecode_campaign_mails{campaign="6",state="sent"} 2
onecode_campaign_mails{campaign="6",state="waiting"} 7
onecode_campaign_stalled{campaign="6"} 1
onecode_campaigns_paused_by_themselves 33
onecode_campaigns{state="draft"} 31
onecode_campaigns{state="paused"} 32
onecode_database_connections 11
onecode_database_connections_max 12
onecode_database_errors_total{kind="disk_full"} 78
onecode_database_size_bytes 13
onecode_database_up 1
onecode_database_wait_seconds_bucket{le="+Inf"} 76
onecode_database_wait_seconds_bucket{le="0.001"} 75
onecode_database_wait_seconds_count 76
onecode_database_wait_seconds_sum 77.5
onecode_database_waiting_sessions{cause="lock"} 16
onecode_database_waiting_sessions{cause="standby"} 17
onecode_database_writable 1
onecode_database_write_seconds 0.25
onecode_imports{state="failed"} 62
onecode_imports{state="queued"} 61
onecode_migration_differs 1
onecode_migration_info{current="0012",expected="0013"} 1
onecode_queue_oldest_task_seconds 23.5
onecode_queue_scheduled_tasks 15
onecode_queue_tasks 14
onecode_relay_trouble 1
onecode_request_seconds_bucket{group="redeem",le="+Inf"} 73
onecode_request_seconds_bucket{group="redeem",le="0.005"} 72
onecode_request_seconds_count{group="redeem"} 73
onecode_request_seconds_sum{group="redeem"} 74.5
onecode_requests_total{group="redeem",status="201"} 71
onecode_sweep_timestamp_seconds{task="campaigns.sweep"} 24
onecode_sweep_timestamp_seconds{task="retention.run"} 25
onecode_worker_busy_seconds 22.5
onecode_workers 21
onecode_addresses_over_customer_limit 54
onecode_code_misses_last_hour 53
onecode_offers_guessed_at 55
onecode_redemptions_total 51
onecode_rollbacks_total 52
"""


def test_every_value_has_its_name_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "expected_migration", lambda: "0013")

    page, _media_type = exposition.render_metrics(SNAPSHOT, ServerMetrics("1.2", WEB, WriteCheck(True, 0.25)))

    samples = [sample for family in parse_metrics(page.decode()) for sample in family.samples]
    labels = [",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items())) for sample in samples]
    found = {
        f"{sample.name}{{{text}}} {sample.value:g}".replace("{}", "")
        for sample, text in zip(samples, labels, strict=True)
        if sample.value
    }
    assert found == set(VALUES.split("\n")) - {""}


def test_a_failed_write_has_no_duration() -> None:
    page, _media_type = exposition.render_metrics(None, ServerMetrics("1.2", WEB, WriteCheck(False, 1.5)))

    assert b"onecode_database_writable 0.0" in page
    assert b"onecode_database_write_seconds" not in page
