"""Queries for the statistics of campaigns and for their delivery issues."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text

from webapp.campaigns import timing
from webapp.core.extensions import db

UNSENT_STATES = ("failed", "deferred", "uncertain", "skipped", "left")

# The rate covers this period. A campaign is idle when no window was opened for IDLE_AFTER_SECONDS and no worker renews
# its lease, and stalled, which needs attention, after STALLED_AFTER_SECONDS.
RATE_WINDOW_SECONDS = 120
IDLE_AFTER_SECONDS = 60
STALLED_AFTER_SECONDS = 180
# The owner of a batch renews its lease every `timing.LEASE_RENEWAL_INTERVAL` seconds, except while it waits for a slow
# relay.
LEASE_RENEWAL_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class IssueCause:
    """A cause of delivery issues, with the number of deliveries.

    `cause` is the enhanced status code of the relay's reply (empty when it had none), or, when there was no reply, the
    beginning of the stored text of Onecode.
    """

    state: str
    code: int | None
    cause: str
    count: int


@dataclass(frozen=True)
class CampaignStats:
    """The progress of a campaign.

    `rate` is in recipients per second: recent while sending, overall when done. `seconds_left` is derived from it.
    `idle_seconds` is the time since a sending campaign last opened a window. `resumes_by` is set when a worker has
    stopped renewing its lease: the latest time at which another worker takes over.
    """

    total: int = 0
    sent: int = 0
    failed: int = 0
    deferred: int = 0
    uncertain: int = 0
    skipped: int = 0
    left: int = 0
    rate: float | None = None
    seconds_left: int | None = None
    idle_seconds: int | None = None
    # Whether a worker owns one of its batches; still true for a moment after a pause, until the window is finished.
    has_active_worker: bool = False
    resumes_by: datetime | None = None
    is_overdue: bool = False
    causes: tuple[IssueCause, ...] = ()

    @property
    def processed(self) -> int:
        """Recipients whose delivery has a final state, or an uncertain or dismissed one."""
        return self.sent + self.failed + self.uncertain + self.skipped + self.left

    @property
    def sent_later(self) -> int:
        """Recipients in `sent` who got the email by a retry."""
        return sum(cause.count for cause in self.causes if cause.state == "sent_later")

    @property
    def waiting(self) -> int:
        """Recipients without an attempt so far."""
        return max(0, self.total - self.processed - self.deferred)

    @property
    def is_stalled(self) -> bool:
        """Whether recipients remain and no worker is active.

        A worker that waits for a slow relay counts as active.
        """
        is_idle = self.waiting > 0 and not self.has_active_worker and (self.idle_seconds or 0) >= STALLED_AFTER_SECONDS
        return self.is_overdue or (is_idle and self.resumes_by is None)

    @property
    def remaining(self) -> int:
        """Recipients who may still receive the email automatically: waiting or deferred."""
        return self.waiting + self.deferred


_STATS_SQL = text(
    """
    select c.id, c.total, c.sending_since, c.sent_before, c.status, c.finished_at, c.trouble, now() as at,
      coalesce(c.sent_in_batches, s.sent) as sent, s.recent, s.since, s.last,
      s.is_leased, s.is_lease_renewed, s.unrenewed_lease_until,
      extract(epoch from now() - c.launched_at) as age,
      (
        select jsonb_agg(jsonb_build_array(x.state, x.smtp_code, x.cause, x.n)) from (
          -- A retry in progress counts as deferred until its outcome is known.
          select case when state = 'uncertain' and next_at > now() and c.status <> 'cancelled' then 'deferred'
            else state end as state, smtp_code, cause, count(*) as n
          from mail_issue where campaign_id = c.id
          group by 1, smtp_code, cause
        ) x
      ) as issues
    from campaign c
    cross join lateral (
      select
        coalesce(sum(b.sent + case when k.cursor > b.window_start then
          k.cursor - b.window_start - (
            select count(*) from mail_issue i where i.campaign_id = b.campaign_id
              -- The first id of the window is the sum of the gaps up to it, including its own.
              and i.customer_id >= (select sum(gap) from unnest(b.gaps[: b.window_start + 1]) gap)
              and i.customer_id <= (select sum(gap) from unnest(b.gaps[: k.cursor]) gap)
          ) else 0 end), 0) as sent,
        sum(coalesce(k.cursor, b.window_start) - r.begin) as recent,
        min(r.since) as since,
        max(b.windows[cardinality(b.windows)]) as last,
        bool_or(b.status = 'sending' and b.lease_until > now()) as is_leased,
        bool_or(b.status = 'sending' and b.lease_until > now() + cast(:margin as interval)) as is_lease_renewed,
        max(b.lease_until) filter (
          where b.status = 'sending' and b.lease_until <= now() + cast(:margin as interval)
        ) as unrenewed_lease_until
      from batch b
      -- The cursor adds information only while a window is open.
      left join batch_cursor k on k.batch_id = b.id and k.epoch = b.epoch and b.window_end > b.window_start
      left join lateral (
        select min(w.begin) as begin, min(w.at) as since from (
          select b.windows[n] as begin, b.windows[n + 1] as at
          from generate_series(1, cardinality(b.windows), 2) as n
        ) w where w.at >= extract(epoch from now() - c.launched_at) - :recent
      ) r on b.windows[cardinality(b.windows)] >= extract(epoch from now() - c.launched_at) - :recent
      -- A finished campaign stores its total in sent_in_batches.
      where b.campaign_id = c.id and c.sent_in_batches is null
    ) s
    where c.id = any(:ids)
    """
)


def get_campaign_stats(campaign_id: int) -> CampaignStats:
    """Compute the progress of a campaign from its batches and delivery issues."""
    return get_stats_by_campaign([campaign_id]).get(campaign_id, CampaignStats())


def get_stats_by_campaign(campaign_ids: Sequence[int]) -> dict[int, CampaignStats]:
    """Compute `get_campaign_stats` of several campaigns at once."""
    margin = timedelta(seconds=timing.LEASE_DURATION - LEASE_RENEWAL_TIMEOUT_SECONDS)
    rows = db.session.execute(_STATS_SQL, {"ids": list(campaign_ids), "recent": RATE_WINDOW_SECONDS, "margin": margin})
    return {row.id: _stats_from_row(row) for row in rows}


def _stats_from_row(row: Row[Any]) -> CampaignStats:
    causes = sorted((IssueCause(*values) for values in row.issues or ()), key=lambda cause: -cause.count)
    counts: Counter[str] = Counter()
    for cause in causes:
        counts[cause.state] += cause.count
    if row.status == "cancelled":
        # The sweep will record them as skipped.
        counts["skipped"] += counts.pop("deferred", 0)
    sent = int(row.sent) + counts["sent_later"]
    stats = CampaignStats(
        row.total,
        sent,
        counts["failed"],
        counts["deferred"],
        counts["uncertain"],
        counts["skipped"],
        counts["left"],
        causes=tuple(causes),
    )
    is_sending = row.status == "sending"
    idle = None
    if is_sending and row.sending_since is not None:
        # Window times are whole seconds since the launch; the idle time cannot exceed the time since sending began.
        elapsed = (row.at - row.sending_since).total_seconds()
        idle = max(0, round(elapsed if row.last is None else min(elapsed, float(row.age) - row.last)))
    resumes_by = None
    if is_sending and row.unrenewed_lease_until and not row.trouble:
        resumes_by = _resumes_by(row.unrenewed_lease_until)
    rate = _send_rate(row, sent, idle)
    waiting = stats.waiting if is_sending else 0
    return replace(
        stats,
        rate=rate,
        seconds_left=math.ceil(waiting / rate) if rate and waiting else None,
        idle_seconds=idle,
        has_active_worker=bool(row.is_leased),
        resumes_by=resumes_by if resumes_by and resumes_by >= row.at else None,
        is_overdue=resumes_by is not None and resumes_by < row.at,
    )


def _resumes_by(lease_until: datetime) -> datetime:
    """Return the latest time at which another worker takes over a batch.

    It is rounded down to a minute for display. Expired leases are looked for every minute.
    """
    return (lease_until + timedelta(minutes=2)).replace(second=0, microsecond=0)


def _send_rate(row: Row[Any], sent: int, idle: int | None) -> float | None:
    """Compute the recipients per second; None when there is no progress.

    The rate is that of the recent windows or, without recent windows, since sending last started.
    """
    if row.status == "sending" and _is_idle(row, idle):
        return None
    if row.status == "sending" and row.recent:
        return float(row.recent) / max(1.0, float(row.age) - float(row.since))
    if row.status not in ("sending", "done") or row.sending_since is None or sent <= row.sent_before:
        return None
    until = row.finished_at or row.at
    seconds: float = (until - row.sending_since).total_seconds()
    return float(sent - row.sent_before) / max(1.0, seconds)


def _is_idle(row: Row[Any], idle: int | None) -> bool:
    """Return whether nothing is being sent.

    The relay is unavailable, or no worker renews its lease.
    """
    if row.trouble:
        return True
    has_silent_owner = row.unrenewed_lease_until is not None
    return not row.is_lease_renewed and (has_silent_owner or (idle or 0) >= IDLE_AFTER_SECONDS)


_EXAMPLE_REPLIES_SQL = text(
    """
    select coalesce(
      (select i.text from mail_issue i where i.campaign_id = :campaign and i.state = x.state and i.smtp_code = x.code
        and i.cause = x.cause order by i.customer_id limit 1),
      (select i.text from mail_issue i where i.campaign_id = :campaign and i.state = x.state and x.code is null
        and i.smtp_code is null and i.cause = x.cause order by i.customer_id limit 1),
      -- All deliveries of this cause are being retried now.
      (select i.text from mail_issue i where i.campaign_id = :campaign and i.state = 'uncertain'
        and x.state = 'deferred' and i.smtp_code is not distinct from x.code and i.cause = x.cause limit 1),
      '')
    from unnest(cast(:states as text[]), cast(:codes as int[]), cast(:causes as text[]))
      with ordinality as x(state, code, cause, n)
    order by x.n
    """
)


def list_example_replies(campaign_id: int, causes: Sequence[IssueCause]) -> list[str]:
    """Return one example reply of the relay per cause."""
    values = {
        "states": [cause.state for cause in causes],
        "codes": [cause.code for cause in causes],
        "causes": [cause.cause for cause in causes],
    }
    return list(db.session.scalars(_EXAMPLE_REPLIES_SQL, {"campaign": campaign_id, **values})) if causes else []
