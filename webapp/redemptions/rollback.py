"""Roll back redemptions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from flask_babel import gettext as _
from sqlalchemy import text

from webapp.accounts.audit import record_audit_entry
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.redemptions import public_ids
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.hourly_counts import HOURLY_COUNTS_LOCK
from webapp.redemptions.queries import RedemptionRecord

MAX_ROLLBACK_REASON_LENGTH = 500

_LOCK_HOURLY_COUNTS_SHARED = text(f"select pg_advisory_xact_lock_shared({HOURLY_COUNTS_LOCK})")
_MOVE_TO_ROLLBACK = text(
    """
    with deleted as (
      delete from redemption
      where offer_id = :offer_id and customer_id = :customer_id and redeemed_at = :redeemed_at
      returning *
    )
    insert into rollback (customer_id, offer_id, redeemed_at, channel, api_key_id, staff_user_id, order_id,
      order_amount, order_currency, discount_amount, order_metadata, idempotency_key, body_hash, rolled_back_by, reason)
    select customer_id, offer_id, redeemed_at, channel, api_key_id, staff_user_id, order_id,
      order_amount, order_currency, discount_amount, order_metadata, idempotency_key, body_hash, :by, :reason
    from deleted
    returning rolled_back_at
    """
)
_DECREMENT_REDEEMED = text(
    "update offer_counter set redeemed = redeemed - 1 where offer_id = :offer_id and max_redemptions is not null"
)
_DECREMENT_HOUR = text("update redemption_hour set n = n - 1 where offer_id = :offer_id and hour = :hour")
_DECREMENT_TOTALS = (
    text("update redemption_total set n = n - 1 where offer_id = :offer_id"),
    text("update hour_total set n = n - 1 where hour = :hour"),
)


def roll_back_redemption(public_id: str, reason: str, by: str) -> RedemptionRecord:
    """Roll back a redemption; a second call fails with `already_rolled_back`. Commits.

    Its row moves to `rollback`, and the redemption no longer counts towards the cap. The customer may then redeem the
    offer again.

    :param by: the actor, for the audit log.
    :raises NotFound: when the redemption does not exist.
    :raises DomainError: `already_rolled_back` when it was rolled back before, even by a concurrent request.
    :raises InvalidInput: `reason_missing`, `reason_too_long`.
    """
    reason = " ".join(reason.split())
    if not reason or not reason.isprintable():
        raise InvalidInput(FieldError("reason", "reason_missing", _("Enter a reason for undoing the redemption.")))
    if len(reason) > MAX_ROLLBACK_REASON_LENGTH:
        message = _("The reason can have at most %(max)s characters.", max=MAX_ROLLBACK_REASON_LENGTH)
        raise InvalidInput(FieldError("reason", "reason_too_long", message))
    record = redemption_queries.find_redemption(public_id)
    if record is None:
        raise NotFound(_("This redemption does not exist. Check its reference."))
    key = public_ids.RedemptionKey(record.offer_id, record.customer_id, record.row.redeemed_at)._asdict()
    # This lock is taken first. Counting takes it exclusively, so it sees the redemption before or after the rollback,
    # and never a partial rollback.
    db.session.execute(_LOCK_HOURLY_COUNTS_SHARED)
    rolled_back_at = db.session.scalar(_MOVE_TO_ROLLBACK, key | {"by": by, "reason": reason})
    if rolled_back_at is None:
        db.session.rollback()
        raise DomainError("already_rolled_back", _("This redemption has already been undone."), 409)
    db.session.execute(_DECREMENT_REDEEMED, {"offer_id": record.offer_id})
    _decrement_hourly_counts(record.offer_id, record.row.redeemed_at)
    record_audit_entry(by, "redemption.undone", record.code, customer=record.customer_id, reference=public_id)
    db.session.commit()
    # The row is not read again: after the commit, no result depends on another connection.
    row = replace(record.row, rolled_back_at=rolled_back_at, rolled_back_by=by, reason=reason)
    return replace(record, row=row)


def _decrement_hourly_counts(offer_id: int, redeemed_at: datetime) -> None:
    """Subtract a redemption from the counts of its hour, if that is counted already: then it has a row.

    The three tables are updated in one transaction and always in this order, which rules out deadlocks.
    """
    hour = redeemed_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    counted = db.session.connection().execute(_DECREMENT_HOUR, {"offer_id": offer_id, "hour": hour}).rowcount
    if counted:
        for statement in _DECREMENT_TOTALS:
            db.session.execute(statement, {"offer_id": offer_id, "hour": hour})
