"""Queries for identities at the OpenID Connect provider."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from webapp.accounts.models import StaffUser
from webapp.accounts.oidc.models import OidcIdentity
from webapp.core.extensions import db


def find_identity_of_user(user_id: int, issuer: str) -> OidcIdentity | None:
    """Return the identity of a user at a provider, or None."""
    return db.session.scalar(
        select(OidcIdentity).where(OidcIdentity.staff_user_id == user_id, OidcIdentity.issuer == issuer)
    )


def list_identities(user_id: int) -> Sequence[OidcIdentity]:
    """Return the identities of a user at all providers, oldest first."""
    return db.session.scalars(
        select(OidcIdentity).where(OidcIdentity.staff_user_id == user_id).order_by(OidcIdentity.id)
    ).all()


def find_user_by_identity(issuer: str, subject: str) -> StaffUser | None:
    """Return the user with whom an identity is linked, or None."""
    return db.session.scalar(
        select(StaffUser)
        .join(OidcIdentity, OidcIdentity.staff_user_id == StaffUser.id)
        .where(OidcIdentity.issuer == issuer, OidcIdentity.subject == subject)
    )
