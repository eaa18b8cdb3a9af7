"""Tables for staff users, their sessions and devices, invitations, API keys and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from flask_login import UserMixin
from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, LargeBinary, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Id, Model

Role = Literal["admin", "manager", "viewer"]
ROLES: tuple[Role, ...] = ("admin", "manager", "viewer")
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
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_sign_in_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("role in ('admin', 'manager', 'viewer')", name="role"),)

    @property
    def is_active(self) -> bool:
        return self.disabled_at is None

    def has_at_least_role(self, role: Role) -> bool:
        """Return whether this user's role is `role` or one with more permissions."""
        return ROLES.index(self.role) <= ROLES.index(role)


class StaffDevice(Model):
    """A browser in which a user has signed in: its attempts to sign in are counted apart from those of strangers.

    Only a hash of the token in its cookie is stored.
    """

    __tablename__ = "staff_device"
    id: Mapped[Id]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    staff_user_id: Mapped[int] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("length(token_hash) = 32", name="token_hash"),)


class StaffSession(Model):
    """A session of a user in a browser; deleting it signs out.

    Only a hash of the token in its cookie is stored.
    """

    __tablename__ = "staff_session"
    id: Mapped[Id]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    staff_user_id: Mapped[int] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"), index=True)
    staff_device_id: Mapped[int | None] = mapped_column(
        ForeignKey("staff_device.id", ondelete="SET NULL"),  # no translation
        index=True,
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Updated at most once a minute, together with the address and the user agent.
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When the user last entered the password in this session.
    authenticated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When a second factor was verified in this session.
    second_factor_at: Mapped[datetime | None]
    client_address: Mapped[str]
    user_agent: Mapped[str]

    __table_args__ = (
        CheckConstraint("length(token_hash) = 32", name="token_hash"),
        CheckConstraint("length(client_address) <= 64 and length(user_agent) <= 300", name="lengths"),
    )


class Invitation(Model):
    """A single-use link to create a user or reset a password.

    Only a hash of its token is stored.
    """

    __tablename__ = "invitation"
    id: Mapped[Id]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    role: Mapped[str]
    email: Mapped[str | None]
    # Set when the link resets the password of an existing user.
    staff_user_id: Mapped[int | None] = mapped_column(ForeignKey("staff_user.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("role in ('admin', 'manager', 'viewer')", name="role"),)


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
