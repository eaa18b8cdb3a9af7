"""Queries for the sessions and devices of staff."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import func, select

from webapp.accounts.models import StaffDevice, StaffSession, StaffUser
from webapp.accounts.staff_sessions import (
    has_recent_password,
    has_recent_second_factor,
    hash_session_token,
    is_session_active,
)
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db

LAST_USE_IS_STALE = StaffSession.last_used_at < func.now() - timedelta(minutes=1)


class LoadedSession(NamedTuple):
    """The session of a request.

    :ivar has_recent_password: whether the password was entered recently.
    :ivar has_second_factor: whether a second factor was verified in it.
    :ivar has_recent_second_factor: whether that was recently.
    :ivar is_last_use_stale: whether the time of its last use is to be updated.
    :ivar client_address: the address of its last use.
    """

    id: int
    user: StaffUser
    has_recent_password: bool
    has_second_factor: bool
    has_recent_second_factor: bool
    is_last_use_stale: bool
    client_address: str


def find_staff_session(token: str) -> LoadedSession | None:
    """Return the session with a token and its user, by one statement.

    None if it has ended or expired, or the user is disabled.
    """
    row = db.session.execute(
        select(
            StaffSession.id,
            StaffUser,
            has_recent_password(),
            StaffSession.second_factor_at.is_not(None),
            has_recent_second_factor(),
            LAST_USE_IS_STALE,
            StaffSession.client_address,
        )
        .join(StaffUser, StaffUser.id == StaffSession.staff_user_id)
        .where(
            StaffSession.token_hash == hash_session_token(token),
            StaffUser.disabled_at.is_(None),
            is_session_active(),
        )
    ).one_or_none()
    return None if row is None else LoadedSession(*row)


def list_staff_sessions(user_id: int) -> Sequence[StaffSession]:
    """Return the sessions of a user that have not expired, last used first."""
    return db.session.scalars(
        select(StaffSession)
        .where(StaffSession.staff_user_id == user_id, is_session_active())
        .order_by(StaffSession.last_used_at.desc(), StaffSession.id.desc())
    ).all()


def find_device_id(email: str, tokens: Sequence[str]) -> int | None:
    """Return the device by which a browser is known for an account, or None.

    :param email: as entered.
    :param tokens: the tokens in the cookie of the browser.
    """
    if not tokens:
        return None
    try:
        email = normalise_email(email)
    except InvalidInput:
        return None
    return db.session.scalar(
        select(StaffDevice.id)
        .join(StaffUser, StaffUser.id == StaffDevice.staff_user_id)
        .where(StaffUser.email == email, StaffDevice.token_hash.in_([hash_session_token(token) for token in tokens]))
        .limit(1)
    )
