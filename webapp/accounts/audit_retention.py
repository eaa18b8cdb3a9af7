"""Delete entries of the audit log that are older than the retention period."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import text

from webapp.core.database_clock import get_database_time
from webapp.core.extensions import db

ENTRIES_PER_STEP = 1000

# The array keeps the planner from reading the whole table for a join.
_DELETE_OLD_ENTRIES = text(
    """
    delete from audit_entry
    where id = any (array(select id from audit_entry where at < :cutoff order by at, id limit :rows))
    """
)
_COUNT_OLD_ENTRIES = text(
    "select count(*) from (select from audit_entry where at < :cutoff order by at limit :limit) old_entries"
)


def delete_old_audit_entries(days: int) -> Iterator[int]:
    """Delete the entries that are more than `days` days old; yield their number after each step.

    The caller commits.
    """
    cutoff = get_database_time() - timedelta(days=days)
    deleted = ENTRIES_PER_STEP
    while deleted == ENTRIES_PER_STEP:
        values = {"cutoff": cutoff, "rows": ENTRIES_PER_STEP}
        deleted = db.session.connection().execute(_DELETE_OLD_ENTRIES, values).rowcount
        yield deleted


def count_old_audit_entries(days: int, limit: int) -> int:
    """Count the entries that the next run deletes, at most `limit`."""
    values = {"cutoff": get_database_time() - timedelta(days=days), "limit": limit}
    return int(db.session.execute(_COUNT_OLD_ENTRIES, values).scalar_one())
