"""Constraints of the database, which protect against errors of the program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer


@pytest.mark.parametrize(
    "statement",
    [
        "insert into redemption (customer_id, offer_id, channel) select 1, 1, 'api' from generate_series(1, 2)",
        "insert into redemption (customer_id, offer_id, channel) values (1, 1, 'post')",
        "update offer_counter set redeemed = 3",
        "update offer_counter set redeemed = -1",
        "update offer set max_redemptions = 0",
        "update offer_counter set redeemed = 2; update offer_counter set max_redemptions = 1",
        "delete from offer",
        "update offer set ends_at = starts_at",
        "update offer set percent = 101",
        "update offer set amount = 500",
        "update offer set code = 'WINTER10'",
        "update offer set code_as_written = 'Summer 25'",
        "delete from offer_code",
    ],
)
def test_the_database_rejects_inconsistent_rows(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer], statement: str
) -> None:
    make_offer(max_redemptions=2), make_customer()

    with pytest.raises(IntegrityError):
        db.session.execute(text(statement))
    db.session.rollback()
