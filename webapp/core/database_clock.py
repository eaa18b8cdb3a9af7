"""The clock of the database, which decides what is open, due or over, whatever the clocks of the machines show."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select

from webapp.core.extensions import db


def get_database_time() -> datetime:
    """Return the current time of the database, not that of the start of the transaction."""
    now: datetime = db.session.execute(select(func.clock_timestamp())).scalar_one()
    return now
