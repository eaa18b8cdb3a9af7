"""What the web processes of a server count for `/metrics`: requests, waits for the database, and its errors.

All other metrics are read from the database, and are the same on all machines. These are of one web server, and are
available while the database is not.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, get_args

from webapp.core.settings import Settings
from webapp.core.shared_counters import SharedCounters

log = logging.getLogger(__name__)

RouteGroup = Literal["redeem", "api", "public", "staff", "health", "none"]
DatabaseErrorKind = Literal[
    "unavailable",
    "no_response",
    "too_many_connections",
    "pool_timeout",
    "disk_full",
    "read_only",
    "lock_timeout",
    "statement_timeout",
    "conflict",
    "other",
]
ROUTE_GROUPS: tuple[RouteGroup, ...] = get_args(RouteGroup)
ERROR_KINDS: tuple[DatabaseErrorKind, ...] = get_args(DatabaseErrorKind)

# Each status has a time series of its own from the start, so that the first error is an increase.
OTHER_STATUS = "other"
STATUSES = (
    *("200", "201", "202", "204", "206", "302", "303", "304", "308", "400", "401", "403", "404", "405", "409", "411"),
    *("413", "415", "422", "429", "500", "503", OTHER_STATUS),
)

# Upper bounds in seconds. A redemption takes milliseconds, waits at most 15 s, and the proxy 60 s.
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, float("inf"))
# A connection is opened in milliseconds; the pool waits at most 10 s for a free one.
WAIT_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf"))
SUM = "sum"

# The counters: ("requests", group, status), ("request_seconds", group, bucket or sum), ("wait_seconds", "", bucket or
# sum) and ("errors", kind, "").
CounterKey = tuple[str, str, str | float]
_KEYS: list[CounterKey] = [
    *(("requests", group, status) for group in ROUTE_GROUPS for status in STATUSES),
    *(("request_seconds", group, bucket) for group in ROUTE_GROUPS for bucket in (*REQUEST_BUCKETS, SUM)),
    *(("wait_seconds", "", bucket) for bucket in (*WAIT_BUCKETS, SUM)),
    *(("errors", kind, "") for kind in ERROR_KINDS),
]
_counters: SharedCounters[CounterKey] = SharedCounters(_KEYS)


@dataclass(frozen=True)
class Histogram:
    """Durations: how many were within each upper bound (cumulative), and their sum in seconds."""

    counts: dict[float, float]
    sum: float


@dataclass(frozen=True)
class WebMetrics:
    """What the web processes of this server have counted.

    :ivar requests: responses by route group and status.
    :ivar request_seconds: duration of requests, until the response was ready to be sent, by route group.
    :ivar wait_seconds: waits of requests for a connection to the database, including those that timed out.
    :ivar errors: errors of the database by kind.
    """

    requests: dict[tuple[str, str], float]
    request_seconds: dict[str, Histogram]
    wait_seconds: Histogram
    errors: dict[str, float]


def count_request(group: RouteGroup, status: int, seconds: float) -> None:
    """Count a request and its duration.

    :param seconds: the duration until the response was ready to be sent.
    """
    label = str(status) if str(status) in STATUSES else OTHER_STATUS
    _counters.add(
        (("requests", group, label), 1),
        (("request_seconds", group, REQUEST_BUCKETS[bisect_left(REQUEST_BUCKETS, seconds)]), 1),
        (("request_seconds", group, SUM), seconds),
    )


def count_wait(seconds: float) -> None:
    """Count a wait for a connection to the database."""
    bucket = WAIT_BUCKETS[bisect_left(WAIT_BUCKETS, seconds)]
    _counters.add((("wait_seconds", "", bucket), 1), (("wait_seconds", "", SUM), seconds))


def count_database_error(kind: DatabaseErrorKind) -> None:
    """Count an error of the database."""
    _counters.add((("errors", kind, ""), 1))


def collect_web_metrics() -> WebMetrics:
    """Return what all web processes of this server have counted; needs no database."""
    totals = _counters.totals()
    return WebMetrics(
        {(group, status): totals["requests", group, status] for group in ROUTE_GROUPS for status in STATUSES},
        {group: _build_histogram(totals, "request_seconds", group, REQUEST_BUCKETS) for group in ROUTE_GROUPS},
        _build_histogram(totals, "wait_seconds", "", WAIT_BUCKETS),
        {kind: totals["errors", kind, ""] for kind in ERROR_KINDS},
    )


def share_between_processes(settings: Settings) -> None:
    """Count together with the other web processes of this server.

    If that is impossible, such as on a full disk, it is logged, and each process reports only its own counts.
    """
    try:
        _counters.share(settings.instance_path / "metrics", f"{settings.web_host}:{settings.port}")
    except OSError as error:
        log.warning("each web process reports only its own requests in /metrics: %s", error)


def _build_histogram(totals: dict[CounterKey, float], name: str, group: str, buckets: tuple[float, ...]) -> Histogram:
    counts, count = {}, 0.0
    for bucket in buckets:
        count += totals[name, group, bucket]
        counts[bucket] = count
    return Histogram(counts, totals[name, group, SUM])
