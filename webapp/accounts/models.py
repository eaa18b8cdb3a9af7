"""Tables for staff users, their sessions and devices, invitations, API keys and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

from flask_login import UserMixin
from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, Text, func, text
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
    "second_factor_changed",
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
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_sign_in_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("role in ('admin', 'manager', 'viewer')", name="role"),
        # Erasure is final: personal data cannot be written to an erased row again.
        CheckConstraint(
            "erased_at is null or (email = 'erased user ' || id and name = 'Erased user ' || id and password_hash = ''"
            " and time_zone = 'UTC' and last_sign_in_at is null and disabled_at is not null)",
            name="erased",
        ),
    )

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
    # Of the link in an email: the program sends another link than the one that it shows.
    emailed_token_hash: Mapped[bytes | None] = mapped_column(LargeBinary, unique=True)
    email: Mapped[str | None]
    # Set when the link resets the password of an existing user.
    staff_user_id: Mapped[int | None] = mapped_column(ForeignKey("staff_user.id"))
    # The administrator who created it; the link stops working with their account. None: a command or the program.
    created_by: Mapped[int | None] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"))
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
    """An API key: `public_id` identifies it, an HMAC of the secret verifies it.

    Keys that are not revoked have different names, which identify them in the audit log.
    """

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

    __table_args__ = (
        CheckConstraint("scopes <@ array['read', 'redeem', 'manage']", name="scopes"),
        Index("uq_api_key_name", text("lower(name)"), unique=True, postgresql_where=text("revoked_at is null")),
    )


class AuditEntry(Model):
    """An entry of the audit log, written in the transaction of the change.

    The table is append-only: a trigger rejects every change, except the deletion of entries older than 30 days, and the
    removal of email and network addresses when an account is erased.
    """

    __tablename__ = "audit_entry"
    id: Mapped[Id]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str] = mapped_column(server_default="")
    detail: Mapped[dict[str, Any] | None]
    # Where the request came from; all are empty for commands, background tasks and customers.
    address: Mapped[str | None]
    staff_session_id: Mapped[int | None] = mapped_column(BigInteger)
    api_key_id: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        Index("ix_audit_entry_at", "at", "id"),
        Index("ix_audit_entry_actor", "actor", "at", "id"),
        Index("ix_audit_entry_subject", "subject", "at", "id"),
        Index("ix_audit_entry_action_group", text("rtrim(split_part(action, '.', 1), 's')"), "at", "id"),
    )


class AccessCount(Model):
    """How often something was refused, or personal data viewed, in one minute or hour.

    A row counts all accesses with the same values, so that a million of them stay small. `period` is the start of a
    minute for failed sign-ins and refused requests, and of an hour for views of personal data. Empty texts and session
    0 mean none, or many (see `access_counts`).
    """

    __tablename__ = "access_count"
    id: Mapped[Id]
    period: Mapped[datetime]
    kind: Mapped[str]
    account: Mapped[str]
    address: Mapped[str]
    staff_session_id: Mapped[int] = mapped_column(BigInteger)
    subject: Mapped[str]
    n: Mapped[int]

    __table_args__ = (
        Index(
            "uq_access_count_period",
            *("period", "kind", "account", "address", "staff_session_id", "subject"),
            unique=True,
        ),
        Index("ix_access_count_period_id", "period", "id"),
        # Leaves room for new versions of a row on its page, since most writes increment `n`.
        {"postgresql_with": {"fillfactor": 70}},
    )
