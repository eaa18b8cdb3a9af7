"""What is done with staff, their invitations and sessions, the keys of machines, and the trail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

from flask import current_app
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
LINK_EXPIRED_MESSAGE = "This link has been used already or is too old. Ask an administrator for a new one."


def record_audit_entry(actor: str, action: str, subject: str = "", **detail: object) -> None:
    """Add to the trail, in the transaction of the deed (the caller commits)."""
    db.session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=detail or None))


# --- links that work once ------------------------------------------------------------------------


def create_invitation(role: str, email: str | None, by: str) -> str:
    """Make an invitation and return its link, which is shown this once and works once, for seven days.

    :raises Invalid: when the role is unknown, the e-mail is none, or somebody with it is here already.
    """
    if role not in ROLES:
        raise InvalidInput(FieldError("role", "role_invalid", f"Choose from {', '.join(ROLES)}."))
    email = normalise_email(email) if email else None
    if email and account_queries.find_staff_user_by_email(email):
        raise InvalidInput(
            FieldError("email", "email_taken", "This person is here already. Make a link to a new password instead.")
        )
    link = _create_link(role, email)
    record_audit_entry(by, "invitation.created", email or "", role=role)
    db.session.commit()
    return link


def create_password_reset_link(user_id: int, by: str) -> str:
    """Make a link with which somebody chooses a new password, once. Earlier ones of theirs stop working.

    :raises NotFound: when there is nobody with this id.
    :raises DomainError: `disabled` when they may not sign in anyway.
    """
    user = _lock_staff_user(user_id)
    if not user.is_active:
        raise DomainError("disabled", f"{user.name} is disabled. Enable the account first.")
    _delete_reset_links(user.id)
    link = _create_link(user.role, user.email, user.id)
    record_audit_entry(by, "password.link_created", user.email)
    db.session.commit()
    return link


def withdraw_invitation(invitation_id: int, by: str) -> None:
    """Make an invitation that nobody has used yet worthless. One that is gone stays so."""
    gone = db.session.execute(
        delete(Invitation)
        .where(Invitation.id == invitation_id, Invitation.used_at.is_(None))
        .returning(Invitation.email, Invitation.role)
    ).one_or_none()
    if gone:
        record_audit_entry(by, "invitation.withdrawn", gone.email or "", role=gone.role)
    db.session.commit()


def hash_token(token: str) -> bytes:
    """What is kept of a link's token."""
    return hashlib.sha256(token.encode()).digest()


def accept_invitation(token: str, name: str, email: str, password: str, time_zone: str) -> StaffUser:
    """Use an invitation: make the user it is for. Of two that use the same link at the same time one is made.

    :param email: as typed.
    :raises NotFound: when the link is used, too old, unknown, or one for a new password.
    :raises Invalid: when the e-mail is none or taken; the link then still works.
    """
    if account_queries.find_open_invitation(hash_token(token)) is None:
        raise NotFound(LINK_EXPIRED_MESSAGE)
    email = normalise_email(email)
    # Hashed before any row is locked: it takes a while.
    password_hash = passwords.hash_password(password)
    invitation = _consume_invitation(token, for_somebody=False)
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
        _roll_back_and_raise(
            InvalidInput(
                FieldError(
                    "email",
                    "email_taken",
                    "Somebody with this e-mail is here already. Sign in, or ask an administrator for a link to a new"
                    " password.",
                )
            )
        )
    record_audit_entry(email, "staff.joined", email, role=invitation.role)
    db.session.commit()
    return _lock_staff_user(user_id)


def reset_password(token: str, password: str) -> StaffUser:
    """Use a link to a new password: it replaces the old one and ends every session of the user.

    :raises NotFound: when the link is used, too old or unknown, or its owner may not sign in any more.
    """
    if account_queries.find_open_invitation(hash_token(token)) is None:
        raise NotFound(LINK_EXPIRED_MESSAGE)
    password_hash = passwords.hash_password(password)
    invitation = _consume_invitation(token, for_somebody=True)
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
    """The user with this e-mail and password. The hash is renewed when today's parameters are others.

    :raises DomainError: `sign_in_failed`, the same after the same work for an unknown e-mail and a wrong password;
        `disabled` for the right password of somebody who may not sign in.
    """
    user = _find_user_by_typed_email(email)
    if user is None:
        passwords.verify_dummy_password(password)
    if user is None or not passwords.verify_password(user.password_hash, password):
        raise DomainError("sign_in_failed", "E-mail and password do not match. Check both and try again.", 422)
    if not user.is_active:
        raise DomainError("disabled", "Your account is disabled. Ask an administrator to enable it.", 422)
    if passwords.needs_rehash(user.password_hash):
        user.password_hash = passwords.hash_password(password)
    user.last_sign_in_at = datetime.now(UTC)
    record_audit_entry(user.email, "staff.signed_in", user.email)
    db.session.commit()
    return user


def change_own_password(user_id: int, current: str, new: str) -> StaffUser:
    """Replace a password by its owner; every session ends, the caller renews the one at hand.

    :raises Invalid: `password_wrong` when the current one is not right.
    """
    user = _lock_staff_user(user_id)
    if not passwords.verify_password(user.password_hash, current):
        raise InvalidInput(FieldError("current", "password_wrong", "This is not your current password."))
    user.password_hash = passwords.hash_password(new)
    user.session_version += 1
    _delete_reset_links(user.id)
    record_audit_entry(user.email, "password.changed", user.email)
    db.session.commit()
    return user


def update_profile(user_id: int, name: str, time_zone: str) -> None:
    """Change how somebody is called and whose clock they read."""
    user = _lock_staff_user(user_id)
    user.name, user.time_zone = name, time_zone
    record_audit_entry(user.email, "staff.profile_changed", user.email)
    db.session.commit()


# --- people --------------------------------------------------------------------------------------


def change_staff_role(user_id: int, role: Role, by: str) -> StaffUser:
    """Give somebody another role; it holds from their next click.

    :raises NotFound: when there is nobody with this id.
    :raises DomainError: `last_admin` when nobody would be left to administer.
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
    """Keep somebody out: their sessions end and they can't sign in. What they did stays.

    :raises NotFound: when there is nobody with this id.
    :raises DomainError: `last_admin` when nobody would be left to administer.
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
    """Let somebody in again, with the password and role they had.

    :raises NotFound: when there is nobody with this id.
    """
    user = _lock_staff_user(user_id)
    if not user.is_active:
        user.disabled_at = None
        record_audit_entry(by, "staff.enabled", user.email)
    db.session.commit()
    return user


def end_staff_sessions(user_id: int, by: str) -> StaffUser:
    """Sign somebody out everywhere.

    :raises NotFound: when there is nobody with this id.
    """
    user = _lock_staff_user(user_id)
    user.session_version += 1
    record_audit_entry(by, "staff.sessions_ended", user.email)
    db.session.commit()
    return user


# --- keys of machines ----------------------------------------------------------------------------


class ApiClient(NamedTuple):
    """The key a machine has shown. Plain values: asking for them never reads the database again."""

    id: int
    name: str
    scopes: list[str]


def create_api_key(name: str, scopes: list[str], by: str, expires_at: datetime | None = None) -> str:
    """Make a key and return it; only an HMAC-SHA256 of its secret is kept.

    :raises Invalid: when the name is empty, a scope is unknown, or the key would have expired already.
    """
    if not name.strip():
        raise InvalidInput(FieldError("name", "name_missing", "Say who uses the key."))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidInput(FieldError("scopes", "scopes_invalid", f"Choose from {', '.join(SCOPES)}."))
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidInput(FieldError("expires_on", "expiry_past", "Choose a day that is not over yet."))
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
    """Make a key worthless from now on, for good. A second time changes nothing."""
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
    """The key of an `Authorization: Bearer …` header (RFC 6750): one indexed SELECT, and the same work for any key.

    :raises DomainError: `unauthorized` (401), the same for a key that is unknown, revoked, expired or wrong.
    """
    kind, _, given = authorization.partition(" ")
    head, _, rest = given.strip().partition("_live_")
    public_id, _, secret = rest.partition("_")
    if kind.lower() == "bearer" and head and secret and public_id.isascii() and public_id.isalnum():
        found = _load_api_key(public_id)
        key = signing_keys.find_secret("api_key", found.key_version) if found else None
        expected = bytes(found.secret_hash) if found else bytes(32)
        mac = _compute_hmac(key or b"", secret)
        if hmac.compare_digest(mac, expected) and found and found.is_valid:
            if found.is_last_used_stale:
                _update_last_used(found.id)
                current_app.extensions.get("api_keys", {}).pop(public_id, None)
            return ApiClient(found.id, found.name, found.scopes)
    raise DomainError("unauthorized", "Send a valid key as: Authorization: Bearer …", 401)


def _load_api_key(public_id: str) -> account_queries.ApiKeyRow | None:
    """The row of a key that was read at most a second ago: a till that calls a hundred times a second reads it once.

    So a key that was revoked in another process works for one more second there. Its secret is proven each time.
    """
    seen: dict[str, tuple[float, account_queries.ApiKeyRow]] = current_app.extensions.setdefault("api_keys", {})
    held = seen.get(public_id)
    if held and held[0] > time.monotonic() - API_KEY_CACHE_SECONDS:
        return held[1]
    read_at = time.monotonic()
    found = account_queries.find_api_key(public_id)
    if found is None:
        seen.pop(public_id, None)
    else:
        seen[public_id] = read_at, found
    return found


def _update_last_used(key_id: int) -> None:
    """Note the use, once a minute. Of many calls at the same moment one writes and none waits."""
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


def _consume_invitation(token: str, for_somebody: bool) -> _ConsumedInvitation:
    """Consume an invitation: whoever changes the row has it; everybody else finds none."""
    owner = Invitation.staff_user_id
    used = db.session.execute(
        update(Invitation)
        .where(
            Invitation.token_hash == hash_token(token),
            Invitation.used_at.is_(None),
            Invitation.expires_at > func.now(),
            owner.is_not(None) if for_somebody else owner.is_(None),
        )
        .values(used_at=func.now())
        .returning(Invitation.role, Invitation.staff_user_id)
    ).one_or_none()
    if used is None:
        _roll_back_and_raise(NotFound(LINK_EXPIRED_MESSAGE))
    return _ConsumedInvitation(used.role, used.staff_user_id)


def _delete_reset_links(user_id: int) -> None:
    db.session.execute(delete(Invitation).where(Invitation.staff_user_id == user_id, Invitation.used_at.is_(None)))


def _check_admin_remains(besides: int) -> None:
    """Lock the active admins, always in the same order, so that two who go at the same time see each other."""
    if account_queries.lock_active_admins() == [besides]:
        _roll_back_and_raise(
            DomainError("last_admin", "This is the last active administrator. Make somebody else administrator first.")
        )


def _lock_staff_user(user_id: int) -> StaffUser:
    user = account_queries.lock_staff_user(user_id)
    if user is None:
        raise NotFound("There is nobody with this number. Look at the list of people.")
    return user


def _find_user_by_typed_email(email: str) -> StaffUser | None:
    try:
        return account_queries.find_staff_user_by_email(normalise_email(email))
    except InvalidInput:
        return None


def _roll_back_and_raise(error: DomainError) -> NoReturn:
    """Undo what this transaction has changed so far, then say no."""
    db.session.rollback()
    raise error
