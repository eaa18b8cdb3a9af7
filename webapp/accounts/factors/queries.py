"""Queries for second factors."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, SQLColumnExpression, exists, func, or_, select

from webapp.accounts.factors.models import Passkey, RecoveryCode, TotpAuthenticator
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db


class FactorOverview(NamedTuple):
    """The second factors of a user.

    :ivar app_added_at: when the authenticator app was confirmed; None without one.
    :ivar recovery_codes_left: number of unused recovery codes.
    """

    app_added_at: datetime | None
    passkeys: Sequence[Passkey]
    recovery_codes_left: int

    @property
    def is_enabled(self) -> bool:
        """Whether signing in with the password needs a second factor."""
        return self.app_added_at is not None or bool(self.passkeys)


def load_factor_overview(user_id: int) -> FactorOverview:
    """Return the second factors of a user."""
    app_added_at = db.session.scalar(
        select(TotpAuthenticator.confirmed_at).where(
            TotpAuthenticator.staff_user_id == user_id, TotpAuthenticator.confirmed_at.is_not(None)
        )
    )
    codes_left = db.session.scalar(
        select(func.count()).where(RecoveryCode.staff_user_id == user_id, RecoveryCode.used_at.is_(None))
    )
    return FactorOverview(app_added_at, list_passkeys(user_id), codes_left or 0)


def has_second_factor(user_id: int) -> bool:
    """Return whether a user has an authenticator app or a passkey."""
    return bool(db.session.scalar(select(_factor_exists(user_id))))


def list_users_with_second_factor() -> set[int]:
    """Return the ids of all users who have an authenticator app or a passkey."""
    return set(db.session.scalars(select(StaffUser.id).where(_factor_exists(StaffUser.id))))


def list_passkeys(user_id: int) -> Sequence[Passkey]:
    """Return the passkeys of a user, oldest first."""
    return db.session.scalars(select(Passkey).where(Passkey.staff_user_id == user_id).order_by(Passkey.id)).all()


def find_passkey(credential_id: bytes) -> Passkey | None:
    """Return the passkey with this credential id, or None."""
    return db.session.scalar(select(Passkey).where(Passkey.credential_id == credential_id))


def find_totp_authenticator(user_id: int) -> TotpAuthenticator | None:
    """Return the confirmed authenticator app of a user, or None."""
    return db.session.scalar(
        select(TotpAuthenticator).where(
            TotpAuthenticator.staff_user_id == user_id, TotpAuthenticator.confirmed_at.is_not(None)
        )
    )


def find_pending_totp_authenticator(user_id: int) -> TotpAuthenticator | None:
    """Return the authenticator app that a user is setting up, or None."""
    return db.session.scalar(
        select(TotpAuthenticator).where(
            TotpAuthenticator.staff_user_id == user_id, TotpAuthenticator.confirmed_at.is_(None)
        )
    )


def find_active_totp_by_email(email: str) -> TotpAuthenticator | None:
    """Return the confirmed authenticator app of the active user with a normalised email address, or None."""
    return db.session.scalar(
        select(TotpAuthenticator)
        .join(StaffUser, StaffUser.id == TotpAuthenticator.staff_user_id)
        .where(StaffUser.email == email, StaffUser.disabled_at.is_(None), TotpAuthenticator.confirmed_at.is_not(None))
    )


def _factor_exists(user_id: int | SQLColumnExpression[int]) -> ColumnElement[bool]:
    return or_(
        exists().where(TotpAuthenticator.staff_user_id == user_id, TotpAuthenticator.confirmed_at.is_not(None)),
        exists().where(Passkey.staff_user_id == user_id),
    )
