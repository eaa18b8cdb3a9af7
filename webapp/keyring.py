"""The keys behind ids, links, personal codes and API keys.

They are versioned rows, so that changing SECRET_KEY only ends sessions.
"""

from __future__ import annotations

import secrets
import threading
import time
from datetime import datetime

from flask import current_app
from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from webapp.extensions import Model, db


class SigningKey(Model):
    """One secret of one purpose. The highest version signs; every version that was not retired still reads."""

    __tablename__ = "signing_key"
    purpose: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    secret: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]


_CACHE_SECONDS = 60
_cache: dict[tuple[str, str], tuple[float, list[tuple[int, bytes]]]] = {}
_lock = threading.Lock()


def keys(purpose: str) -> list[tuple[int, bytes]]:
    """All keys of a purpose as (version, secret), newest first; the first is made when there is none."""
    place = (current_app.config["SQLALCHEMY_DATABASE_URI"], purpose)
    with _lock:
        held = _cache.get(place)
        if held and held[0] > time.monotonic():
            return held[1]
    found = _stored(purpose) or _first(purpose)
    with _lock:
        _cache[place] = (time.monotonic() + _CACHE_SECONDS, found)
    return found


def newest(purpose: str) -> bytes:
    """The secret that signs now."""
    return keys(purpose)[0][1]


def forget() -> None:
    """Drop what is remembered, so that the next look-up reads the table."""
    with _lock:
        _cache.clear()


def sign(purpose: str, payload: list[int]) -> str:
    """A short URL-safe token that carries the payload and proves that we made it. It never expires."""
    return str(URLSafeSerializer(newest(purpose), salt=purpose).dumps(payload))


def unsign(purpose: str, token: str) -> list[int] | None:
    """The payload of a token that `sign` made for this purpose with any of its keys, else None."""
    for _, secret in keys(purpose):
        try:
            payload = URLSafeSerializer(secret, salt=purpose).loads(token)
        except BadData:
            continue
        if isinstance(payload, list) and all(isinstance(part, int) for part in payload):
            return payload
    return None


def _stored(purpose: str) -> list[tuple[int, bytes]]:
    rows = db.session.execute(
        select(SigningKey.version, SigningKey.secret)
        .where(SigningKey.purpose == purpose)
        .order_by(SigningKey.version.desc())
    )
    return [(version, bytes(secret)) for version, secret in rows]


def _first(purpose: str) -> list[tuple[int, bytes]]:
    """Make version 1 on a connection of its own, so that a caller's transaction neither loses nor delays it."""
    with db.engine.begin() as connection:
        connection.execute(
            insert(SigningKey)
            .values(purpose=purpose, version=1, secret=secrets.token_bytes(32))
            .on_conflict_do_nothing()
        )
        rows = connection.execute(
            select(SigningKey.version, SigningKey.secret).where(SigningKey.purpose == purpose)
        ).all()
    return sorted(((version, bytes(secret)) for version, secret in rows), reverse=True)
