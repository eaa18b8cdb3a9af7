"""Write to the audit log."""

from __future__ import annotations

from sqlalchemy import Connection, insert

from webapp.accounts.models import AuditEntry
from webapp.core.extensions import db
from webapp.core.request_origin import RequestOrigin, get_request_origin

# The actor of what customers do themselves. Their network address is personal data that the audit log does not need.
CUSTOMER_ACTOR = "the customer"


def record_audit_entry(actor: str, action: str, subject: str = "", **detail: object) -> None:
    """Add an entry to the audit log, in the transaction of the change.

    The entry contains the origin of the request, unless a customer is the actor. The caller commits.
    """
    origin = RequestOrigin() if actor == CUSTOMER_ACTOR else get_request_origin()
    db.session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=detail or None, **origin._asdict()))


def record_sign_in(email: str, session_id: int, method: str) -> None:
    """Add the entry for a sign-in, with the session that it has started. The caller commits.

    :param session_id: not that of the request, which may be an earlier one of the browser.
    :param method: such as `password` or `passkey`.
    """
    origin = get_request_origin()._replace(staff_session_id=session_id)
    entry = {"actor": email, "action": "staff.signed_in", "subject": email, "detail": {"method": method}}
    db.session.add(AuditEntry(**entry, **origin._asdict()))


def insert_audit_entry(
    connection: Connection, origin: RequestOrigin, actor: str, action: str, subject: str, **detail: object
) -> None:
    """Insert an entry on a connection other than that of the session, in the transaction of the change.

    :param origin: that of the request, which may be handled by another thread.
    """
    values = {"actor": actor, "action": action, "subject": subject, "detail": detail or None, **origin._asdict()}
    connection.execute(insert(AuditEntry).values(values))
