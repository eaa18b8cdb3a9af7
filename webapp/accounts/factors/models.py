"""Tables for second factors: authenticator apps, recovery codes and passkeys."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Id, Model


class TotpAuthenticator(Model):
    """An authenticator app of a user (TOTP, RFC 6238), with its encrypted secret.

    A user has at most one that is confirmed, and one that is being set up.
    """

    __tablename__ = "totp_authenticator"
    id: Mapped[Id]
    staff_user_id: Mapped[int] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"))
    secret_encrypted: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    confirmed_at: Mapped[datetime | None]
    # The time step of the last accepted code: a code is accepted once (RFC 6238, 5.2).
    last_used_step: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (
        Index(
            "ix_totp_authenticator_confirmed",
            "staff_user_id",
            unique=True,
            postgresql_where=text("confirmed_at is not null"),
        ),
        Index(
            "ix_totp_authenticator_pending",
            "staff_user_id",
            unique=True,
            postgresql_where=text("confirmed_at is null"),
        ),
    )


class RecoveryCode(Model):
    """A recovery code, which replaces the second factor once; only its hash is stored."""

    __tablename__ = "recovery_code"
    staff_user_id: Mapped[int] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"), primary_key=True)
    # The first character of the code, so that only one hash has to be verified.
    slot: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    code_hash: Mapped[str]
    used_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("length(slot) = 1", name="slot"),)


class Passkey(Model):
    """A passkey of a user (a WebAuthn credential): its public key."""

    __tablename__ = "passkey"
    id: Mapped[Id]
    staff_user_id: Mapped[int] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"), index=True)
    credential_id: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    sign_count: Mapped[int] = mapped_column(BigInteger)
    # Random and the same for all passkeys of a user; authenticators return it with a discoverable passkey.
    user_handle: Mapped[bytes] = mapped_column(LargeBinary)
    # The host that it was created for; browsers offer it only there.
    rp_id: Mapped[str]
    name: Mapped[str]
    transports: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("sign_count >= 0", name="sign_count"),)
