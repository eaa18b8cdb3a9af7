"""The keys behind ids, links, personal codes and API keys.

They are versioned rows, so that changing SECRET_KEY only ends sessions. A process remembers them for a minute. Another
one may have signed with a key that is younger than that: whoever meets what no known key explains has the table read
again before saying no: by the revision of the table (`keys`), or by asking what is new (`newly_known`), at most
once a second.
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
from sqlalchemy import Row, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model, db


class SigningKey(Model):
    """One secret of one purpose. The highest version signs; every version that was not retired still reads."""

    __tablename__ = "signing_key"
    purpose: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    secret: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]


class KeyVersion(NamedTuple):
    """What may be shown of a key."""

    purpose: str
    version: int
    created_at: datetime
    retired_at: datetime | None


class _CachedKeys(NamedTuple):
    keys: list[tuple[int, bytes]]
    # Rows are added and retired, never removed: the number of both only grows, by one for each change.
    revision: int
    read_at: float


CACHE_SECONDS = 60
# What nobody has signed must not make us read the table more often than this.
MIN_REFRESH_SECONDS = 1
_cache: dict[tuple[str, str], _CachedKeys] = {}
_lock = threading.Lock()
_refresh_lock = threading.Lock()


def accepted_keys(purpose: str, revision: int = 0) -> list[tuple[int, bytes]]:
    """All accepted keys of a purpose as (version, secret), newest first; the first is made when there is none.

    :param revision: how many keys were ever made and retired, if the caller has just read that: a process that
        knows of fewer reads the table again.
    """
    held = _get_fresh(purpose, revision)
    if held is None:
        with _refresh_lock:
            # Of many who find them too old one reads, and the others find what it has read.
            held = _get_fresh(purpose, revision) or _load_keys(purpose)
    return held.keys


def _get_fresh(purpose: str, revision: int) -> _CachedKeys | None:
    held = _get_cached(purpose)
    if held and held.revision >= revision and held.read_at > time.monotonic() - CACHE_SECONDS:
        return held
    return None


def find_new_keys(purpose: str) -> list[tuple[int, bytes]]:
    """Keys that were made since this process has read the table. It reads again for that, at most once a second."""
    held = _get_cached(purpose)
    if held and held.read_at > time.monotonic() - MIN_REFRESH_SECONDS:
        return []
    known = {version for version, _ in held.keys} if held else set()
    return [(version, secret) for version, secret in _load_keys(purpose).keys if version not in known]


def current_secret(purpose: str) -> bytes:
    """The secret that signs now."""
    return accepted_keys(purpose)[0][1]


def find_secret(purpose: str, version: int) -> bytes | None:
    """The secret of a version, also when another process has just made it; None when it is not accepted."""
    return dict(accepted_keys(purpose)).get(version) or dict(find_new_keys(purpose)).get(version)


def clear_key_cache() -> None:
    """Drop what is remembered, so that the next look-up reads the table."""
    with _lock:
        _cache.clear()


def sign_token(purpose: str, payload: list[int]) -> str:
    """A short URL-safe token that carries the payload and proves that we made it. It never expires."""
    return str(URLSafeSerializer(current_secret(purpose), salt=purpose).dumps(payload))


def create_signer(purpose: str) -> Callable[[list[int]], str]:
    """`sign` with the key that signs now, for many payloads: what itsdangerous derives anew for each is made once."""
    secret = URLSafeSerializer(current_secret(purpose), salt=purpose).make_signer(purpose).derive_key()

    def of(payload: list[int]) -> str:
        said = base64_encode(f"[{','.join(map(str, payload))}]")
        return f"{said.decode()}.{base64_encode(hmac.digest(secret, said, 'sha1')).decode()}"

    return of


def verify_token(purpose: str, token: str) -> list[int] | None:
    """The payload of a token that `sign` made for this purpose with any of its keys, else None."""
    payload = _verify_with(purpose, token, accepted_keys(purpose))
    return _verify_with(purpose, token, find_new_keys(purpose)) if payload is None else payload


def list_key_versions(purpose: str) -> list[KeyVersion]:
    """Every version of a purpose, newest first, also retired ones; never their secrets."""
    rows = db.session.execute(
        select(SigningKey.purpose, SigningKey.version, SigningKey.created_at, SigningKey.retired_at)
        .where(SigningKey.purpose == purpose)
        .order_by(SigningKey.version.desc())
    )
    return [KeyVersion(*row) for row in rows]


def lock_signing_keys() -> None:
    """Let nobody else add or retire a key before this transaction ends."""
    db.session.execute(text("select pg_advisory_xact_lock(hashtext('onecode.signing_key'))"))


def add_key_version(purpose: str) -> int:
    """Add the next version, in the transaction of the caller, who holds `lock`, commits and then calls `forget`."""
    last = db.session.scalar(select(func.max(SigningKey.version)).where(SigningKey.purpose == purpose)) or 0
    db.session.execute(insert(SigningKey).values(purpose=purpose, version=last + 1, secret=secrets.token_bytes(32)))
    return last + 1


def revoke_key_version(purpose: str, version: int) -> None:
    """Accept a version no longer, in the transaction of the caller, who holds `lock`, commits and calls `forget`."""
    db.session.execute(
        update(SigningKey)
        .where(SigningKey.purpose == purpose, SigningKey.version == version, SigningKey.retired_at.is_(None))
        .values(retired_at=func.now())
        .execution_options(synchronize_session=False)
    )


def _verify_with(purpose: str, token: str, with_keys: Iterable[tuple[int, bytes]]) -> list[int] | None:
    for _, secret in with_keys:
        try:
            payload = URLSafeSerializer(secret, salt=purpose).loads(token)
        except BadData:
            continue
        if isinstance(payload, list) and all(isinstance(part, int) for part in payload):
            return payload
    return None


def _cache_key(purpose: str) -> tuple[str, str]:
    return current_app.config["SQLALCHEMY_DATABASE_URI"], purpose


def _get_cached(purpose: str) -> _CachedKeys | None:
    with _lock:
        return _cache.get(_cache_key(purpose))


def _load_keys(purpose: str) -> _CachedKeys:
    # Before the rows are read: what is made while they are on their way counts as unknown.
    read_at = time.monotonic()
    rows = _select_keys(purpose) or _create_first_key(purpose)
    accepted = [(row.version, bytes(row.secret)) for row in rows if row.retired_at is None]
    held = _CachedKeys(accepted, len(rows) + sum(row.retired_at is not None for row in rows), read_at)
    place = _cache_key(purpose)
    with _lock:
        before = _cache.get(place)
        if before is None or before.read_at < read_at:
            _cache[place] = held
    return held


def _select_keys(purpose: str) -> list[Row[int, bytes, datetime | None]]:
    # On a connection that is given back at once: whoever asks for a key may need one for something else as well.
    with db.engine.connect() as connection:
        return list(connection.execute(_SELECT_KEYS.where(SigningKey.purpose == purpose)))


def _create_first_key(purpose: str) -> list[Row[int, bytes, datetime | None]]:
    """Make version 1 on a connection of its own, so that a caller's transaction neither loses nor delays it."""
    with db.engine.begin() as connection:
        connection.execute(
            insert(SigningKey)
            .values(purpose=purpose, version=1, secret=secrets.token_bytes(32))
            .on_conflict_do_nothing()
        )
        return list(connection.execute(_SELECT_KEYS.where(SigningKey.purpose == purpose)))


_SELECT_KEYS = select(SigningKey.version, SigningKey.secret, SigningKey.retired_at).order_by(SigningKey.version.desc())
