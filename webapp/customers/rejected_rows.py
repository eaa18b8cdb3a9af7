"""Find the rejected rows of imports that contain the email address of a customer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, or_, select

from webapp.core.extensions import db
from webapp.customers.models import Customer, CustomerImport, RejectedRow

ROWS_PER_FETCH = 500


class RejectedRowOfCustomer(NamedTuple):
    """A rejected row with the import that it belongs to."""

    id: int
    imported_at: datetime
    filename: str
    line: int
    code: str
    detail: str
    row: str


def iter_rejected_rows_of(customer: Customer) -> Iterator[RejectedRowOfCustomer]:
    """Yield the rejected rows that contain the customer's email address, in upper or lower case.

    It scans all rejected rows, which are at most 90 days old. The transaction must stay open until the last row.
    """
    addresses = {customer.email, customer.email_as_given}
    whole_address = re.compile(
        "|".join(rf"(?<![\w.+-]){re.escape(address)}(?!\.?[\w-])" for address in addresses), re.IGNORECASE
    )
    statement = (
        select(
            RejectedRow.id,
            CustomerImport.created_at,
            CustomerImport.filename,
            RejectedRow.line,
            RejectedRow.code,
            RejectedRow.detail,
            RejectedRow.row,
        )
        .join(CustomerImport, CustomerImport.id == RejectedRow.import_id)
        .where(or_(*(func.strpos(func.lower(RejectedRow.row), address.lower()) > 0 for address in addresses)))
        .order_by(RejectedRow.id)
    )
    for found in db.session.execute(statement, execution_options={"yield_per": ROWS_PER_FETCH}):
        if whole_address.search(found.row):
            yield RejectedRowOfCustomer(*found)
