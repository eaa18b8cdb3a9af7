"""Roll back a redemption."""

from __future__ import annotations

from sqlalchemy import text

from webapp.accounts.actions import record_audit_entry
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.redemptions import public_ids
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.hourly_counts import HOURLY_COUNTS_LOCK
from webapp.redemptions.queries import RedemptionRecord

ROLLBACK_REASON_MAX = 500


_LOCK_HOURLY_COUNTS_SHARED = text(f"select pg_advisory_xact_lock_shared({HOURLY_COUNTS_LOCK})")
_MOVE_TO_ROLLBACK = text(
    """
    with gone as (
      delete from redemption
      where offer_id = :offer_id and customer_id = :customer_id and redeemed_at = :redeemed_at
      returning *
    )
    insert into rollback (customer_id, offer_id, redeemed_at, channel, api_key_id, order_id, order_amount,
      order_currency, discount_amount, order_metadata, idempotency_key, body_hash, rolled_back_by, reason)
    select customer_id, offer_id, redeemed_at, channel, api_key_id, order_id, order_amount,
      order_currency, discount_amount, order_metadata, idempotency_key, body_hash, :by, :reason
    from gone
    """
)
_DECREMENT_REDEEMED = text(
    "update offer set redeemed = redeemed - 1 where id = :offer_id and max_redemptions is not null"
)
# An hour has a row only when it was counted. All three move together, each row after the ones before it, so that nobody
# waits in a circle.
_DECREMENT_HOURLY_COUNTS = text(
    """
    with uncounted as (
      update redemption_hour h set n = h.n - 1
      where h.offer_id = :offer_id and h.hour = date_trunc('hour', cast(:redeemed_at as timestamptz), 'UTC')
      returning h.offer_id, h.hour
    ), of_offer as (
      update redemption_total t set n = t.n - 1 from uncounted u where t.offer_id = u.offer_id returning u.hour
    )
    update hour_total t set n = t.n - 1 from of_offer o where t.hour = o.hour
    """
)


def roll_back_redemption(public_id: str, reason: str, by: str) -> RedemptionRecord:
    """Undo a redemption, once: its row moves to the rollbacks, the cap gets its unit back, and the customer may redeem
    again. Commits.

    :raises NotFound: when there is no such redemption.
    :raises DomainError: `already_rolled_back` when it was undone before, also at this very moment.
    :raises Invalid: `reason_missing`, `reason_too_long`.
    """
    why = " ".join(reason.split())
    if not why or not why.isprintable():
        raise InvalidInput(FieldError("reason", "reason_missing", "Say in a few words why it is undone."))
    if len(why) > ROLLBACK_REASON_MAX:
        raise InvalidInput(
            FieldError("reason", "reason_too_long", f"A reason has at most {ROLLBACK_REASON_MAX} characters.")
        )
    found = redemption_queries.find_redemption(public_id)
    if found is None:
        raise NotFound("There is no such redemption; check its reference.")
    triple = public_ids.RedemptionKey(found.offer_id, found.customer_id, found.row.redeemed_at)._asdict()
    # First of all, for the hours are counted by whoever holds this lock alone: before us or after us, never between.
    db.session.execute(_LOCK_HOURLY_COUNTS_SHARED)
    undone = db.session.connection().execute(_MOVE_TO_ROLLBACK, triple | {"by": by, "reason": why}).rowcount
    if not undone:
        db.session.rollback()
        raise DomainError("already_rolled_back", "This redemption was undone before.", 409)
    db.session.execute(_DECREMENT_REDEEMED, {"offer_id": found.offer_id})
    db.session.execute(_DECREMENT_HOURLY_COUNTS, {"offer_id": found.offer_id, "redeemed_at": found.row.redeemed_at})
    record_audit_entry(by, "redemption.undone", found.code, customer=found.customer_id, reference=public_id)
    db.session.commit()
    return redemption_queries.find_redemption(public_id) or found
