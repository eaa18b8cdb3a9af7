"""What redemptions know of people who want to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.core.extensions import db

# The shop's own number of the order stays with the amounts: accounts have to be kept, and it names nobody here.
_ERASE_LIVE = text(
    """
    update redemption set order_metadata = null, idempotency_key = null, body_hash = null
    where customer_id = any(:ids) and num_nonnulls(order_metadata, idempotency_key, body_hash) > 0
    """
)
_ERASE_ROLLED_BACK = text(
    """
    update rollback set order_metadata = null, idempotency_key = null, body_hash = null, reason = :reason
    where customer_id = any(:ids)
      and (num_nonnulls(order_metadata, idempotency_key, body_hash) > 0 or reason <> :reason)
    """
)
ERASED_REASON = "The reason was erased with the customer."


def erase_redemption_data(customer_ids: Sequence[int]) -> None:
    """Empty what shops and staff wrote freely beside redemptions of these customers; that they happened stays.

    The hash of a body goes too: whoever knows the rest of the body could try e-mails against it. The caller commits.
    """
    db.session.execute(_ERASE_LIVE, {"ids": list(customer_ids)})
    db.session.execute(_ERASE_ROLLED_BACK, {"ids": list(customer_ids), "reason": ERASED_REASON})
