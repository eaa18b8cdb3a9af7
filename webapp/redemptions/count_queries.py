"""Queries that count current redemptions.

They add up the hourly counts and the rows since.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from sqlalchemy import text

from webapp.core.extensions import db

# `offer_counter` has a row for each offer. Subqueries of it can be distributed, unlike those of `offer` or `unnest`.
_SELECT_COUNTS = text(
    """
    select o.offer_id,
      coalesce((select n from redemption_total h where h.offer_id = o.offer_id), 0)
      + (select count(*) from redemption r, redemption_tally t
         where t.id = 1 and r.offer_id = o.offer_id and r.redeemed_at >= t.counted_until) as n
    from offer_counter o where o.offer_id = any(:ids)
    """
)


def count_redemptions(offer_ids: Sequence[int]) -> dict[int, int]:
    """Return the number of current redemptions of each of these offers.

    It is the sum of the counts so far and the rows since.
    """
    rows = db.session.execute(_SELECT_COUNTS, {"ids": list(offer_ids)})
    return dict.fromkeys(offer_ids, 0) | {offer_id: int(count) for offer_id, count in rows}


def count_redemptions_per_day(offer_id: int | None, since: datetime, zone: str = "UTC") -> list[tuple[date, int]]:
    """Count current redemptions by day of a time zone; omit days without any.

    It adds up the hours counted so far and the rows since. Hours are those of UTC, so in zones with a half-hour offset
    the days end half an hour off.
    """
    hours = "redemption_hour h where h.offer_id = :offer_id and" if offer_id else "hour_total h where"
    # Lateral, so that the planner uses the index regardless of its row estimates. A lateral subquery with a group is
    # distributed only if it refers to no table but `offer_counter`.
    rows = db.session.execute(
        text(
            f"""
            select cast(hour at time zone :zone as date) as day, sum(n) from (
              select h.hour, h.n from {hours} h.hour >= :since
              union all
              select rest.hour, rest.n from offer_counter o cross join lateral (
                select date_trunc('hour', r.redeemed_at, 'UTC') as hour, count(*) as n from redemption r
                where r.offer_id = o.offer_id
                  and r.redeemed_at >= greatest((select counted_until from redemption_tally where id = 1), :since)
                group by 1
              ) rest
              {"where o.offer_id = :offer_id" if offer_id else ""}
            ) every
            group by 1 having sum(n) > 0 order by 1
            """  # noqa: S608
        ),
        {"since": since, "zone": zone} | ({"offer_id": offer_id} if offer_id else {}),
    )
    return [(day, int(count)) for day, count in rows]
