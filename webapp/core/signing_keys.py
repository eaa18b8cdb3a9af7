"""Signing keys: versioned secrets, with a purpose each.

They sign redemption ids, personal links, personal codes, API keys, unsubscribe links, return paths and Message-IDs.
The keys are rows, so that changing SECRET_KEY only ends sessions. Each process caches them for a minute. Another
process may have signed with a key that is newer than the cache. Therefore, before a signature is rejected, the caller
passes the revision of the keys that it has just read (`list_accepted_keys`), or the table is read again, at most once a
second (`find_new_keys`).
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

from flask import current_app
from itsdangerous import BadData, URLSafeSerializer
from itsdangerous.encoding import base64_encode
from sqlalchemy import Connection, Row, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model, db


class SigningKey(Model):
    """One secret of one purpose.

    The highest version signs; every version that is not revoked verifies.
    """

    __tablename__ = "signing_key"
    purpose: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    secret: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None] = mapped_column("retired_at")  # The column keeps its former name.


class KeyVersion(NamedTuple):
    """The public part of a signing key."""

    purpose: str
    version: int
    created_at: datetime
    revoked_at: datetime | None


class _CachedKeys(NamedTuple):
    keys: list[tuple[int, bytes]]
    # Rows are added and revoked, never deleted: the number of rows plus revocations grows by one with each change.
    revision: int
    read_at: float  # `time.monotonic()`, not a date


CACHE_SECONDS = 60
# Minimum seconds between two reads of the table, so that forged signatures do not cause many.
MIN_REFRESH_SECONDS = 1
# The label is needed because the column has another name than the attribute.
_SELECT_KEYS = select(SigningKey.version, SigningKey.secret, SigningKey.revoked_at.label("revoked_at")).order_by(
    SigningKey.version.desc()
)
_cache: dict[tuple[str, str], _CachedKeys] = {}
_lock = threading.Lock()
_refresh_lock = threading.Lock()


def list_accepted_keys(
    purpose: str, revision: int = 0, connection: Connection | None = None
) -> list[tuple[int, bytes]]:
    """Return the accepted keys of a purpose as (version, secret), newest first.

    The first key is created if there is none.

    :param revision: the number of keys created plus keys revoked for this purpose, as just read by the caller; a cache
        with a lower revision is reloaded. 0 accepts every cache that is not older than `CACHE_SECONDS`.
    :param connection: a connection without an open transaction that reads the table if necessary; by default one of the
        pool.
    """
    cached = _get_fresh(purpose, revision)
    if cached is None and connection is not None:
        # Without the lock: its holder may wait for a connection of the pool, and this thread has one.
        cached = _load_keys(purpose, connection)
    elif cached is None:
        with _refresh_lock:
            # Only one of several threads with an outdated cache reads the table; the others use its result.
            cached = _get_fresh(purpose, revision) or _load_keys(purpose)
    return cached.keys


def _get_fresh(purpose: str, revision: int) -> _CachedKeys | None:
    cached = _get_cached(purpose)
    if cached and cached.revision >= revision and cached.read_at > time.monotonic() - CACHE_SECONDS:
        return cached
    return None


def find_new_keys(purpose: str) -> list[tuple[int, bytes]]:
    """Read the table again; return keys that were created since the previous read.

    It is read at most once per `MIN_REFRESH_SECONDS`; until then the result is empty.
    """
    cached = _get_cached(purpose)
    if cached and cached.read_at > time.monotonic() - MIN_REFRESH_SECONDS:
        return []
    known_versions = {version for version, _ in cached.keys} if cached else set()
    return [(version, secret) for version, secret in _load_keys(purpose).keys if version not in known_versions]


def get_current_secret(purpose: str, connection: Connection | None = None) -> bytes:
    """Return the secret that signs now.

    :param connection: see `list_accepted_keys`.
    """
    return list_accepted_keys(purpose, connection=connection)[0][1]


def find_secret(purpose: str, version: int) -> bytes | None:
    """Return the secret of a version; None if it is not accepted.

    A version that another process has just created is found, too.
    """
    return dict(list_accepted_keys(purpose)).get(version) or dict(find_new_keys(purpose)).get(version)


def clear_key_cache() -> None:
    """Clear the cache, so that the next look-up reads the table."""
    with _lock:
        _cache.clear()


def sign_token(purpose: str, payload: list[int]) -> str:
    """Return a short URL-safe signed token that contains the payload and never expires."""
    return str(URLSafeSerializer(get_current_secret(purpose), salt=purpose).dumps(payload))


def create_token_signer(purpose: str) -> Callable[[list[int]], str]:
    """Return a function that signs many payloads as `sign_token` does.

    The key is derived only once.
    """
    derived_key = URLSafeSerializer(get_current_secret(purpose), salt=purpose).make_signer(purpose).derive_key()

    def sign_payload(payload: list[int]) -> str:
        # The format of URLSafeSerializer: JSON and its HMAC-SHA1, both encoded with Base64.
        encoded = base64_encode(f"[{','.join(map(str, payload))}]")
        return f"{encoded.decode()}.{base64_encode(hmac.digest(derived_key, encoded, 'sha1')).decode()}"

    return sign_payload


def verify_token(purpose: str, token: str) -> list[int] | None:
    """Return the payload of a token; None unless an accepted key has signed it."""
    payload = _verify_with(purpose, token, list_accepted_keys(purpose))
    return _verify_with(purpose, token, find_new_keys(purpose)) if payload is None else payload


def list_key_versions(purpose: str) -> list[KeyVersion]:
    """Return every version of a purpose without its secret, newest first.

    Revoked versions are included.
    """
    rows = db.session.execute(
        select(SigningKey.purpose, SigningKey.version, SigningKey.created_at, SigningKey.revoked_at)
        .where(SigningKey.purpose == purpose)
        .order_by(SigningKey.version.desc())
    )
    return [KeyVersion(*row) for row in rows]


def lock_signing_keys() -> None:
    """Let no other transaction add or revoke key versions until this one ends.

    The first version of a purpose is created without this lock.
    """
    db.session.execute(text("select pg_advisory_xact_lock(hashtext('onecode.signing_key'))"))


def add_key_version(purpose: str) -> int:
    """Add the next version; return its number.

    The caller holds `lock_signing_keys`, commits and then calls `clear_key_cache`.
    """
    last = db.session.scalar(select(func.max(SigningKey.version)).where(SigningKey.purpose == purpose)) or 0
    db.session.execute(insert(SigningKey).values(purpose=purpose, version=last + 1, secret=secrets.token_bytes(32)))
    return last + 1


def revoke_key_version(purpose: str, version: int) -> None:
    """Revoke a version: it no longer verifies.

    The caller holds `lock_signing_keys`, commits and then calls `clear_key_cache`.
    """
    db.session.execute(
        update(SigningKey)
        .where(SigningKey.purpose == purpose, SigningKey.version == version, SigningKey.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .execution_options(synchronize_session=False)
    )


def _verify_with(purpose: str, token: str, candidates: Iterable[tuple[int, bytes]]) -> list[int] | None:
    for _, secret in candidates:
        try:
            payload = URLSafeSerializer(secret, salt=purpose).loads(token)
        except BadData:
            continue
        if isinstance(payload, list) and all(isinstance(part, int) for part in payload):
            return payload
    return None


def _cache_id(purpose: str) -> tuple[str, str]:
    return current_app.config["SETTINGS"].database_url, purpose


def _get_cached(purpose: str) -> _CachedKeys | None:
    with _lock:
        return _cache.get(_cache_id(purpose))


def _load_keys(purpose: str, connection: Connection | None = None) -> _CachedKeys:
    # The time is taken before the rows are read, so that keys created during the read count as unknown.
    read_at = time.monotonic()
    if connection is None:
        # It uses its own connection and returns it immediately: the caller may need another one from the pool.
        with db.engine.connect() as own_connection:
            rows = _select_or_create_keys(purpose, own_connection)
    else:
        rows = _select_or_create_keys(purpose, connection)
    accepted = [(row.version, bytes(row.secret)) for row in rows if row.revoked_at is None]
    loaded = _CachedKeys(accepted, len(rows) + sum(row.revoked_at is not None for row in rows), read_at)
    cache_id = _cache_id(purpose)
    with _lock:
        previous = _cache.get(cache_id)
        if previous is None or previous.read_at < read_at:
            _cache[cache_id] = loaded
    return loaded


def _select_or_create_keys(purpose: str, connection: Connection) -> list[Row[int, bytes, datetime | None]]:
    """Return the rows of a purpose; create version 1 if there are none.

    Each step is a transaction of its own, so no transaction of the caller rolls the key back or delays it.
    """
    select_keys = _SELECT_KEYS.where(SigningKey.purpose == purpose)
    with connection.begin() as transaction:
        rows = list(connection.execute(select_keys))
        # Not committed: commits may be refused while the database can still be read.
        transaction.rollback()
    if rows:
        return rows
    first = insert(SigningKey).values(purpose=purpose, version=1, secret=secrets.token_bytes(32))
    with connection.begin():
        connection.execute(first.on_conflict_do_nothing())
        return list(connection.execute(select_keys))
