"""Actions on API keys, and their authentication."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import math
import secrets
import time
from datetime import UTC, datetime
from typing import NamedTuple

from flask import current_app
from flask_babel import gettext as _
from sqlalchemy import func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from webapp.accounts import notices
from webapp.accounts import queries as account_queries
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import SCOPES, ApiKey
from webapp.core import signing_keys
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db

log = logging.getLogger(__name__)

API_KEY_PREFIX = "onecode_live"
API_KEY_CACHE_SECONDS = 1


class ApiClient(NamedTuple):
    """The authenticated API key of a request.

    It has plain values, so that no attribute reads the database again.
    """

    id: int
    name: str
    scopes: list[str]


def create_api_key(name: str, scopes: list[str], by: str, expires_at: datetime | None = None) -> str:
    """Create an API key and return it. Only an HMAC of its secret is stored.

    :raises InvalidInput: when the name is empty or that of another key, a scope is missing or unknown, or the expiry
        date is in the past.
    """
    if not name.strip():
        raise InvalidInput(FieldError("name", "name_missing", _("Enter a name that says what uses the key.")))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        message = _("Choose one or more of these scopes: %(scopes)s.", scopes=", ".join(SCOPES))
        raise InvalidInput(FieldError("scopes", "scopes_invalid", message))
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidInput(FieldError("expires_on", "expiry_past", _("Choose today or a later day.")))
    public_id = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    secret = secrets.token_urlsafe(32)
    version, key = signing_keys.list_accepted_keys("api_key")[0]
    created_id = db.session.scalar(
        insert(ApiKey)
        .values(
            public_id=public_id,
            name=name.strip(),
            secret_hash=_compute_hmac(key, secret),
            key_version=version,
            scopes=scopes,
            expires_at=expires_at,
        )
        .on_conflict_do_nothing(index_elements=[func.lower(ApiKey.name)], index_where=ApiKey.revoked_at.is_(None))
        .returning(ApiKey.id)
    )
    if created_id is None:
        db.session.rollback()
        message = _("Another key has this name. Choose a different name, or revoke the other key first.")
        raise InvalidInput(FieldError("name", "name_taken", message))
    record_audit_entry(by, "api_key.created", name.strip(), scopes=scopes)
    notices.notify_api_key_created(name.strip(), scopes, by)
    db.session.commit()
    notices.enqueue_account_emails()
    return f"{API_KEY_PREFIX}_{public_id}_{secret}"


def revoke_api_key(key_id: int, by: str) -> None:
    """Revoke a key permanently. Idempotent."""
    name = db.session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(ApiKey.name)
    )
    if name:
        record_audit_entry(by, "api_key.revoked", name)
    db.session.commit()
    current_app.extensions.pop("api_keys", None)


def authenticate_api_key(authorization: str) -> ApiClient:
    """Authenticate the key of an `Authorization: Bearer …` header (RFC 6750).

    It takes one indexed SELECT, and the same time for valid and invalid keys.

    :raises DomainError: `unauthorized` (401), the same for a key that is unknown, revoked, expired or wrong.
    """
    check_authorization_format(authorization)
    public_id, secret = _parse_authorization(authorization)
    row = _load_api_key(public_id)
    key = signing_keys.find_secret("api_key", row.key_version) if row else None
    expected = bytes(row.secret_hash) if row else bytes(32)
    mac = _compute_hmac(key or b"", secret)
    if not (hmac.compare_digest(mac, expected) and row and row.is_valid):
        raise _unauthorized()
    if row.is_last_used_stale:
        _try_to_update_last_used(public_id, row.id)
    return ApiClient(row.id, row.name, row.scopes)


def check_authorization_format(authorization: str) -> None:
    """Check that an `Authorization` header has the format of an API key. Reads nothing.

    :raises DomainError: the error of `authenticate_api_key` when it has another one.
    """
    if not parse_public_id(authorization):
        raise _unauthorized()


def _unauthorized() -> DomainError:
    return DomainError("unauthorized", _("Send a valid API key in the header: Authorization: Bearer …"), 401)


def parse_public_id(authorization: str) -> str:
    """Return the public id of the key in an `Authorization` header, valid or not; empty without one."""
    return _parse_authorization(authorization)[0]


def _parse_authorization(authorization: str) -> tuple[str, str]:
    """Return the public id and the secret in an `Authorization` header; two empty texts if it has another format."""
    scheme, _space, credentials = authorization.partition(" ")
    prefix, _separator, rest = credentials.strip().partition("_live_")
    public_id, _separator, secret = rest.partition("_")
    # Several headers may arrive as one text with commas: Onecode and a proxy must not see different keys.
    if scheme.lower() == "bearer" and secret and all(part.isascii() and part.isalnum() for part in (prefix, public_id)):
        return public_id, secret
    return "", ""


def _load_api_key(public_id: str) -> account_queries.ApiKeyRow | None:
    """Return the row of a key, cached for `API_KEY_CACHE_SECONDS`.

    A client with a hundred calls a second reads it only once. A key that was revoked by another process therefore works
    a little longer. Its secret is verified in each call.
    """
    cache = _get_cache()
    cached = cache.get(public_id)
    if cached and cached[0] > time.monotonic() - API_KEY_CACHE_SECONDS:
        return cached[1]
    read_at = time.monotonic()
    row = account_queries.find_api_key(public_id)
    if row is None:
        cache.pop(public_id, None)
    else:
        cache[public_id] = read_at, row
    return row


def _get_cache() -> dict[str, tuple[float, account_queries.ApiKeyRow]]:
    """Return the rows of API keys that this process has read, with the time (`time.monotonic`), by public id."""
    cache: dict[str, tuple[float, account_queries.ApiKeyRow]] = current_app.extensions.setdefault("api_keys", {})
    return cache


def _try_to_update_last_used(public_id: str, key_id: int) -> None:
    """Record the use of a key unless this process is trying to, or did so after the key was cached.

    An attempt may take long while the database does not respond, and it may fail: not every request tries again. The
    cached row is not changed, because the key may have been revoked since it was read.
    """
    ended_at: dict[str, float] = current_app.extensions.setdefault("api_key_use_attempts", {})
    if ended_at.get(public_id, -math.inf) > time.monotonic() - API_KEY_CACHE_SECONDS:
        return
    ended_at[public_id] = math.inf
    try:
        _update_last_used(key_id)
    finally:
        ended_at[public_id] = time.monotonic()


def _update_last_used(key_id: int) -> None:
    """Record the use of a key, once a minute.

    Only one of several concurrent calls writes; the others return immediately. Requests that only read, such as
    `/metrics`, have to work while writes do not: an error is only logged, and the commit waits neither for the disk nor
    for a standby.
    """
    try:
        db.session.execute(text("set local synchronous_commit = off"))
        db.session.execute(
            update(ApiKey)
            .where(ApiKey.id.in_(account_queries.select_api_key_with_stale_use(key_id)))
            .values(last_used_at=func.now())
        )
        db.session.commit()
    except DBAPIError as error:
        db.session.rollback()
        log.warning("the last use of an API key was not recorded: %s", type(error.orig).__name__)


def _compute_hmac(key: bytes, secret: str) -> bytes:
    return hmac.new(key, secret.encode(), hashlib.sha256).digest()
