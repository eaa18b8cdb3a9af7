"""Queries for the audit log and the counts of accesses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import exists, func, or_, select

from webapp.accounts.models import AccessCount, AuditEntry
from webapp.core.csv_export import FORMULA_SAFE_COLUMN, TIME_COLUMN, stream_csv
from webapp.core.extensions import db
from webapp.core.log_pages import LogFilter, LogPage, LogPosition, load_log_page

_CONTAINS = "position(lower(%(q)s) in lower({})) > 0"


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The filter of the audit log. Empty texts and None mean all.

    :param group: the first part of an action, without a plural s, such as `customer` for `customers.exported`.
    :param actor: the exact actor.
    :param q: the exact subject, if there are entries with it; otherwise a part of the subject or actor, in upper or
        lower case, or the exact address.
    :param since: the start of the period.
    :param until: the end of the period, which is excluded.
    """

    group: str = ""
    actor: str = ""
    q: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def to_log_filter(self) -> LogFilter:
        """Return the conditions. The most selective one with an index is used for it."""
        params = {name: getattr(self, name) for name in ("group", "actor", "q", "since", "until")}
        conditions = []
        if self.q and has_subject(self.q):
            conditions.append("subject = %(q)s")
        if self.actor:
            conditions.append("actor = %(actor)s")
        if self.group:
            conditions.append("rtrim(split_part(action, '.', 1), 's') = %(group)s")
        indexed, further = conditions[:1], conditions[1:]
        if self.q and "subject = %(q)s" not in indexed:
            further.append(f"({_CONTAINS.format('subject')} or {_CONTAINS.format('actor')} or address = %(q)s)")
        return LogFilter([*indexed, *_period_conditions("at", self.since, self.until)], further, params)


@dataclass(frozen=True, slots=True)
class AccessFilter:
    """The filter of the counts of accesses. Empty texts and None mean all.

    :param kind: a key of `access_counts.ACCESS_LABELS`.
    :param q: a part of the account, address or subject, in upper or lower case.
    :param since: the start of the period.
    :param until: the end of the period, which is excluded.
    """

    kind: str = ""
    q: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def to_log_filter(self) -> LogFilter:
        """Return the conditions."""
        params = {name: getattr(self, name) for name in ("kind", "q", "since", "until")}
        further = ["kind = %(kind)s"] if self.kind else []
        if self.q:
            columns = ("account", "address", "subject")
            further.append(f"({' or '.join(_CONTAINS.format(column) for column in columns)})")
        return LogFilter(_period_conditions("period", self.since, self.until), further, params)


def _period_conditions(column: str, since: datetime | None, until: datetime | None) -> list[str]:
    conditions = {f"{column} >= %(since)s": since, f"{column} < %(until)s": until}  # no translation
    return [condition for condition, time in conditions.items() if time is not None]


def find_last_audit_entry(action: str, subject: str) -> AuditEntry | None:
    """Return the latest audit entry for an action on a subject, or None."""
    entries = select(AuditEntry).where(AuditEntry.action == action, AuditEntry.subject == subject)
    return db.session.scalar(entries.order_by(AuditEntry.at.desc(), AuditEntry.id.desc()).limit(1))


class CustomerViews(NamedTuple):
    """How often staff or API clients viewed a customer in one hour."""

    hour: datetime
    kind: str
    times: int


def iter_customer_views(customer_id: int) -> Iterator[CustomerViews]:
    """Yield the counts of views of a customer, oldest first, five hundred fetched at a time.

    The transaction must stay open until the last one.
    """
    statement = (
        select(AccessCount.period, AccessCount.kind, func.sum(AccessCount.n))
        .where(AccessCount.subject == f"customer {customer_id}")
        .group_by(AccessCount.period, AccessCount.kind)
        .order_by(AccessCount.period, AccessCount.kind)
    )
    for row in db.session.execute(statement, execution_options={"yield_per": 500}):
        yield CustomerViews(*row)


def iter_customer_entries(customer_id: int) -> Iterator[AuditEntry]:
    """Yield the entries about a customer, oldest first, five hundred fetched at a time.

    The transaction must stay open until the last one.
    """
    is_about_customer = or_(
        AuditEntry.subject == f"customer {customer_id}", AuditEntry.detail.contains({"customer": customer_id})
    )
    statement = select(AuditEntry).where(is_about_customer).order_by(AuditEntry.id)
    yield from db.session.scalars(statement, execution_options={"yield_per": 500})


def has_subject(subject: str) -> bool:
    """Return whether the audit log has entries with exactly this subject."""
    return bool(db.session.scalar(select(exists().where(AuditEntry.subject == subject))))


def load_audit_page(audit_filter: AuditFilter, after: LogPosition | None = None) -> LogPage:
    """Return a page of audit entries, newest first."""
    return load_log_page(AuditEntry.__tablename__, "at", audit_filter.to_log_filter(), after)


def load_access_page(access_filter: AccessFilter, after: LogPosition | None = None) -> LogPage:
    """Return a page of counts of accesses, latest period first."""
    return load_log_page(AccessCount.__tablename__, "period", access_filter.to_log_filter(), after)


def export_audit_entries(audit_filter: AuditFilter) -> Iterator[bytes]:
    """Stream the audit entries that match a filter as CSV, newest first."""
    columns = [
        TIME_COLUMN.format("at", "at"),
        *(FORMULA_SAFE_COLUMN.format(name, name) for name in ("actor", "action", "subject")),
        "detail",
        "address",
        "staff_session_id as session",
        "api_key_id as api_key",
    ]
    yield from _export("audit_entry", "at", columns, audit_filter.to_log_filter())


def export_access_counts(access_filter: AccessFilter) -> Iterator[bytes]:
    """Stream the counts of accesses that match a filter as CSV, latest period first."""
    columns = [
        TIME_COLUMN.format("period", "since"),
        "kind",
        *(FORMULA_SAFE_COLUMN.format(name, name) for name in ("account", "address", "subject")),
        "nullif(staff_session_id, 0) as session",
        "n as count",
    ]
    yield from _export("access_count", "period", columns, access_filter.to_log_filter())


def _export(table: str, time_column: str, columns: list[str], log_filter: LogFilter) -> Iterator[bytes]:
    order = f"order by {time_column} desc, id desc"
    query = f"select {', '.join(columns)} from {table} where {log_filter.to_sql()} {order}"  # noqa: S608
    params: dict[str, Any] = {name: value for name, value in log_filter.params.items() if f"%({name})s" in query}
    yield from stream_csv(query, params)
