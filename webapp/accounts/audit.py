"""Write to the audit log."""

from __future__ import annotations

from webapp.accounts.models import AuditEntry
from webapp.core.extensions import db


def record_audit_entry(actor: str, action: str, subject: str = "", **detail: object) -> None:
    """Add an entry to the audit log, in the transaction of the change.

    The caller commits.
    """
    db.session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=detail or None))
