"""Tables for staff users, invitations, API keys and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

from flask_login import UserMixin
from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, LargeBinary, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Id, Model

Role = Literal["admin", "manager", "viewer"]
ROLES: tuple[Role, ...] = ("admin", "manager", "viewer")
AccountEmailKind = Literal[
    "invitation",
    "reset_link",
    "new_device",
    "api_key_created",
    "admin_added",
    "password_changed",
    "password_reset",
]
ACCOUNT_EMAIL_KINDS: tuple[AccountEmailKind, ...] = get_args(AccountEmailKind)
SCOPES = ("read", "redeem", "manage")


class StaffUser(UserMixin, Model):
    """A user of the staff pages.

    A role has all permissions of the roles after it in `ROLES`.
    """

    __tablename__ = "staff_user"
    id: Mapped[Id]
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    password_hash: Mapped[str]
    role: Mapped[str]
    time_zone: Mapped[str] = mapped_column(server_default="UTC")
    # Incremented to end every session of this user.
    session_version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_sign_in_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("role in ('admin', 'manager', 'viewer')", name="role"),)

    def get_id(self) -> str:
        return f"{self.id}.{self.session_version}"

    @property
    def is_active(self) -> bool:
        return self.disabled_at is None

    def has_at_least_role(self, role: Role) -> bool:
        """Return whether this user's role is `role` or one with more permissions."""
        return ROLES.index(self.role) <= ROLES.index(role)


class Invitation(Model):
    """A single-use link to create a user or reset a password.

    Only a hash of its token is stored.
    """

    __tablename__ = "invitation"
    id: Mapped[Id]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    role: Mapped[str]
    # Of the link in an email: the program sends another link than the one that it shows.
    emailed_token_hash: Mapped[bytes | None] = mapped_column(LargeBinary, unique=True)
    email: Mapped[str | None]
    # Set when the link resets the password of an existing user.
    staff_user_id: Mapped[int | None] = mapped_column(ForeignKey("staff_user.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("role in ('admin', 'manager', 'viewer')", name="role"),)


class AccountEmail(Model):
    """An email to a user or an invited person, until it is sent or given up.

    It has no secrets: the link in it is created when it is sent.
    """

    __tablename__ = "account_email"
    id: Mapped[Id]
    kind: Mapped[str]
    # The recipient; None for an invitation, and for a password reset of an email address without a user.
    staff_user_id: Mapped[int | None] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"))
    invitation_id: Mapped[int | None] = mapped_column(ForeignKey("invitation.id", ondelete="CASCADE"))
    # What has happened, and the network address of the client; None for a command.
    detail: Mapped[dict[str, Any] | None]
    address: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When to send it, or to try again: during an attempt, the time at which another worker may take over.
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    attempts: Mapped[int] = mapped_column(server_default="0")

    __table_args__ = (
        CheckConstraint(f"kind in ({', '.join(repr(kind) for kind in ACCOUNT_EMAIL_KINDS)})", name="kind"),
        CheckConstraint("(kind = 'invitation') = (invitation_id is not null)", name="invitation"),
    )


class ApiKey(Model):
    """An API key: `public_id` identifies it, an HMAC of the secret verifies it."""

    __tablename__ = "api_key"
    id: Mapped[Id]
    public_id: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    name: Mapped[str]
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    key_version: Mapped[int]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("scopes <@ array['read', 'redeem', 'manage']", name="scopes"),)


class AuditEntry(Model):
    """An entry of the audit log, written in the transaction of the change."""

    __tablename__ = "audit_entry"
    id: Mapped[Id]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str] = mapped_column(server_default="")
    detail: Mapped[dict[str, Any] | None]
