"""Sessions of staff, and the devices (browsers) that they signed in with: tokens, time limits, deletion.

Only hashes of the tokens are stored. Nothing here commits.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from flask import current_app
from sqlalchemy import ColumnElement, SQLColumnExpression, and_, delete, func, insert, select, update

from webapp.accounts.models import StaffDevice, StaffSession
from webapp.core.extensions import db
from webapp.core.settings import Settings

# The oldest sessions and devices of a user above these numbers end.
MAX_SESSIONS_PER_USER = 50
MAX_DEVICES_PER_USER = 50
# How long certain actions are allowed after the password was entered, or the second factor verified.
RECENT_PASSWORD_TIME = timedelta(minutes=15)
# Times may be this far in the future, since the clock of the database may be set back a little.
_CLOCK_TOLERANCE = timedelta(minutes=1)


def create_token() -> str:
    """Return a new random token of 256 bits."""
    return secrets.token_urlsafe(32)


def hash_session_token(token: str) -> bytes:
    """Return the hash under which the token of a session or a device is stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def is_session_active() -> ColumnElement[bool]:
    """Return the condition for sessions that are within both limits, by the clock of the database.

    A time in the future means that this clock was set back; such a session ends.
    """
    settings: Settings = current_app.config["SETTINGS"]
    latest = func.now() + _CLOCK_TOLERANCE
    return and_(
        StaffSession.created_at > func.now() - timedelta(days=settings.session_max_days),
        StaffSession.created_at <= latest,
        StaffSession.last_used_at > func.now() - timedelta(hours=settings.session_idle_hours),
        StaffSession.last_used_at <= latest,
    )


def has_recent_password() -> ColumnElement[bool]:
    """Return the condition for sessions in which the password was entered recently."""
    return _is_recent(StaffSession.authenticated_at)


def has_recent_second_factor() -> ColumnElement[bool]:
    """Return the condition for sessions in which a second factor was verified recently."""
    return and_(StaffSession.second_factor_at.is_not(None), _is_recent(StaffSession.second_factor_at))


def _is_recent(column: SQLColumnExpression[datetime] | SQLColumnExpression[datetime | None]) -> ColumnElement[bool]:
    return and_(column > func.now() - RECENT_PASSWORD_TIME, column <= func.now() + _CLOCK_TOLERANCE)


def insert_session(
    user_id: int,
    device_id: int,
    client_address: str,
    user_agent: str,
    has_second_factor: bool,
    is_recent: bool,
    is_second_factor_recent: bool,
) -> tuple[int, str]:
    """Insert a session; return its id and its token. The oldest sessions above the maximum end.

    :param is_recent: whether the user has just been authenticated; False if it may have been long ago.
    :param is_second_factor_recent: the same for the second factor, if there is one.
    """
    long_ago = func.now() - RECENT_PASSWORD_TIME
    token = create_token()
    row = insert(StaffSession).values(
        token_hash=hash_session_token(token),
        staff_user_id=user_id,
        staff_device_id=device_id,
        client_address=client_address,
        user_agent=user_agent,
        authenticated_at=func.now() if is_recent else long_ago,
        second_factor_at=(func.now() if is_second_factor_recent else long_ago) if has_second_factor else None,
    )
    session_id: int = db.session.execute(row.returning(StaffSession.id)).scalar_one()
    _delete_oldest(StaffSession, user_id, MAX_SESSIONS_PER_USER)
    return session_id, token


def remember_device(user_id: int, known_tokens: Sequence[str]) -> tuple[int, str, bool]:
    """Record that a user has signed in with a browser; return the id and token of the device, and whether it is new.

    :param known_tokens: the tokens in the cookie of the browser, which may belong to other users.
    """
    tokens = {hash_session_token(token): token for token in known_tokens}
    known_device = db.session.execute(
        update(StaffDevice)
        .where(StaffDevice.staff_user_id == user_id, StaffDevice.token_hash.in_(tokens))
        .values(last_used_at=func.now())
        .returning(StaffDevice.id, StaffDevice.token_hash)
    ).first()
    if known_device is not None:
        return known_device.id, tokens[bytes(known_device.token_hash)], False
    token = create_token()
    row = insert(StaffDevice).values(token_hash=hash_session_token(token), staff_user_id=user_id)
    device_id: int = db.session.execute(row.returning(StaffDevice.id)).scalar_one()
    _delete_oldest(StaffDevice, user_id, MAX_DEVICES_PER_USER)
    return device_id, token, True


def delete_user_sessions(user_id: int, except_id: int | None = None) -> None:
    """Delete the sessions of a user, except one."""
    sessions = delete(StaffSession).where(StaffSession.staff_user_id == user_id)
    if except_id is not None:
        sessions = sessions.where(StaffSession.id != except_id)
    db.session.execute(sessions)


def delete_user_sessions_and_devices(user_id: int) -> None:
    """Delete the sessions and the devices of a user: every browser is unknown again."""
    delete_user_sessions(user_id)
    db.session.execute(delete(StaffDevice).where(StaffDevice.staff_user_id == user_id))


def _delete_oldest(model: type[StaffSession] | type[StaffDevice], user_id: int, kept: int) -> None:
    newest_first = (model.last_used_at.desc(), model.id.desc())
    oldest = select(model.id).where(model.staff_user_id == user_id).order_by(*newest_first).offset(kept)
    db.session.execute(delete(model).where(model.id.in_(oldest)))
