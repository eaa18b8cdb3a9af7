"""The clock of the database, which decides what is active, due or over: the clocks of machines differ."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select

from webapp.core.extensions import db


def get_database_time() -> datetime:
    """Return the time of the database at the start of the transaction, as `now()` in its statements does."""
    now: datetime = db.session.execute(select(func.now())).scalar_one()
    return now
