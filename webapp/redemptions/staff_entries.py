"""Record in the audit log which user entered a redemption for a customer."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from webapp.accounts.audit import insert_audit_entry
from webapp.redemptions.rules import StaffEntry


def record_staff_entries(connection: Connection, code: str, entries: Iterable[tuple[StaffEntry, int]]) -> None:
    """Record the redemptions of one offer in their transaction. Does not commit.

    Requests are redeemed in groups by one of their threads, so each brings the origin of its own request.

    :param code: the current code of the offer.
    :param entries: who entered a redemption, and the id of the customer.
    """
    for staff, customer_id in entries:
        insert_audit_entry(connection, staff.origin, staff.email, "redemption.entered", code, customer=customer_id)
