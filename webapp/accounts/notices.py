"""Notices by email about changes to accounts: to the user, or to all administrators.

Each function adds the emails in the transaction of the change. The caller commits, then calls `enqueue_account_emails`.
An email whose task is lost is sent within a minute, and one that the relay does not accept is retried. Without a relay,
no notices are added.
"""

from __future__ import annotations

from typing import Any, Literal

from flask import current_app
from sqlalchemy import BigInteger, Text, exists, func, insert, literal, select
from sqlalchemy.dialects.postgresql import JSONB

from webapp.accounts.models import AccountEmail, AccountEmailKind, StaffUser
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.request_origin import get_request_origin
from webapp.core.settings import Settings

SecondFactorChange = Literal[
    "totp.added",
    "totp.removed",
    "passkey.added",
    "passkey.removed",
    "recovery_code.used",
    "recovery_codes.created",
    "second_factor.reset",
    "identity.linked",
    "identity.unlinked",
]


def notify_new_device(user: StaffUser, device: str, address: str | None = None) -> None:
    """Notify a user that they signed in with a new device. Does not commit.

    :param device: a description such as “Firefox on Linux”, not the text that the browser has sent.
    :param address: the network address of the device; by default that of the request.
    """
    _add_notice("new_device", user.id, {"device": device}, address)


def notify_password_changed(user: StaffUser) -> None:
    """Notify a user that their password was changed in their profile. Does not commit."""
    _add_notice("password_changed", user.id)


def notify_password_reset(user: StaffUser) -> None:
    """Notify a user that their password was set with a password reset link. Does not commit."""
    _add_notice("password_reset", user.id)


def notify_second_factor_changed(user: StaffUser, change: SecondFactorChange) -> None:
    """Notify a user that a second factor or another way to sign in was added, removed or used. Does not commit.

    Also of an account at the OpenID Connect provider, which can replace both factors.

    :param change: the action in the audit log.
    """
    _add_notice("second_factor_changed", user.id, {"change": change})


def notify_api_key_created(name: str, scopes: list[str], by: str) -> None:
    """Notify all administrators of a new API key. Does not commit."""
    _add_admin_notices("api_key_created", {"name": name, "scopes": scopes, "by": by})


def notify_admin_added(user_id: int, name: str, email: str, by: str) -> None:
    """Notify all administrators of a new one. Does not commit.

    A user who has accepted an invitation is not notified of that.

    :param by: who has changed the role; the new administrator's own email address for an accepted invitation.
    """
    detail = {"user_id": user_id, "name": name, "email": email, "by": by}
    _add_admin_notices("admin_added", detail, except_user_id=user_id if by == email else None)


def enqueue_account_emails() -> None:
    """Enqueue the task that sends the emails to users, if one is due. Call it after the commit."""
    if db.session.scalar(select(exists().where(AccountEmail.due_at <= func.now()))):
        task_queue.enqueue("accounts.send_emails")


def _add_notice(
    kind: AccountEmailKind, user_id: int, detail: dict[str, Any] | None = None, address: str | None = None
) -> None:
    if can_email_users():
        db.session.add(
            AccountEmail(
                kind=kind, staff_user_id=user_id, detail=detail, address=address or get_request_origin().address
            )
        )


def _add_admin_notices(kind: AccountEmailKind, detail: dict[str, Any], except_user_id: int | None = None) -> None:
    if not can_email_users():
        return
    # The role of a new administrator may not have been written yet.
    db.session.flush()
    admins = select(
        literal(kind, Text),
        StaffUser.id,
        literal(detail, JSONB),
        literal(get_request_origin().address, Text),
    ).where(
        StaffUser.role == "admin",
        StaffUser.disabled_at.is_(None),
        StaffUser.id.is_distinct_from(literal(except_user_id, BigInteger)),
    )
    db.session.execute(
        insert(AccountEmail).from_select(["kind", "staff_user_id", "detail", "address"], admins.order_by(StaffUser.id))
    )


def can_email_users() -> bool:
    """Return whether emails to users arrive: a relay is set, or the mail sink is where its users are."""
    settings: Settings = current_app.config["SETTINGS"]
    return settings.can_email_users
