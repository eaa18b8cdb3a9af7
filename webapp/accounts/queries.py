"""Every SELECT about staff, keys and the trail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Select, and_, bindparam, exists, func, or_, select

from webapp.accounts.models import ApiKey, AuditEntry, Invitation, StaffUser
from webapp.core.extensions import db

AUDIT_PAGE_SIZE = 50

_LAST_USED_IS_STALE = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(minutes=1))
# Every call of a machine asks this, so the statement is put together once.
_API_KEY_BY_PUBLIC_ID = select(
    ApiKey.id,
    ApiKey.name,
    ApiKey.scopes,
    ApiKey.secret_hash,
    ApiKey.key_version,
    and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())).label("works"),
    _LAST_USED_IS_STALE.label("is_unmarked"),
).where(ApiKey.public_id == bindparam("public_id"))


class AuditPage(NamedTuple):
    """A page of the trail, newest first. `newer` and `older` are the ids to go on from, when there is more."""

    entries: Sequence[AuditEntry]
    newer: int | None
    older: int | None


def has_active_admin() -> bool:
    """Whether anybody can administer."""
    return bool(db.session.scalar(select(exists().where(StaffUser.disabled_at.is_(None), StaffUser.role == "admin"))))


def find_session_user(user_id: int, session_version: int) -> StaffUser | None:
    """The user of a session, if the session has not been ended since."""
    return db.session.scalar(
        select(StaffUser).where(
            StaffUser.id == user_id,
            StaffUser.session_version == session_version,
            StaffUser.disabled_at.is_(None),
        )
    )


def find_staff_user_by_email(email: str) -> StaffUser | None:
    """:param email: normalised."""
    return db.session.scalar(select(StaffUser).where(StaffUser.email == email))


def find_staff_user(user_id: int) -> StaffUser | None:
    return db.session.get(StaffUser, user_id)


def lock_staff_user(user_id: int) -> StaffUser | None:
    """The user as of now, kept from other changes until the transaction ends."""
    return db.session.get(StaffUser, user_id, populate_existing=True, with_for_update=True)


def lock_active_admins() -> list[int]:
    """The ids of those who can administer, kept from other changes; locked in one order, so that nobody deadlocks."""
    return list(
        db.session.scalars(
            select(StaffUser.id)
            .where(StaffUser.role == "admin", StaffUser.disabled_at.is_(None))
            .order_by(StaffUser.id)
            .with_for_update()
        )
    )


def list_staff_users() -> Sequence[StaffUser]:
    """All staff, those who can sign in first."""
    return db.session.scalars(
        select(StaffUser).order_by(StaffUser.disabled_at.is_not(None), func.lower(StaffUser.name), StaffUser.id)
    ).all()


def load_staff_names() -> dict[str, str]:
    """What staff are called, by their e-mails; of two that are called the same neither is in it."""
    alone = select(StaffUser.name).group_by(StaffUser.name).having(func.count() == 1)
    wanted = select(StaffUser.email, StaffUser.name).where(StaffUser.name.in_(alone))
    return {row.email: row.name for row in db.session.execute(wanted)}


def find_open_invitation(token_hash: bytes) -> Invitation | None:
    """An invitation that can still be used."""
    return db.session.scalar(
        select(Invitation).where(
            Invitation.token_hash == token_hash, Invitation.used_at.is_(None), Invitation.expires_at > func.now()
        )
    )


def list_open_invitations() -> Sequence[Invitation]:
    """Links that somebody could still use, the newest first."""
    return db.session.scalars(
        select(Invitation)
        .where(Invitation.used_at.is_(None), Invitation.expires_at > func.now())
        .order_by(Invitation.id.desc())
    ).all()


def find_last_audit_entry(action: str, subject: str) -> AuditEntry | None:
    """The latest entry of the trail about a deed to something."""
    wanted = select(AuditEntry).where(AuditEntry.action == action, AuditEntry.subject == subject)
    return db.session.scalar(wanted.order_by(AuditEntry.id.desc()).limit(1))


def list_api_keys() -> Sequence[ApiKey]:
    """All keys, those that work first."""
    return db.session.scalars(select(ApiKey).order_by(ApiKey.revoked_at.is_not(None), ApiKey.id.desc())).all()


class ApiKeyRow(NamedTuple):
    """What proves a key, and whether it `works` now and its last use `is_unmarked`."""

    id: int
    name: str
    scopes: list[str]
    secret_hash: bytes
    key_version: int
    is_valid: bool
    is_last_used_stale: bool


def find_api_key(public_id: str) -> ApiKeyRow | None:
    """The key of a public id: one look-up in an index."""
    row = db.session.execute(_API_KEY_BY_PUBLIC_ID, {"public_id": public_id}).one_or_none()
    return None if row is None else ApiKeyRow(*row)


def select_api_key_with_stale_use(key_id: int) -> Select[int]:
    """The key, if its last use was noted more than a minute ago and nobody is noting it just now."""
    return select(ApiKey.id).where(ApiKey.id == key_id, _LAST_USED_IS_STALE).with_for_update(skip_locked=True)


def load_audit_page(before: int | None = None, after: int | None = None) -> AuditPage:
    """A page of the trail: the newest, the one before an id, or the one after it."""
    query = select(AuditEntry).limit(AUDIT_PAGE_SIZE + 1)
    if after is not None:
        found = db.session.scalars(query.where(AuditEntry.id > after).order_by(AuditEntry.id)).all()
        entries = list(reversed(found[:AUDIT_PAGE_SIZE]))
        newer, older = len(found) > AUDIT_PAGE_SIZE, bool(entries)
    else:
        if before is not None:
            query = query.where(AuditEntry.id < before)
        found = db.session.scalars(query.order_by(AuditEntry.id.desc())).all()
        entries = list(found[:AUDIT_PAGE_SIZE])
        newer, older = before is not None and bool(entries), len(found) > AUDIT_PAGE_SIZE
    return AuditPage(entries, entries[0].id if newer else None, entries[-1].id if older else None)


def fetch_database_time() -> datetime:
    """What time it is for the database at this very moment."""
    now: datetime = db.session.execute(select(func.clock_timestamp())).scalar_one()
    return now
