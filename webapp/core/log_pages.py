"""Pages of large append-only tables, newest first, with a bounded number of rows read for each page.

Conditions that an index supports select the entries; further conditions, such as a search within texts, are applied to
the next `SCAN_LIMIT` of them. A page may therefore have few rows, or none, although more follow: the next position is
where the scan stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row

from webapp.core.extensions import db

LOG_PAGE_SIZE = 50
SCAN_LIMIT = 20_000
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_MICROSECONDS = (datetime(9999, 1, 1, tzinfo=UTC) - _UNIX_EPOCH) // _MICROSECOND


class LogPosition(NamedTuple):
    """The time and id of the last entry that was read."""

    at: datetime
    id: int

    @classmethod
    def from_integers(cls, microseconds: int, entry_id: int) -> LogPosition:
        """Return the position of the result of `to_integers`; a time out of range becomes the latest possible one."""
        return cls(_UNIX_EPOCH + min(microseconds, _MAX_MICROSECONDS) * _MICROSECOND, entry_id)

    def to_integers(self) -> tuple[int, int]:
        """Return the time in microseconds since the Unix epoch, and the id."""
        return (self.at - _UNIX_EPOCH) // _MICROSECOND, self.id


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The filter of a log: SQL conditions with their parameters (`%(name)s`).

    :param indexed: conditions that an index supports, together with the order by time and id.
    :param further: conditions that are checked for each row.
    """

    indexed: Sequence[str]
    further: Sequence[str]
    params: dict[str, Any]

    def to_sql(self) -> str:
        """Return all conditions as one."""
        return " and ".join(["true", *self.indexed, *self.further])


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of a log.

    :param next_position: where the next page starts; None at the end.
    :param is_cut_short: whether the page has fewer rows than fit because the scan has stopped.
    """

    rows: Sequence[Row[Any]]
    next_position: LogPosition | None
    is_cut_short: bool = False


def load_log_page(table: str, time_column: str, log_filter: LogFilter, after: LogPosition | None = None) -> LogPage:
    """Return a page of the rows that match a filter, newest first.

    :param time_column: the column of the time; the table needs an index on it and `id`.
    :param after: the position of the previous page.
    """
    conditions, params = ["true", *log_filter.indexed], dict(log_filter.params)
    if after is not None:
        conditions.append(f"({time_column}, id) < (%(after_at)s, %(after_id)s)")
        params |= {"after_at": after.at, "after_id": after.id}
    order = f"order by {time_column} desc, id desc"
    entries = f"from {table} where {' and '.join(conditions)} {order}"
    further = " and ".join(["true", *log_filter.further])
    connection = db.session.connection()
    rows = connection.exec_driver_sql(
        f"select * from (select * {entries} limit {SCAN_LIMIT}) entries where {further} {order}"  # noqa: S608
        f" limit {LOG_PAGE_SIZE + 1}",
        params,
    ).all()
    if len(rows) > LOG_PAGE_SIZE:
        last = rows[LOG_PAGE_SIZE - 1]
        return LogPage(rows[:LOG_PAGE_SIZE], LogPosition(last._mapping[time_column], last.id))
    end = connection.exec_driver_sql(
        f"select {time_column}, id {entries} limit 1 offset {SCAN_LIMIT - 1}",
        params,
    ).one_or_none()
    return LogPage(rows, None if end is None else LogPosition(*end), is_cut_short=end is not None)
