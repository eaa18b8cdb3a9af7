"""What is done with staff, invitations, API keys and the trail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta

from flask import current_app
from sqlalchemy import select

from webapp import keyring
from webapp.accounts.models import SCOPES, ApiKey, AuditEntry, Invitation
from webapp.errors import DomainError, FieldError, Invalid
from webapp.extensions import db

INVITATION_DAYS = 7
KEY_PREFIX = "onecode_live"


def record(actor: str, action: str, subject: str = "", **detail: object) -> None:
    """Add to the trail, in the transaction of the deed (the caller commits)."""
    db.session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=detail or None))


def invite(role: str, email: str | None, by: str) -> str:
    """Make an invitation and return its link, which is shown this once and works once, for seven days."""
    token = secrets.token_urlsafe(24)
    db.session.add(
        Invitation(
            token_hash=hashlib.sha256(token.encode()).digest(),
            role=role,
            email=email,
            expires_at=datetime.now(UTC) + timedelta(days=INVITATION_DAYS),
        )
    )
    record(by, "invitation.created", email or role)
    db.session.commit()
    return f"{current_app.config['SETTINGS'].public_url}/invitations/{token}"


def create_api_key(name: str, scopes: list[str], by: str, expires_at: datetime | None = None) -> str:
    """Make a key and return it; only an HMAC-SHA256 of its secret is kept.

    :raises Invalid: when the name is empty or a scope is unknown.
    """
    if not name.strip():
        raise Invalid(FieldError("name", "name_missing", "Say who uses the key."))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise Invalid(FieldError("scopes", "scopes_invalid", f"Choose from {', '.join(SCOPES)}."))
    public_id = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    secret = secrets.token_urlsafe(32)
    version, key = keyring.keys("api_key")[0]
    db.session.add(
        ApiKey(
            public_id=public_id,
            name=name.strip(),
            secret_hash=_hash(key, secret),
            key_version=version,
            scopes=scopes,
            expires_at=expires_at,
        )
    )
    record(by, "api_key.created", name.strip(), scopes=scopes)
    db.session.commit()
    return f"{KEY_PREFIX}_{public_id}_{secret}"


def authenticate_key(authorization: str) -> ApiKey:
    """The key of an `Authorization: Bearer …` header (RFC 6750).

    :raises DomainError: `unauthorized` (401), the same for a key that is unknown, revoked, expired or wrong.
    """
    kind, _, given = authorization.partition(" ")
    head, _, rest = given.strip().partition("_live_")
    public_id, _, secret = rest.partition("_")
    if kind.lower() == "bearer" and head and secret:
        key = db.session.scalar(select(ApiKey).where(ApiKey.public_id == public_id))
        secrets_of = dict(keyring.keys("api_key"))
        if (
            key is not None
            and key.revoked_at is None
            and (key.expires_at is None or key.expires_at > datetime.now(UTC))
            and hmac.compare_digest(_hash(secrets_of.get(key.key_version, b""), secret), bytes(key.secret_hash))
        ):
            return key
    raise DomainError("unauthorized", "Send a valid key as: Authorization: Bearer …", 401)


def _hash(key: bytes, secret: str) -> bytes:
    return hmac.new(key, secret.encode(), hashlib.sha256).digest()
