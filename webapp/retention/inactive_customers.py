"""Erase customers who have been inactive for the retention period.

A customer is active when they are created, edited, imported or sent through the API (`customer.active_at`), when they
redeem or a redemption of theirs is undone, and when a campaign with an email to them is launched, unless the email was
skipped or failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import Select, func, select, text

from webapp.campaigns import queries as campaign_queries
from webapp.core.database_clock import get_database_time
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import ACTIVITY_PRECISION, Customer

CUSTOMERS_PER_CHUNK = 200
ACTOR = "retention period"  # no translation

# Both parts have the offer in the same place, as an engine requires that distributes the tables by it.
_SELECT_LAST_REDEMPTIONS = text(
    """
    select customer_id, max(at) from (
      select customer_id, offer_id, redeemed_at as at from redemption where customer_id = any(:ids)
      union all
      select customer_id, offer_id, rolled_back_at from rollback where customer_id = any(:ids)
    ) activity
    group by customer_id
    """
)
# The time of the last activity of customers who have one within the period: a redemption, whose `times` are given, or a
# campaign. One campaign within the period is enough; the newest is found first.
_SELECT_ACTIVITY = text(
    """
    select id, at from (
      select p.id, greatest(
        p.last_redemption_at,
        (
          select c.launched_at
          from (select id, launched_at from campaign where launched_at >= :cutoff order by launched_at desc) c
          cross join lateral (
            select first_id, gaps from batch where campaign_id = c.id and last_id >= p.id order by last_id limit 1
          ) b
          where b.first_id <= p.id
            and exists (
              select from (
                select sum(gap) over (order by position) as id from unnest(b.gaps) with ordinality g (gap, position)
              ) member where member.id = p.id
            )
            and not exists (
              select from mail_issue i
              where i.campaign_id = c.id and i.customer_id = p.id and i.state in ('skipped', 'failed')
            )
          limit 1
        )
      ) as at
      from unnest(cast(:ids as bigint[]), cast(:times as timestamptz[])) p (id, last_redemption_at)
    ) activity
    where at >= :cutoff
    """
)
# The customers are then checked again only when that activity is as old as the period. A statement of its own, because
# the tables of campaigns are on one node only if the others are distributed.
_UPDATE_ACTIVE_AT = text(
    """
    update customer c set active_at = a.at
    from unnest(cast(:ids as bigint[]), cast(:times as timestamptz[])) a (id, at)
    where c.id = a.id and c.active_at < a.at and c.erased_at is null
    returning c.id
    """
)


def erase_inactive_customers(days: int) -> Iterator[int]:
    """Erase the customers who have been inactive for `days` days; yield the number erased after each step.

    Each customer is erased in a transaction of their own; the caller commits the rest after each step. While a campaign
    is being prepared nothing is erased, because its recipients are not known yet.
    """
    cutoff = get_database_time() - timedelta(days=days)
    while not campaign_queries.list_preparing_campaign_ids():
        ids = list(db.session.scalars(_select_candidates(cutoff).limit(CUSTOMERS_PER_CHUNK)))
        if not ids:
            return
        times = dict(tuple(row) for row in db.session.execute(_SELECT_LAST_REDEMPTIONS, {"ids": ids}))
        values = {"ids": ids, "times": [times.get(customer_id) for customer_id in ids], "cutoff": cutoff}
        active = dict(tuple(row) for row in db.session.execute(_SELECT_ACTIVITY, values))
        values = {"ids": list(active), "times": list(active.values())}
        active_ids = set(db.session.scalars(_UPDATE_ACTIVE_AT, values)) if active else set()
        yield 0
        for customer_id in ids:
            if customer_id not in active_ids:
                yield int(customer_actions.erase_customer(customer_id, by=ACTOR, if_inactive_since=cutoff))


def count_candidates(days: int, limit: int) -> int:
    """Count the customers to be checked next, at most `limit`; some of them may turn out to be active."""
    cutoff = get_database_time() - timedelta(days=days)
    candidates = _select_candidates(cutoff).limit(limit).subquery()
    return db.session.execute(select(func.count()).select_from(candidates)).scalar_one()


def _select_candidates(cutoff: datetime) -> Select[int]:
    return (
        select(Customer.id)
        .where(Customer.active_at < cutoff - ACTIVITY_PRECISION, Customer.erased_at.is_(None))
        .order_by(Customer.active_at)
    )
