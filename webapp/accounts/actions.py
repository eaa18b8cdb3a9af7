"""Actions on staff users, invitations, sign-in, API keys and the audit trail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

from flask import current_app
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import delete, func, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts import passwords
from webapp.accounts import queries as account_queries
from webapp.accounts.models import ROLES, SCOPES, ApiKey, AuditEntry, Invitation, Role, StaffUser
from webapp.core import signing_keys
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db

INVITATION_DAYS = 7
API_KEY_PREFIX = "onecode_live"
API_KEY_CACHE_SECONDS = 1
LINK_EXPIRED_MESSAGE = _l("This link has already been used or has expired. Ask an administrator for a new one.")


def record_audit_entry(actor: str, action: str, subject: str = "", **detail: object) -> None:
    """Add an entry to the audit trail, in the transaction of the change (the caller commits)."""
    db.session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=detail or None))


# --- invitations and password reset links --------------------------------------------------------


def create_invitation(role: str, email: str | None, by: str) -> str:
    """Create an invitation; return its link, which cannot be read again and works once, within seven days.

    :raises InvalidInput: when the role is unknown, the email address is invalid, or a user with it exists.
    """
    if role not in ROLES:
        message = _("Choose one of these roles: %(roles)s.", roles=", ".join(ROLES))
        raise InvalidInput(FieldError("role", "role_invalid", message))
    email = normalise_email(email) if email else None
    if email and account_queries.find_staff_user_by_email(email):
        message = _("A user with this email address already exists. Create a password reset link instead.")
        raise InvalidInput(FieldError("email", "email_taken", message))
    link = _create_link(role, email)
    record_audit_entry(by, "invitation.created", email or "", role=role)
    db.session.commit()
    return link


def create_password_reset_link(user_id: int, by: str) -> str:
    """Create a password reset link, which works once. Earlier links of this user stop working.

    :raises NotFound: when there is no user with this id.
    :raises DomainError: `disabled` when the user is disabled.
    """
    user = _lock_staff_user(user_id)
    if not user.is_active:
        raise DomainError("disabled", _("The account of %(name)s is disabled. Enable it first.", name=user.name))
    _delete_reset_links(user.id)
    link = _create_link(user.role, user.email, user.id)
    record_audit_entry(by, "password.link_created", user.email)
    db.session.commit()
    return link


def withdraw_invitation(invitation_id: int, by: str) -> None:
    """Withdraw an invitation that was not used yet. Withdrawing it again changes nothing."""
    withdrawn = db.session.execute(
        delete(Invitation)
        .where(Invitation.id == invitation_id, Invitation.used_at.is_(None))
        .returning(Invitation.email, Invitation.role)
    ).one_or_none()
    if withdrawn:
        record_audit_entry(by, "invitation.withdrawn", withdrawn.email or "", role=withdrawn.role)
    db.session.commit()


def hash_token(token: str) -> bytes:
    """Return the hash under which a link's token is stored."""
    return hashlib.sha256(token.encode()).digest()


def accept_invitation(token: str, name: str, email: str, password: str, time_zone: str) -> StaffUser:
    """Accept an invitation: create the user. Two requests with the same link at the same time create one user.

    :param email: as typed.
    :raises NotFound: when the link is used, expired or unknown, or resets a password.
    :raises InvalidInput: when the email address is invalid or taken; the link then still works.
    """
    if account_queries.find_open_invitation(hash_token(token)) is None:
        raise NotFound(LINK_EXPIRED_MESSAGE)
    email = normalise_email(email)
    # Hashed before any row is locked, since hashing is slow.
    password_hash = passwords.hash_password(password)
    invitation = _consume_invitation(token, is_reset=False)
    user_id = db.session.scalar(
        insert(StaffUser)
        .values(
            email=email,
            name=name,
            password_hash=password_hash,
            role=invitation.role,
            time_zone=time_zone,
            last_sign_in_at=func.now(),
        )
        .on_conflict_do_nothing(index_elements=[StaffUser.email])
        .returning(StaffUser.id)
    )
    if user_id is None:
        message = _(
            "A user with this email address already exists. Sign in, or ask an administrator for a password reset link."
        )
        _roll_back_and_raise(InvalidInput(FieldError("email", "email_taken", message)))
    record_audit_entry(email, "staff.joined", email, role=invitation.role)
    db.session.commit()
    return _lock_staff_user(user_id)


def reset_password(token: str, password: str) -> StaffUser:
    """Set a new password with a password reset link; this ends every session of the user.

    :raises NotFound: when the link is used, expired or unknown, or its user is disabled.
    """
    if account_queries.find_open_invitation(hash_token(token)) is None:
        raise NotFound(LINK_EXPIRED_MESSAGE)
    password_hash = passwords.hash_password(password)
    invitation = _consume_invitation(token, is_reset=True)
    user: StaffUser | None = db.session.scalar(
        update(StaffUser)
        .where(StaffUser.id == invitation.staff_user_id, StaffUser.disabled_at.is_(None))
        .values(
            password_hash=password_hash,
            session_version=StaffUser.session_version + 1,
            last_sign_in_at=func.now(),
        )
        .returning(StaffUser)
    )
    if user is None:
        _roll_back_and_raise(NotFound(LINK_EXPIRED_MESSAGE))
    record_audit_entry(user.email, "password.reset", user.email)
    db.session.commit()
    return user


# --- signing in ----------------------------------------------------------------------------------


def sign_in_user(email: str, password: str) -> StaffUser:
    """Return the user with this email address and password. A hash with outdated parameters is replaced.

    :raises DomainError: `sign_in_failed`, with the same message and timing for an unknown email address and a wrong
        password; `disabled` for the right password of a disabled user.
    """
    user = _find_user_by_typed_email(email)
    if user is None:
        passwords.verify_dummy_password(password)
    if user is None or not passwords.verify_password(user.password_hash, password):
        message = _("The email address or password is wrong. Check both and try again.")
        raise DomainError("sign_in_failed", message, 422)
    if not user.is_active:
        raise DomainError("disabled", _("Your account is disabled. Ask an administrator to enable it."), 422)
    if passwords.needs_rehash(user.password_hash):
        user.password_hash = passwords.hash_password(password)
    user.last_sign_in_at = datetime.now(UTC)
    record_audit_entry(user.email, "staff.signed_in", user.email)
    db.session.commit()
    return user


def change_own_password(user_id: int, current: str, new: str) -> StaffUser:
    """Change a user's own password. This ends every session; the caller starts a new one for the current browser.

    :raises InvalidInput: `password_wrong` when the current password is wrong.
    """
    user = _lock_staff_user(user_id)
    if not passwords.verify_password(user.password_hash, current):
        raise InvalidInput(FieldError("current", "password_wrong", _("This is not your current password.")))
    user.password_hash = passwords.hash_password(new)
    user.session_version += 1
    _delete_reset_links(user.id)
    record_audit_entry(user.email, "password.changed", user.email)
    db.session.commit()
    return user


def update_profile(user_id: int, name: str, time_zone: str) -> None:
    """Change a user's own name and time zone."""
    user = _lock_staff_user(user_id)
    user.name, user.time_zone = name, time_zone
    record_audit_entry(user.email, "staff.profile_changed", user.email)
    db.session.commit()


# --- user management -----------------------------------------------------------------------------


def change_staff_role(user_id: int, role: Role, by: str) -> StaffUser:
    """Change the role of a user; it applies from their next request.

    :raises NotFound: when there is no user with this id.
    :raises DomainError: `last_admin` when there would be no active administrator.
    """
    if role != "admin":
        _check_admin_remains(besides=user_id)
    user = _lock_staff_user(user_id)
    before, user.role = user.role, role
    if before != role:
        record_audit_entry(by, "staff.role_changed", user.email, before=before, now=role)
    db.session.commit()
    return user


def disable_staff_user(user_id: int, by: str) -> StaffUser:
    """Disable a user: their sessions end and they cannot sign in. Their work and audit entries are kept.

    :raises NotFound: when there is no user with this id.
    :raises DomainError: `last_admin` when there would be no active administrator.
    """
    _check_admin_remains(besides=user_id)
    user = _lock_staff_user(user_id)
    if user.is_active:
        user.disabled_at = datetime.now(UTC)
        user.session_version += 1
        _delete_reset_links(user.id)
        record_audit_entry(by, "staff.disabled", user.email)
    db.session.commit()
    return user


def enable_staff_user(user_id: int, by: str) -> StaffUser:
    """Enable a disabled user, with the password and role they had.

    :raises NotFound: when there is no user with this id.
    """
    user = _lock_staff_user(user_id)
    if not user.is_active:
        user.disabled_at = None
        record_audit_entry(by, "staff.enabled", user.email)
    db.session.commit()
    return user


def end_staff_sessions(user_id: int, by: str) -> StaffUser:
    """End all sessions of a user.

    :raises NotFound: when there is no user with this id.
    """
    user = _lock_staff_user(user_id)
    user.session_version += 1
    record_audit_entry(by, "staff.sessions_ended", user.email)
    db.session.commit()
    return user


# --- API keys ------------------------------------------------------------------------------------


class ApiClient(NamedTuple):
    """The authenticated API key of a request. Plain values, so that no attribute reads the database again."""

    id: int
    name: str
    scopes: list[str]


def create_api_key(name: str, scopes: list[str], by: str, expires_at: datetime | None = None) -> str:
    """Create an API key and return it; only an HMAC-SHA256 of its secret is stored.

    :raises InvalidInput: when the name is empty, a scope is missing or unknown, or the expiry date is in the past.
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
    version, key = signing_keys.accepted_keys("api_key")[0]
    db.session.add(
        ApiKey(
            public_id=public_id,
            name=name.strip(),
            secret_hash=_compute_hmac(key, secret),
            key_version=version,
            scopes=scopes,
            expires_at=expires_at,
        )
    )
    record_audit_entry(by, "api_key.created", name.strip(), scopes=scopes)
    db.session.commit()
    return f"{API_KEY_PREFIX}_{public_id}_{secret}"


def revoke_api_key(key_id: int, by: str) -> None:
    """Revoke a key permanently. Revoking it again changes nothing."""
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
    scheme, _space, credentials = authorization.partition(" ")
    prefix, _separator, rest = credentials.strip().partition("_live_")
    public_id, _separator, secret = rest.partition("_")
    if scheme.lower() == "bearer" and prefix and secret and public_id.isascii() and public_id.isalnum():
        row = _load_api_key(public_id)
        key = signing_keys.find_secret("api_key", row.key_version) if row else None
        expected = bytes(row.secret_hash) if row else bytes(32)
        mac = _compute_hmac(key or b"", secret)
        if hmac.compare_digest(mac, expected) and row and row.is_valid:
            if row.is_last_used_stale:
                _update_last_used(row.id)
                current_app.extensions.get("api_keys", {}).pop(public_id, None)
            return ApiClient(row.id, row.name, row.scopes)
    raise DomainError("unauthorized", _("Send a valid API key in the header: Authorization: Bearer …"), 401)


def _load_api_key(public_id: str) -> account_queries.ApiKeyRow | None:
    """Return the row of a key, cached for a second: a client with a hundred calls a second reads it once.

    A key that was revoked by another process therefore works for up to one more second. Its secret is verified in each
    call.
    """
    cache: dict[str, tuple[float, account_queries.ApiKeyRow]] = current_app.extensions.setdefault("api_keys", {})
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


def _update_last_used(key_id: int) -> None:
    """Record the use of a key, once a minute. Of many concurrent calls one writes and the others do not wait."""
    db.session.execute(
        update(ApiKey)
        .where(ApiKey.id.in_(account_queries.select_api_key_with_stale_use(key_id)))
        .values(last_used_at=func.now())
    )
    db.session.commit()


def _compute_hmac(key: bytes, secret: str) -> bytes:
    return hmac.new(key, secret.encode(), hashlib.sha256).digest()


# --- helpers -------------------------------------------------------------------------------------


def _create_link(role: str, email: str | None, staff_user_id: int | None = None) -> str:
    token = secrets.token_urlsafe(24)
    db.session.add(
        Invitation(
            token_hash=hash_token(token),
            role=role,
            email=email,
            staff_user_id=staff_user_id,
            expires_at=datetime.now(UTC) + timedelta(days=INVITATION_DAYS),
        )
    )
    return f"{current_app.config['SETTINGS'].public_url}/invitations/{token}"


class _ConsumedInvitation(NamedTuple):
    role: str
    staff_user_id: int | None


def _consume_invitation(token: str, is_reset: bool) -> _ConsumedInvitation:
    """Mark an invitation (or a password reset link) as used. Of concurrent calls one succeeds.

    :raises NotFound: when it is used, expired or unknown.
    """
    owner = Invitation.staff_user_id
    consumed = db.session.execute(
        update(Invitation)
        .where(
            Invitation.token_hash == hash_token(token),
            Invitation.used_at.is_(None),
            Invitation.expires_at > func.now(),
            owner.is_not(None) if is_reset else owner.is_(None),
        )
        .values(used_at=func.now())
        .returning(Invitation.role, Invitation.staff_user_id)
    ).one_or_none()
    if consumed is None:
        _roll_back_and_raise(NotFound(LINK_EXPIRED_MESSAGE))
    return _ConsumedInvitation(consumed.role, consumed.staff_user_id)


def _delete_reset_links(user_id: int) -> None:
    db.session.execute(delete(Invitation).where(Invitation.staff_user_id == user_id, Invitation.used_at.is_(None)))


def _check_admin_remains(besides: int) -> None:
    """Check that there is another active administrator.

    It locks the active administrators, always in the same order, so that two who are disabled at the same time cannot
    both pass.

    :raises DomainError: `last_admin` when there is no other.
    """
    if account_queries.lock_active_admins() == [besides]:
        message = _("This is the last active administrator. Make another user an administrator first.")
        _roll_back_and_raise(DomainError("last_admin", message))


def _lock_staff_user(user_id: int) -> StaffUser:
    user = account_queries.lock_staff_user(user_id)
    if user is None:
        raise NotFound(_("This user does not exist. See the list of users."))
    return user


def _find_user_by_typed_email(email: str) -> StaffUser | None:
    try:
        return account_queries.find_staff_user_by_email(normalise_email(email))
    except InvalidInput:
        return None


def _roll_back_and_raise(error: DomainError) -> NoReturn:
    """Roll back the transaction, then raise the error."""
    db.session.rollback()
    raise error
