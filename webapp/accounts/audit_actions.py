"""Actions on the audit log."""

from __future__ import annotations

from webapp.accounts.audit import record_audit_entry
from webapp.core.extensions import db


def record_audit_export(subject: str, filters: dict[str, str], by: str) -> None:
    """Record an export of the audit log, with its filters. Commits.

    :param subject: what was exported.
    """
    details = {"filter": ", ".join(f"{name}={value}" for name, value in filters.items())} if filters else {}
    record_audit_entry(by, "audit.exported", subject, **details)
    db.session.commit()
