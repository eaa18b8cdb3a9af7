"""Actions on the audit log."""

from __future__ import annotations

from webapp.accounts.audit import record_audit_entry
from webapp.core.extensions import db


def record_audit_export(subject: str, filters: dict[str, str], by: str) -> None:
    """Record an export of the audit log, with its filters. Commits.

    Of a filter with an email address, only the name is recorded: the entry would keep the address after an erasure.

    :param subject: what was exported.
    """
    parts = (name if "@" in value else f"{name}={value}" for name, value in filters.items())
    details = {"filter": ", ".join(parts)} if filters else {}
    record_audit_entry(by, "audit.exported", subject, **details)
    db.session.commit()
