"""Actions on the sessions of staff."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from flask_babel import gettext as _
from sqlalchemy import ColumnElement, delete, func, not_, select, update

from webapp.accounts import notices, passwords, staff_sessions
from webapp.accounts import queries as account_queries
from webapp.accounts.actions import check_is_active, lock_existing_staff_user, roll_back_and_raise
from webapp.accounts.audit import record_audit_entry, record_sign_in
from webapp.accounts.models import StaffDevice, StaffSession, StaffUser
from webapp.accounts.session_queries import LAST_USE_IS_STALE
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.core.sessions import DEVICE_DAYS
from webapp.core.user_agents import describe_user_agent


class SessionClient(NamedTuple):
    """The client of a session: its network address and its cleaned User-Agent header."""

    address: str
    user_agent: str


class StartedSession(NamedTuple):
    """A new session, with the tokens for the cookies of the browser."""

    id: int
    token: str
    device_token: str


def start_staff_session(
    user_id: int,
    client: SessionClient,
    device_tokens: Sequence[str] = (),
    replaced_token: str | None = None,
    method: str | None = None,
    has_second_factor: bool = False,
    is_new_device_expected: bool = False,
    is_recent: bool = True,
    is_second_factor_recent: bool = True,
) -> StartedSession:
    """Start a session of a user who has been authenticated.

    The user may be locked by the current transaction, which this commits. They are notified by email if they had not
    signed in with this browser before.

    :param device_tokens: the tokens in the device cookie of the browser.
    :param replaced_token: the token of the session that the browser had before; that session ends.
    :param method: how the user has signed in, such as `password` or `passkey`, for the audit log; None when it was not
        by signing in.
    :param has_second_factor: whether a second factor was verified.
    :param is_new_device_expected: True for no such notice: the user has just joined or set a new password.
    :param is_recent: False if the first factor may have been verified long ago, by an OpenID Connect provider.
    :param is_second_factor_recent: the same for the second factor, by the provider or in an earlier session.
    :raises DomainError: `disabled` when the user has been disabled.
    """
    db.session.flush()
    user = lock_existing_staff_user(user_id)
    check_is_active(user)
    if replaced_token is not None:
        _delete_session(replaced_token)
    device_id, device_token, is_new_device = staff_sessions.remember_device(user_id, device_tokens)
    if is_new_device and not is_new_device_expected:
        notices.notify_new_device(user, describe_user_agent(client.user_agent), client.address)
    session_id, token = staff_sessions.insert_session(
        user_id, device_id, client.address, client.user_agent, has_second_factor, is_recent, is_second_factor_recent
    )
    if method is not None:
        user.last_sign_in_at = datetime.now(UTC)
        record_sign_in(user.email, session_id, method)
    db.session.commit()
    notices.enqueue_account_emails()
    return StartedSession(session_id, token, device_token)


def update_last_use(session_id: int, client: SessionClient) -> None:
    """Record the use of a session and its client, once a minute.

    Only one of several concurrent requests writes; the others return immediately. It is a transaction of its own, since
    a page may load its user after other writes.
    """
    stale = select(StaffSession.id).where(StaffSession.id == session_id, LAST_USE_IS_STALE)
    use = (
        update(StaffSession)
        .where(StaffSession.id.in_(stale.with_for_update(skip_locked=True)))
        .values(last_used_at=func.now(), client_address=client.address, user_agent=client.user_agent)
    )
    with db.engine.begin() as connection:
        connection.execute(use)


def confirm_password(user_id: int, session_id: int, password: str) -> str:
    """Record that a user has entered the password again in a session; return its new token.

    The former token becomes invalid, so that a copy of the cookie does not gain what the password allows (OWASP ASVS
    5.0, 7.2.4).

    :raises InvalidInput: `password_wrong` when it is wrong.
    :raises DomainError: `session_ended` when the session has just ended.
    """
    user = account_queries.find_staff_user(user_id)
    if user is None or not passwords.verify_password(user.password_hash, password):
        raise InvalidInput(FieldError("recent_password", "password_wrong", _("This is not your password.")))
    token = _replace_token(user, session_id, authenticated_at=func.now())
    record_audit_entry(user.email, "password.confirmed", user.email)
    db.session.commit()
    return token


def record_second_factor(user: StaffUser, session_id: int, method: str | None = None) -> str:
    """Record that a user has verified a second factor in a session, or set it up; return the new token of the session.

    The former token becomes invalid, as in `confirm_password`.

    :param method: the factor that was verified; None for one that was set up, since that has its own audit entry.
    :raises DomainError: `session_ended` when the session has just ended.
    """
    token = _replace_token(user, session_id, second_factor_at=func.now())
    if method is not None:
        record_audit_entry(user.email, "second_factor.confirmed", user.email, method=method)
    db.session.commit()
    return token


def _replace_token(user: StaffUser, session_id: int, **values: ColumnElement[Any]) -> str:
    """Change a session of a user and give it a new token; return it. Does not commit.

    :raises DomainError: `session_ended` when the session has just ended.
    """
    token = staff_sessions.create_token()
    row = db.session.execute(
        update(StaffSession)
        .where(StaffSession.id == session_id, StaffSession.staff_user_id == user.id)
        .values(token_hash=staff_sessions.hash_session_token(token), **values)
        .returning(StaffSession.id)
    ).first()
    if row is None:
        message = _("Your session has ended. Sign in again and repeat the step.")
        roll_back_and_raise(DomainError("session_ended", message, 401))
    return token


def sign_out(token: str) -> None:
    """End the session with a token. Idempotent."""
    email = _delete_session(token)
    if email:
        record_audit_entry(email, "staff.signed_out", email)
    db.session.commit()


def end_own_session(user: StaffUser, session_id: int, current_id: int) -> None:
    """End a session of a user, who asked for it in the current one. Idempotent.

    Its browser becomes unknown, unless it is the current one.
    """
    own = StaffSession.id == session_id, StaffSession.staff_user_id == user.id
    device_ids = select(StaffSession.staff_device_id).where(*own)
    current_device_ids = select(StaffSession.staff_device_id).where(
        StaffSession.id == current_id, StaffSession.staff_device_id.is_not(None)
    )
    db.session.execute(
        delete(StaffDevice).where(StaffDevice.id.in_(device_ids), StaffDevice.id.not_in(current_device_ids))
    )
    if db.session.execute(delete(StaffSession).where(*own).returning(StaffSession.id)).first():
        record_audit_entry(user.email, "staff.session_ended", user.email)
    db.session.commit()


def end_other_sessions(user: StaffUser, session_id: int) -> None:
    """End all sessions of a user except one; all browsers except that of this session become unknown."""
    staff_sessions.delete_user_sessions(user.id, except_id=session_id)
    kept_device_ids = select(StaffSession.staff_device_id).where(
        StaffSession.staff_user_id == user.id, StaffSession.staff_device_id.is_not(None)
    )
    db.session.execute(
        delete(StaffDevice).where(StaffDevice.staff_user_id == user.id, StaffDevice.id.not_in(kept_device_ids))
    )
    record_audit_entry(user.email, "staff.sessions_ended", user.email)
    db.session.commit()


def delete_expired_sessions() -> None:
    """Delete the sessions that have expired, and the devices that were not used for `DEVICE_DAYS`."""
    db.session.execute(delete(StaffSession).where(not_(staff_sessions.is_session_active())))
    db.session.execute(delete(StaffDevice).where(StaffDevice.last_used_at < func.now() - timedelta(days=DEVICE_DAYS)))
    db.session.commit()


def _delete_session(token: str) -> str | None:
    """Delete the session with a token; return the email address of its user, or None without such a session."""
    session = StaffSession.token_hash == staff_sessions.hash_session_token(token)
    user_id = db.session.scalar(delete(StaffSession).where(session).returning(StaffSession.staff_user_id))
    user = account_queries.find_staff_user(user_id) if user_id is not None else None
    return user.email if user is not None else None
