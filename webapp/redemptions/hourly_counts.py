"""Count redemptions by hour, for charts and totals."""

from __future__ import annotations

from sqlalchemy import text

from webapp.core.extensions import db

# A rollback takes this advisory lock shared, counting takes it exclusively.
HOURLY_COUNTS_LOCK = "hashtext('onecode.redemption_tally')"
_LOCK_HOURLY_COUNTS = text(f"select pg_advisory_xact_lock({HOURLY_COUNTS_LOCK})")


_INSERT_HOURLY_COUNTS = text(
    """
    with counted as (
      select o.id as offer_id, counted.hour, counted.n
      from offer o, redemption_tally t,
      lateral (
        select date_trunc('hour', r.redeemed_at, 'UTC') as hour, count(*) as n from redemption r
        where r.offer_id = o.id and r.redeemed_at >= t.counted_until and r.redeemed_at < :until
        group by 1
      ) counted
      where t.id = 1
    ), by_offer as (
      insert into redemption_total (offer_id, n) select offer_id, sum(n) from counted group by 1
      on conflict (offer_id) do update set n = redemption_total.n + excluded.n
    ), by_hour as (
      insert into hour_total (hour, n) select hour, sum(n) from counted group by 1
    )
    insert into redemption_hour (offer_id, hour, n) select offer_id, hour, n from counted
    """
)
_SELECT_COUNT_UNTIL = text("select date_trunc('hour', now() - interval '5 minutes', 'UTC')")
_ADVANCE_COUNTED_UNTIL = text("update redemption_tally set counted_until = :until where id = 1")


def update_hourly_counts() -> None:
    """Add every hour that ended more than five minutes ago to the counts. Commits.

    Idempotent. The five minutes are for transactions that were about to commit when the hour ended.
    """
    until = db.session.execute(_SELECT_COUNT_UNTIL).scalar_one()
    db.session.execute(_LOCK_HOURLY_COUNTS)
    if db.session.execute(text("select counted_until < :until from redemption_tally"), {"until": until}).scalar():
        db.session.execute(_INSERT_HOURLY_COUNTS, {"until": until})
        db.session.execute(_ADVANCE_COUNTED_UNTIL, {"until": until})
    db.session.commit()
