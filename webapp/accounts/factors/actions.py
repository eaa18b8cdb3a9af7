"""Actions on all second factors of a user: removing single ones, resetting all."""

from __future__ import annotations

from flask import current_app
from flask_babel import gettext as _
from sqlalchemy import delete

from webapp.accounts import notices, staff_sessions
from webapp.accounts.actions import lock_existing_staff_user, roll_back_and_raise
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.models import Passkey, RecoveryCode, TotpAuthenticator
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db


def is_second_factor_required(role: str) -> bool:
    """Return whether users with this role must have a second factor (setting SECOND_FACTOR_ROLES)."""
    return role in current_app.config["SETTINGS"].second_factor_roles


def remove_totp(user_id: int) -> None:
    """Remove the authenticator app of a user.

    :raises DomainError: `second_factor_required` when it is the last second factor and the role requires one.
    """
    user = lock_existing_staff_user(user_id)
    apps = delete(TotpAuthenticator).where(TotpAuthenticator.staff_user_id == user_id)
    if db.session.execute(apps.returning(TotpAuthenticator.id)).all():
        record_audit_entry(user.email, "totp.removed", user.email)
        notices.notify_second_factor_changed(user, "totp.removed")
    _finish_removal(user)


def remove_passkey(user_id: int, passkey_id: int) -> str:
    """Remove a passkey of a user; return its name.

    :raises NotFound: when the user has no such passkey.
    :raises DomainError: `second_factor_required` when it is the last second factor and the role requires one.
    """
    user = lock_existing_staff_user(user_id)
    name: str | None = db.session.scalar(
        delete(Passkey).where(Passkey.id == passkey_id, Passkey.staff_user_id == user_id).returning(Passkey.name)
    )
    if name is None:
        roll_back_and_raise(NotFound(_("This passkey does not exist. It may have been removed already.")))
    record_audit_entry(user.email, "passkey.removed", user.email, name=name)
    notices.notify_second_factor_changed(user, "passkey.removed")
    _finish_removal(user)
    return name


def reset_second_factor(user_id: int, by: str) -> StaffUser:
    """Remove all second factors of a user who has lost them, and end their sessions.

    :raises NotFound: when there is no user with this id.
    """
    user = lock_existing_staff_user(user_id)
    for model in (TotpAuthenticator, Passkey, RecoveryCode):
        db.session.execute(delete(model).where(model.staff_user_id == user_id))
    staff_sessions.delete_user_sessions_and_devices(user_id)
    record_audit_entry(by, "second_factor.reset", user.email)
    notices.notify_second_factor_changed(user, "second_factor.reset")
    db.session.commit()
    notices.enqueue_account_emails()
    return user


def _finish_removal(user: StaffUser) -> None:
    """Commit the removal of a factor; without any factor, recovery codes are deleted."""
    if not factor_queries.has_second_factor(user.id):
        if is_second_factor_required(user.role):
            message = _("Your role requires a second factor. Add another one before you remove this one.")
            roll_back_and_raise(DomainError("second_factor_required", message))
        db.session.execute(delete(RecoveryCode).where(RecoveryCode.staff_user_id == user.id))
    db.session.commit()
    notices.enqueue_account_emails()
