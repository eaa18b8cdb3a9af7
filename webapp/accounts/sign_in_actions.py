"""Signing in, and changing the own password."""

from __future__ import annotations

from flask_babel import gettext as _

from webapp.accounts import links, notices, passwords, staff_sessions
from webapp.accounts import queries as account_queries
from webapp.accounts.actions import check_is_active, lock_existing_staff_user
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import StaffUser
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db


def sign_in_user(email: str, password: str) -> StaffUser:
    """Return the user with this email address and password. Does not commit.

    The caller starts the session, or asks for a second factor first. A hash with outdated parameters is replaced. The
    row of the user is locked until the caller commits: a concurrent change of the password, or disabling the user, then
    ends that session too.

    :raises DomainError: `sign_in_failed`, with the same message and timing for an unknown email address and a wrong
        password; `disabled` for the right password of a disabled user.
    """
    user = _find_user_by_email(email)
    if user is None:
        passwords.verify_dummy_password(password)
    verified_hash = user.password_hash if user is not None else ""
    if user is None or not passwords.verify_password(verified_hash, password):
        raise _sign_in_error()
    user = account_queries.lock_staff_user(user.id)
    if user is None or user.password_hash != verified_hash:
        raise _sign_in_error()
    check_is_active(user)
    if passwords.needs_rehash(user.password_hash):
        user.password_hash = passwords.hash_password(password)
    return user


def end_password_check() -> None:
    """Commit the transaction of `sign_in_user` without starting a session."""
    db.session.commit()


def _sign_in_error() -> DomainError:
    return DomainError("sign_in_failed", _("The email address or password is wrong. Check both and try again."), 422)


def _find_user_by_email(email: str) -> StaffUser | None:
    try:
        return account_queries.find_staff_user_by_email(normalise_email(email))
    except InvalidInput:
        return None


def change_own_password(user_id: int, current_password: str, new_password: str) -> StaffUser:
    """Change a user's own password.

    This ends every session, and every browser becomes unknown; the caller starts a new session for the current one.

    :raises InvalidInput: `password_wrong` when the current password is wrong; when the new one is easy to guess.
    """
    user = lock_existing_staff_user(user_id)
    if not passwords.verify_password(user.password_hash, current_password):
        raise InvalidInput(FieldError("current", "password_wrong", _("This is not your current password.")))
    passwords.check_new_password(new_password, user.name, user.email)
    user.password_hash = passwords.hash_password(new_password)
    staff_sessions.delete_user_sessions_and_devices(user.id)
    links.delete_reset_links(user.id)
    record_audit_entry(user.email, "password.changed", user.email)
    notices.notify_password_changed(user)
    db.session.commit()
    notices.enqueue_account_emails()
    return user
