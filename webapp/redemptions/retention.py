"""Delete the data sent with redemptions that are older than their retention period.

Redemptions stay with offer, customer, time, order number and amounts: they decide whether a customer may redeem again,
and they belong to the accounts of the shop. The link to a person ends when the customer is erased.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from webapp.core.database_clock import get_database_time
from webapp.core.extensions import db
from webapp.redemptions.models import EXPIRED_REASON, REDEMPTION_HAS_ERASABLE_DATA, ROLLBACK_HAS_ERASABLE_DATA

ROWS_PER_STEP = 1000
# Earlier than every row.
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)

# One index probe per offer.
_SELECT_DUE_OFFERS = text(
    """
    select o.offer_id from offer_counter o left join redemption_retention t on t.offer_id = o.offer_id
    where exists (
      select from redemption r
      where r.offer_id = o.offer_id and r.redeemed_at < :cutoff
        and r.redeemed_at >= coalesce(t.cleared_until, '-infinity')
    )
    """
)
# Rows that another transaction has locked are skipped: it erases them or moves them to `rollback`, unless it fails. The
# next run therefore starts with the first of them.
_LOCK_DUE_REDEMPTIONS = text(
    f"""
    with due as (
      select r.customer_id, r.redeemed_at from redemption r
      where r.offer_id = :offer_id and r.redeemed_at < :cutoff and r.redeemed_at >= coalesce(
        (select cleared_until from redemption_retention where offer_id = :offer_id), '-infinity'
      )
      order by r.redeemed_at fetch first :rows rows with ties
    ),
    filled as (
      select r.customer_id from due join redemption r using (customer_id, redeemed_at)
      where r.offer_id = :offer_id and {REDEMPTION_HAS_ERASABLE_DATA}
      for update of r skip locked
    ),
    skipped as (
      select min(redeemed_at) as first from due join redemption r using (customer_id, redeemed_at)
      where r.offer_id = :offer_id and {REDEMPTION_HAS_ERASABLE_DATA}
        and customer_id not in (select customer_id from filled)
    )
    select count(*) as found, array(select customer_id from filled) as customer_ids,
      (select first is not null from skipped) as has_skipped,
      coalesce(
        (select first from skipped),
        case when count(*) < :rows then :cutoff else max(redeemed_at) + interval '1 microsecond' end
      ) as cleared_until
    from due
    """  # noqa: S608
)
_CLEAR_REDEMPTIONS = text(
    """
    update redemption set order_metadata = null, idempotency_key = null, body_hash = null
    where offer_id = :offer_id and customer_id = any(:customer_ids)
    """
)
_RECORD_PROGRESS = text(
    """
    insert into redemption_retention as known (offer_id, cleared_until) values (:offer_id, :cleared_until)
    on conflict (offer_id) do update set cleared_until = greatest(known.cleared_until, excluded.cleared_until)
    """
)
_SELECT_DUE_ROLLBACKS = text(
    f"""
    select rolled_back_at, offer_id, customer_id, redeemed_at from rollback
    where rolled_back_at < :cutoff and ({ROLLBACK_HAS_ERASABLE_DATA})
      and (rolled_back_at, offer_id, customer_id, redeemed_at)
        > (:rolled_back_at, :offer_id, :customer_id, :redeemed_at)
    order by rolled_back_at, offer_id, customer_id, redeemed_at limit :rows
    """  # noqa: S608
)
_CLEAR_ROLLBACKS = text(
    f"""
    with due as (
      select customer_id, redeemed_at from rollback
      where offer_id = :offer_id and ({ROLLBACK_HAS_ERASABLE_DATA}) and (customer_id, redeemed_at) in (
        select * from unnest(cast(:customer_ids as bigint[]), cast(:times as timestamptz[]))
      )
      for update skip locked
    )
    update rollback b set order_metadata = null, idempotency_key = null, body_hash = null, reason = :reason
    from due where b.offer_id = :offer_id and (b.customer_id, b.redeemed_at) = (due.customer_id, due.redeemed_at)
    returning 1
    """  # noqa: S608
)
_COUNT_DUE = text(
    f"""
    select count(*) from (
      (
        select 1 from offer_counter o left join redemption_retention t on t.offer_id = o.offer_id cross join lateral (
          select 1 from redemption r
          where r.offer_id = o.offer_id and r.redeemed_at < :cutoff
            and r.redeemed_at >= coalesce(t.cleared_until, '-infinity')
          limit :limit
        ) old
        limit :limit
      )
      union all
      (select 1 from rollback where rolled_back_at < :cutoff and ({ROLLBACK_HAS_ERASABLE_DATA}) limit :limit)
      limit :limit
    ) due
    """  # noqa: S608
)


def clear_old_redemption_data(days: int) -> Iterator[int]:
    """Delete `metadata`, idempotency keys and body hashes of redemptions made or undone more than `days` days ago.

    The reasons of undone ones are replaced. Yields the number of cleared rows after each step; the caller commits.
    """
    cutoff = _get_cutoff(days)
    for offer_id in db.session.scalars(_SELECT_DUE_OFFERS, {"cutoff": cutoff}).all():
        found = ROWS_PER_STEP
        while found >= ROWS_PER_STEP:
            values = {"offer_id": offer_id, "cutoff": cutoff, "rows": ROWS_PER_STEP}
            found, customer_ids, has_skipped, cleared_until = db.session.execute(_LOCK_DUE_REDEMPTIONS, values).one()
            if customer_ids:
                db.session.execute(_CLEAR_REDEMPTIONS, {"offer_id": offer_id, "customer_ids": customer_ids})
            db.session.execute(_RECORD_PROGRESS, {"offer_id": offer_id, "cleared_until": cleared_until})
            yield len(customer_ids)
            if has_skipped:
                break
    yield from _clear_old_rollbacks(cutoff)


def _clear_old_rollbacks(cutoff: datetime) -> Iterator[int]:
    """Clear rollbacks in steps, except those that another transaction has locked; yield their number.

    Each step has a statement per offer: one of all offers cannot lock rows if they are distributed.
    """
    position: tuple[datetime, int, int, datetime] = (_BEGINNING, 0, 0, _BEGINNING)
    found = ROWS_PER_STEP
    while found >= ROWS_PER_STEP:
        names = ("rolled_back_at", "offer_id", "customer_id", "redeemed_at")
        values = dict(zip(names, position, strict=True)) | {"cutoff": cutoff, "rows": ROWS_PER_STEP}
        rows = db.session.execute(_SELECT_DUE_ROLLBACKS, values).all()
        found = len(rows)
        keys_by_offer: dict[int, list[tuple[int, datetime]]] = {}
        for rolled_back_at, offer_id, customer_id, redeemed_at in rows:
            position = rolled_back_at, offer_id, customer_id, redeemed_at
            keys_by_offer.setdefault(offer_id, []).append((customer_id, redeemed_at))
        yield sum(_clear_rollbacks(offer_id, keys) for offer_id, keys in keys_by_offer.items())


def _clear_rollbacks(offer_id: int, keys: list[tuple[int, datetime]]) -> int:
    customer_ids, times = map(list, zip(*keys, strict=True))
    values = {"offer_id": offer_id, "customer_ids": customer_ids, "times": times, "reason": EXPIRED_REASON}
    return len(db.session.execute(_CLEAR_ROLLBACKS, values).all())


def count_old_redemptions(days: int, limit: int) -> int:
    """Count the redemptions that the next run reads, at most `limit`; some may have no data to delete."""
    return int(db.session.execute(_COUNT_DUE, {"cutoff": _get_cutoff(days), "limit": limit}).scalar_one())


def _get_cutoff(days: int) -> datetime:
    return get_database_time() - timedelta(days=days)
