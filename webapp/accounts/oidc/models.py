"""The table for identities at an OpenID Connect provider."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Text, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Id, Model


class OidcIdentity(Model):
    """An account at an OpenID Connect provider with which a user can sign in.

    The issuer and the subject identify it; its email address is never compared at sign-in.
    """

    __tablename__ = "oidc_identity"
    id: Mapped[Id]
    staff_user_id: Mapped[int] = mapped_column(ForeignKey("staff_user.id", ondelete="CASCADE"))
    issuer: Mapped[str] = mapped_column(Text(collation="C"))
    subject: Mapped[str] = mapped_column(Text(collation="C"))
    # What the provider called the account when it was linked; shown to its user and to administrators.
    label: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]

    __table_args__ = (UniqueConstraint("issuer", "subject"), UniqueConstraint("staff_user_id", "issuer"))
