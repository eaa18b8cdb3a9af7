"""The clock of the database.

It decides what is open, due or over, because the clocks of machines differ.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select

from webapp.core.extensions import db


def get_database_time() -> datetime:
    """Return the current time of the database.

    It is not that of the start of the transaction.
    """
    now: datetime = db.session.execute(select(func.clock_timestamp())).scalar_one()
    return now
