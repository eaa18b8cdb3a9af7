"""Erase the account of a former user of the staff pages."""

from __future__ import annotations

from collections.abc import Callable

from flask_babel import gettext as _
from sqlalchemy import delete, func, update

from webapp.accounts import links
from webapp.accounts import queries as account_queries
from webapp.accounts.actions import roll_back_and_raise
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import AccessCount, AuditEntry, Invitation, StaffUser
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db

# Functions of other packages that replace the email address of a user in their tables by a label; `create_app`
# registers them, because those packages import this one. The caller commits.
staff_erasure_hooks: tuple[Callable[[str, str], None], ...] = ()


def erase_staff_user(user_id: int, by: str) -> str:
    """Erase name, email address and password of a disabled user; return the label that replaces them. Idempotent.

    What the user did stays, under the label. The audit log can otherwise not be changed: its trigger allows only to
    replace an actor or a subject by the label of an erased account. Commits.

    :raises NotFound: when there is no user with this id.
    :raises DomainError: `conflict` when the user is not disabled. The last active administrator cannot be disabled.
    """
    user = account_queries.lock_staff_user(user_id)
    if user is None:
        raise NotFound(_("This user does not exist. See the list of users."))
    label = f"erased user {user_id}"
    if user.erased_at is not None:
        db.session.rollback()
        return label
    if user.is_active:
        roll_back_and_raise(DomainError("conflict", _("Disable %(name)s first.", name=user.name), 409))
    email = user.email
    links.delete_reset_links(user_id)
    links.delete_invitations(email)
    _delete_owned_rows(user_id)
    # The row first: the trigger of the audit log looks for the label there.
    db.session.execute(
        update(StaffUser)
        .where(StaffUser.id == user_id)
        .values(
            email=label,
            name=f"Erased user {user_id}",
            password_hash="",
            time_zone="UTC",
            last_sign_in_at=None,
            erased_at=func.now(),
        )
    )
    _replace_email(email, label)
    record_audit_entry(by, "staff.erased", label)
    db.session.commit()
    return label


def _delete_owned_rows(user_id: int) -> None:
    """Delete what belongs to the account: the rows of all tables that the database would delete together with it."""
    for table in db.metadata.tables.values():
        for key in table.foreign_keys:
            if key.column.table.name == StaffUser.__tablename__ and key.ondelete == "CASCADE":
                db.session.execute(delete(table).where(key.parent == user_id))


def _replace_email(email: str, label: str) -> None:
    db.session.execute(update(Invitation).where(Invitation.email == email).values(email=None))
    db.session.execute(update(AccessCount).where(AccessCount.account == email).values(account=label))
    for column in (AuditEntry.actor, AuditEntry.subject):
        db.session.execute(update(AuditEntry).where(column == email).values({column: label}))
    db.session.execute(update(AuditEntry).where(AuditEntry.actor == label).values(address=None))
    for replace_staff_email in staff_erasure_hooks:
        replace_staff_email(email, label)
