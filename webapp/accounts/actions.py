"""Actions on staff users: profile, roles, disabling and enabling."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NoReturn

from flask_babel import gettext as _

from webapp.accounts import links, notices, staff_sessions
from webapp.accounts import queries as account_queries
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import Role, StaffUser
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db


def update_profile(user_id: int, name: str, time_zone: str) -> None:
    """Change a user's own name and time zone."""
    user = lock_existing_staff_user(user_id)
    user.name, user.time_zone = name, time_zone
    record_audit_entry(user.email, "staff.profile_changed", user.email)
    db.session.commit()


def change_staff_role(user_id: int, role: Role, by: str, kept_session_id: int | None = None) -> StaffUser:
    """Change the role of a user, and end their sessions.

    A person who uses one of them without knowing the password does not gain the new role. The unused links that the
    user created as an administrator stop working.

    :param kept_session_id: a session that does not end: the one in which administrators change their own role.
    :raises NotFound: when there is no user with this id.
    :raises DomainError: `last_admin` when there would be no active administrator.
    """
    if role != "admin":
        _check_admin_remains(user_id)
    user = lock_existing_staff_user(user_id)
    before, user.role = user.role, role
    if before != role:
        staff_sessions.delete_user_sessions(user.id, except_id=kept_session_id)
        # Also for a new administrator: a link that was created while the role was lowered must not work again.
        links.delete_links_created_by(user.id)
        record_audit_entry(by, "staff.role_changed", user.email, before=before, now=role)
        if role == "admin":
            notices.notify_admin_added(user.id, user.name, user.email, by)
    db.session.commit()
    notices.enqueue_account_emails()
    return user


def disable_staff_user(user_id: int, by: str) -> StaffUser:
    """Disable a user: their sessions end and they cannot sign in.

    The unused links that they created stop working.

    Their work and audit entries are kept.

    :raises NotFound: when there is no user with this id.
    :raises DomainError: `last_admin` when there would be no active administrator.
    """
    _check_admin_remains(user_id)
    user = lock_existing_staff_user(user_id)
    if user.is_active:
        user.disabled_at = datetime.now(UTC)
        staff_sessions.delete_user_sessions_and_devices(user.id)
        links.delete_reset_links(user.id)
        links.delete_links_created_by(user.id)
        record_audit_entry(by, "staff.disabled", user.email)
    db.session.commit()
    return user


def enable_staff_user(user_id: int, by: str) -> StaffUser:
    """Enable a disabled user, with the password and role they had, but without the links they had created.

    :raises NotFound: when there is no user with this id.
    """
    user = lock_existing_staff_user(user_id)
    if not user.is_active:
        user.disabled_at = None
        links.delete_links_created_by(user.id)
        record_audit_entry(by, "staff.enabled", user.email)
    db.session.commit()
    return user


def end_staff_sessions(user_id: int, by: str) -> StaffUser:
    """End all sessions of a user; the browsers they signed in with become unknown.

    :raises NotFound: when there is no user with this id.
    """
    user = lock_existing_staff_user(user_id)
    staff_sessions.delete_user_sessions_and_devices(user.id)
    record_audit_entry(by, "staff.sessions_ended", user.email)
    db.session.commit()
    return user


def _check_admin_remains(user_id: int) -> None:
    """Check that there is an active administrator other than this user.

    It locks the active administrators, always in the same order: two concurrent calls that disable the last two of them
    cannot both succeed.

    :raises DomainError: `last_admin` when there is none.
    """
    if account_queries.lock_active_admins() == [user_id]:
        message = _("This is the last active administrator. Make another user an administrator first.")
        roll_back_and_raise(DomainError("last_admin", message))


def lock_existing_staff_user(user_id: int) -> StaffUser:
    """Return the current row of a user, locked until the transaction ends.

    :raises NotFound: when there is no user with this id, or the user was erased.
    """
    user = account_queries.lock_staff_user(user_id)
    if user is None or user.erased_at is not None:
        raise NotFound(_("This user does not exist. See the list of users."))
    return user


def check_is_active(user: StaffUser) -> None:
    """Check that a user may sign in. Rolls back otherwise.

    :raises DomainError: `disabled`.
    """
    if not user.is_active:
        roll_back_and_raise(
            DomainError("disabled", _("Your account is disabled. Ask an administrator to enable it."), 422)
        )


def roll_back_and_raise(error: DomainError) -> NoReturn:
    """Roll back the transaction, then raise the error."""
    db.session.rollback()
    raise error
