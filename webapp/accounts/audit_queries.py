"""Queries for the audit log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import or_, select

from webapp.accounts.models import AuditEntry
from webapp.core.extensions import db

AUDIT_PAGE_SIZE = 50


class AuditPage(NamedTuple):
    """A page of the audit log, newest first.

    `newer` and `older` are the ids to continue from, if there is more.
    """

    entries: Sequence[AuditEntry]
    newer: int | None
    older: int | None


def find_last_audit_entry(action: str, subject: str) -> AuditEntry | None:
    """Return the latest audit entry for an action on a subject, or None."""
    entries = select(AuditEntry).where(AuditEntry.action == action, AuditEntry.subject == subject)
    return db.session.scalar(entries.order_by(AuditEntry.id.desc()).limit(1))


def iter_customer_entries(customer_id: int) -> Iterator[AuditEntry]:
    """Yield the entries about a customer, oldest first, five hundred fetched at a time.

    The transaction must stay open until the last one.
    """
    is_about_customer = or_(
        AuditEntry.subject == f"customer {customer_id}", AuditEntry.detail.contains({"customer": customer_id})
    )
    statement = select(AuditEntry).where(is_about_customer).order_by(AuditEntry.id)
    yield from db.session.scalars(statement, execution_options={"yield_per": 500})


def load_audit_page(before: int | None = None, after: int | None = None) -> AuditPage:
    """Return a page of the audit log: the newest, or the one before or after an id."""
    query = select(AuditEntry).limit(AUDIT_PAGE_SIZE + 1)
    if after is not None:
        rows = db.session.scalars(query.where(AuditEntry.id > after).order_by(AuditEntry.id)).all()
        entries = list(reversed(rows[:AUDIT_PAGE_SIZE]))
        has_newer, has_older = len(rows) > AUDIT_PAGE_SIZE, bool(entries)
    else:
        if before is not None:
            query = query.where(AuditEntry.id < before)
        rows = db.session.scalars(query.order_by(AuditEntry.id.desc())).all()
        entries = list(rows[:AUDIT_PAGE_SIZE])
        has_newer, has_older = before is not None and bool(entries), len(rows) > AUDIT_PAGE_SIZE
    return AuditPage(entries, entries[0].id if has_newer else None, entries[-1].id if has_older else None)
