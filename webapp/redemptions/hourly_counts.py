"""Count redemptions by hour, for charts and totals."""

from __future__ import annotations

from sqlalchemy import text

from webapp.core.extensions import db

# A rollback takes this advisory lock shared, counting takes it exclusively.
HOURLY_COUNTS_LOCK = "hashtext('onecode.redemption_tally')"
_LOCK_HOURLY_COUNTS = text(f"select pg_advisory_xact_lock({HOURLY_COUNTS_LOCK})")


# The driving table has a row for each offer, so that the planner uses the index by offer, and all is counted where the
# redemptions are if the tables are distributed. Then a lateral subquery with a group can refer to no other table, so
# that `counted_until` is a subquery of its own.
_COUNTED_UNTIL = "(select counted_until from redemption_tally where id = 1)"
_INSERT_HOURS_BY_OFFER = text(
    f"""
    insert into redemption_hour (offer_id, hour, n)
    select o.offer_id, counted.hour, counted.n
    from offer_counter o cross join lateral (
      select date_trunc('hour', r.redeemed_at, 'UTC') as hour, count(*) as n from redemption r
      where r.offer_id = o.offer_id and r.redeemed_at >= {_COUNTED_UNTIL} and r.redeemed_at < :until
      group by 1
    ) counted
    """  # noqa: S608
)
_NEW_HOURS = f"""
    offer_counter o cross join lateral (
      select h.hour, h.n from redemption_hour h
      where h.offer_id = o.offer_id and h.hour >= {_COUNTED_UNTIL} and h.hour < :until
    ) counted
    """  # noqa: S608
_ADD_TO_TOTALS = (
    text(
        f"insert into redemption_total (offer_id, n) select o.offer_id, sum(counted.n) from {_NEW_HOURS} group by 1 "  # noqa: S608
        "on conflict (offer_id) do update set n = redemption_total.n + excluded.n"
    ),
    text(f"insert into hour_total (hour, n) select counted.hour, sum(counted.n) from {_NEW_HOURS} group by 1"),  # noqa: S608
)
# A transaction that waits for a missing standby may commit at any later time. It is visible, because all web and worker
# processes have the same role.
_SELECT_COUNT_UNTIL = text(
    """
    select date_trunc('hour', least(now() - interval '5 minutes', min(xact_start)), 'UTC') from pg_stat_activity
    where datname = current_database() and backend_xid is not null and pid <> pg_backend_pid()
    """
)
_ADVANCE_COUNTED_UNTIL = text("update redemption_tally set counted_until = :until where id = 1")


def update_hourly_counts() -> None:
    """Add every hour that ended more than five minutes ago to the counts. Commits.

    An hour also waits for every transaction that has written and began before its end; the five minutes are for those
    that had not written yet. Idempotent.
    """
    until = db.session.execute(_SELECT_COUNT_UNTIL).scalar_one()
    db.session.execute(_LOCK_HOURLY_COUNTS)
    if db.session.execute(text("select counted_until < :until from redemption_tally"), {"until": until}).scalar():
        for statement in (_INSERT_HOURS_BY_OFFER, *_ADD_TO_TOTALS):
            db.session.execute(statement, {"until": until})
        db.session.execute(_ADVANCE_COUNTED_UNTIL, {"until": until})
    db.session.commit()
