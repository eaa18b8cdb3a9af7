"""Write to the audit log."""

from __future__ import annotations

from sqlalchemy import Connection, insert

from webapp.accounts.models import AuditEntry
from webapp.core.extensions import db
from webapp.core.request_origin import RequestOrigin, get_request_origin

# The actor of what customers do themselves. Their network address is personal data that the audit log does not need.
CUSTOMER_ACTOR = "the customer"


def record_audit_entry(
    actor: str, action: str, subject: str = "", *, started_session_id: int | None = None, **detail: object
) -> None:
    """Add an entry to the audit log, in the transaction of the change.

    The entry contains the origin of the request, unless a customer is the actor. The caller commits.

    :param started_session_id: the session that the action starts, which is not that of the request.
    """
    origin = RequestOrigin() if actor == CUSTOMER_ACTOR else get_request_origin()
    if started_session_id is not None:
        origin = origin._replace(staff_session_id=started_session_id)
    db.session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=detail or None, **origin._asdict()))


def insert_audit_entry(
    connection: Connection, origin: RequestOrigin, actor: str, action: str, subject: str, **detail: object
) -> None:
    """Insert an entry on a connection other than that of the session, in the transaction of the change.

    :param origin: that of the request, which may be handled by another thread.
    """
    values = {"actor": actor, "action": action, "subject": subject, "detail": detail or None, **origin._asdict()}
    connection.execute(insert(AuditEntry).values(values))
