"""Erase personal data of erased customers and users from redemptions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.core.extensions import db
from webapp.redemptions.models import ERASED_REASON

# The order id of the shop stays with the amounts: accounts must be kept, and here it identifies no customer.
_ERASE_CURRENT = text(
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


def erase_redemption_data(customer_ids: Sequence[int]) -> None:
    """Erase metadata, idempotency keys and reasons from the redemptions of customers.

    The redemptions stay. Body hashes are erased too: knowing the rest of a body, one could test email addresses
    against its hash. The caller commits.
    """
    db.session.execute(_ERASE_CURRENT, {"ids": list(customer_ids)})
    db.session.execute(_ERASE_ROLLED_BACK, {"ids": list(customer_ids), "reason": ERASED_REASON})


def replace_staff_in_rollbacks(email: str, label: str) -> None:
    """Replace the email address of an erased user as the actor of rollbacks. The caller commits."""
    db.session.execute(
        text("update rollback set rolled_back_by = :label where rolled_back_by = :email"),
        {"email": email, "label": label},
    )
