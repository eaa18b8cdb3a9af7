"""Queries for staff users, invitations, API keys and the audit log."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, or_, select
from sqlalchemy.orm import aliased

from webapp.accounts.models import ApiKey, AuditEntry, Invitation, StaffUser
from webapp.core.extensions import db

_LAST_USED_IS_STALE = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(minutes=1))
# Every API call executes this statement, so it is built once.
_API_KEY_BY_PUBLIC_ID = select(
    ApiKey.id,
    ApiKey.name,
    ApiKey.scopes,
    ApiKey.secret_hash,
    ApiKey.key_version,
    and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())),
    _LAST_USED_IS_STALE,
).where(ApiKey.public_id == bindparam("public_id"))


# A link works as long as its creator is an active administrator. Commands have no account.
_Creator = aliased(StaffUser)
IS_LINK_CREATOR_ADMIN = or_(
    Invitation.created_by.is_(None),
    exists().where(_Creator.id == Invitation.created_by, _Creator.disabled_at.is_(None), _Creator.role == "admin"),
)


def has_active_admin() -> bool:
    """Return whether there is an active administrator."""
    return bool(db.session.scalar(select(exists().where(StaffUser.disabled_at.is_(None), StaffUser.role == "admin"))))


def find_staff_user_by_email(email: str) -> StaffUser | None:
    """Return the user with a normalised email address, or None."""
    return db.session.scalar(select(StaffUser).where(StaffUser.email == email))


def find_staff_user(user_id: int) -> StaffUser | None:
    """Return the user with this id, or None."""
    return db.session.get(StaffUser, user_id)


def lock_staff_user(user_id: int) -> StaffUser | None:
    """Return the current row of a user, locked until the transaction ends, or None.

    Rows that refer to the user can still be inserted.
    """
    return db.session.get(StaffUser, user_id, populate_existing=True, with_for_update={"key_share": True})


def lock_active_admins() -> list[int]:
    """Lock the active administrators, in the order of their ids; return the ids.

    The order avoids deadlocks.
    """
    return list(
        db.session.scalars(
            select(StaffUser.id)
            .where(StaffUser.role == "admin", StaffUser.disabled_at.is_(None))
            .order_by(StaffUser.id)
            .with_for_update(key_share=True)
        )
    )


def list_staff_users() -> Sequence[StaffUser]:
    """Return all users who are not erased, active ones first."""
    return db.session.scalars(
        select(StaffUser)
        .where(StaffUser.erased_at.is_(None))
        .order_by(StaffUser.disabled_at.is_not(None), func.lower(StaffUser.name), StaffUser.id)
    ).all()


def load_staff_names() -> dict[str, str]:
    """Return the names of users by email address, without those that could be mistaken for another user or client.

    Users choose their names, so one may choose that of a colleague, in other letters, or the address of a colleague.
    """
    users = db.session.execute(select(StaffUser.email, StaffUser.name)).all()
    uses = Counter(_fold_name(user.name) for user in users)
    return {
        user.email: user.name
        for user in users
        if uses[_fold_name(user.name)] == 1 and "@" not in user.name and not _fold_name(user.name).startswith("apikey")
    }


def _fold_name(name: str) -> str:
    """Return a name without case, spaces and variants of letters."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def has_token(token_hash: bytes) -> ColumnElement[bool]:
    """Return the condition that an invitation has this token, in the link that was shown or in the emailed one."""
    return or_(Invitation.token_hash == token_hash, Invitation.emailed_token_hash == token_hash)


def find_unused_invitation(token_hash: bytes) -> Invitation | None:
    """Return the invitation with this token, if it can still be used."""
    return db.session.scalar(
        select(Invitation).where(
            has_token(token_hash),
            Invitation.used_at.is_(None),
            Invitation.expires_at > func.now(),
            IS_LINK_CREATOR_ADMIN,
        )
    )


def list_unused_invitations() -> Sequence[Invitation]:
    """Return the invitations that can still be used, newest first."""
    return db.session.scalars(
        select(Invitation)
        .where(Invitation.used_at.is_(None), Invitation.expires_at > func.now(), IS_LINK_CREATOR_ADMIN)
        .order_by(Invitation.id.desc())
    ).all()


def find_staff_users(user_ids: Iterable[int | None]) -> dict[int, StaffUser]:
    """Return the users with these ids, by id."""
    users = db.session.scalars(select(StaffUser).where(StaffUser.id.in_(set(user_ids) - {None})))
    return {user.id: user for user in users}


def list_api_keys() -> Sequence[ApiKey]:
    """Return all API keys, revoked ones last."""
    return db.session.scalars(select(ApiKey).order_by(ApiKey.revoked_at.is_not(None), ApiKey.id.desc())).all()


def list_api_key_creators() -> dict[int, str]:
    """Return who created each API key, by id, as far as the audit log still tells."""
    # Both rows were written in one transaction, so that they have the same time.
    made = and_(AuditEntry.at == ApiKey.created_at, AuditEntry.action == "api_key.created")
    rows = db.session.execute(select(ApiKey.id, AuditEntry.actor).join(AuditEntry, made))
    return {row.id: row.actor for row in rows}


def list_working_api_keys_of(email: str) -> list[str]:
    """Return the names of the API keys that a user has created and that still work."""
    creators = list_api_key_creators()
    working = select(ApiKey.id, ApiKey.name).where(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    )
    rows = db.session.execute(working.order_by(func.lower(ApiKey.name)))
    return [row.name for row in rows if creators.get(row.id) == email]


class ApiKeyRow(NamedTuple):
    """The columns of an API key that authentication needs.

    :ivar is_last_used_stale: whether the time of its last use is to be updated.
    """

    id: int
    name: str
    scopes: list[str]
    secret_hash: bytes
    key_version: int
    is_valid: bool
    is_last_used_stale: bool


def find_api_key(public_id: str) -> ApiKeyRow | None:
    """Return the key with this public id by one index look-up, or None."""
    row = db.session.execute(_API_KEY_BY_PUBLIC_ID, {"public_id": public_id}).one_or_none()
    return None if row is None else ApiKeyRow(*row)


def select_api_key_with_stale_use(key_id: int) -> Select[int]:
    """Return a query that locks a key whose last use is older than a minute.

    It selects nothing if another transaction has locked the key.
    """
    return select(ApiKey.id).where(ApiKey.id == key_id, _LAST_USED_IS_STALE).with_for_update(skip_locked=True)
