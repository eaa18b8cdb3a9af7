"""Actions on authenticator apps."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

from flask_babel import gettext as _
from sqlalchemy import delete, func, select, update

from webapp.accounts import notices
from webapp.accounts.actions import lock_existing_staff_user
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors import totp
from webapp.accounts.factors.models import RecoveryCode, TotpAuthenticator
from webapp.accounts.factors.recovery_code_actions import NewRecoveryCodes, store_recovery_codes
from webapp.core import database_clock
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.core.request_origin import get_request_origin

# How long the same secret is shown to a user who sets up an authenticator app.
SETUP_TIME = timedelta(hours=1)


def start_totp_setup(user_id: int) -> str:
    """Return the secret of the authenticator app that a user is setting up; create it if there is none.

    The app is used only after `confirm_totp`. Until then an app that was set up earlier keeps working. A secret older
    than `SETUP_TIME` is replaced: someone may have seen it long before the user continues. Another session of the user
    gets another secret and ends this set-up, so that a stranger in one session does not learn the secret that the user
    sets up in another.

    :raises NotFound: when there is no user with this id.
    """
    lock_existing_staff_user(user_id)
    pending = factor_queries.find_pending_totp_authenticator(user_id)
    secret = _read_pending_secret(pending)
    is_old = pending is not None and pending.created_at < database_clock.get_database_time() - SETUP_TIME
    if secret is None or is_old:
        secret = totp.generate_totp_secret()
        _delete_authenticators(user_id, confirmed=False)
        encrypted = totp.encrypt_totp_secret(secret, user_id, get_request_origin().staff_session_id)
        db.session.add(TotpAuthenticator(staff_user_id=user_id, secret_encrypted=encrypted))
    db.session.commit()
    return secret


def discard_totp_setup(user_id: int) -> None:
    """Discard the secret of an app that a user has begun to set up, so that the next set-up has another one."""
    _delete_authenticators(user_id, confirmed=False)
    db.session.commit()


def confirm_totp(user_id: int, code: str) -> list[str]:
    """Start using the authenticator app that a user has set up, if its code is right. Replaces an earlier app.

    :returns: recovery codes, if the user had none that are unused; otherwise an empty list.
    :raises InvalidInput: when the code is wrong.
    :raises DomainError: `setup_done` when the app was already set up, for example by the same request;
        `setup_expired` when there is no set-up to confirm.
    """
    new = NewRecoveryCodes() if _count_recovery_codes(user_id) == 0 else None
    user = lock_existing_staff_user(user_id)
    pending = factor_queries.find_pending_totp_authenticator(user_id)
    secret = _read_pending_secret(pending)
    if pending is None and factor_queries.find_totp_authenticator(user_id):
        db.session.rollback()
        raise DomainError("setup_done", _("The authenticator app is already set up."), 409)
    if pending is None or secret is None:
        db.session.rollback()
        raise DomainError("setup_expired", _("The set-up has changed. Scan the new QR code."), 422)
    step = totp.find_totp_step(secret, code, database_clock.get_database_time())
    if step is None:
        db.session.rollback()
        message = _("This code is wrong or has expired. Enter the code that the app shows now.")
        raise InvalidInput(FieldError("code", "code_wrong", message))
    _delete_authenticators(user_id, confirmed=True)
    pending.confirmed_at, pending.last_used_step = func.now(), step
    pending.secret_encrypted = totp.encrypt_totp_secret(secret, user_id)
    if new:
        store_recovery_codes(user_id, new)
    record_audit_entry(user.email, "totp.added", user.email)
    notices.notify_second_factor_changed(user, "totp.added")
    db.session.commit()
    notices.enqueue_account_emails()
    return new.codes if new else []


def use_totp_code(user_id: int, code: str) -> None:
    """Use up a code of the user's authenticator app; it is accepted once.

    :raises InvalidInput: `code_wrong` for a wrong or expired code, `code_used` for one that was used before.
    :raises DomainError: `app_unreadable` when SECRET_KEY has changed since the app was set up.
    """
    authenticator = factor_queries.find_totp_authenticator(user_id)
    if authenticator is None:
        raise InvalidInput(FieldError("code", "code_wrong", _("This account has no authenticator app.")))
    try:
        secret = totp.decrypt_totp_secret(authenticator.secret_encrypted, user_id)
    except totp.SecretUnreadable as error:
        message = _(
            "The codes of your app can no longer be checked, because the secret key of this server has changed. "
            "Use a recovery code or a passkey, then set up the app again."
        )
        raise DomainError("app_unreadable", message, 422) from error
    step = totp.find_totp_step(secret, code, database_clock.get_database_time())
    if step is None:
        message = _("This code is wrong or has expired. Enter the code that your app shows now.")
        raise InvalidInput(FieldError("code", "code_wrong", message))
    if not _consume_step(authenticator.id, step):
        message = _("This code was already used. Wait until your app shows the next one.")
        raise InvalidInput(FieldError("code", "code_used", message))


def check_code_before_password(email: str, code: str) -> bool:
    """Use up a code of the app of the user with this email address; return whether it was right.

    While a password is being guessed, this check lets through only those who have the app. It does the same work for an
    unknown address, a user without an app and a wrong code, and no password is verified before it.
    """
    try:
        authenticator = factor_queries.find_active_totp_by_email(normalise_email(email))
    except InvalidInput:
        authenticator = None
    encrypted, user_id = _get_dummy_secret()
    if authenticator is not None:
        encrypted, user_id = authenticator.secret_encrypted, authenticator.staff_user_id
    try:
        secret = totp.decrypt_totp_secret(encrypted, user_id)
    except totp.SecretUnreadable:
        return False
    step = totp.find_totp_step(secret, code, database_clock.get_database_time())
    return step is not None and authenticator is not None and _consume_step(authenticator.id, step)


def _read_pending_secret(pending: TotpAuthenticator | None) -> str | None:
    """Return the secret of an app that is being set up in this session.

    None if there is none, another session has begun it, or SECRET_KEY has changed since.
    """
    if pending is None:
        return None
    session_id = get_request_origin().staff_session_id
    try:
        return totp.decrypt_totp_secret(pending.secret_encrypted, pending.staff_user_id, session_id)
    except totp.SecretUnreadable:
        return None


def _consume_step(authenticator_id: int, step: int) -> bool:
    """Record the use of a time step and commit; False if it or a later one was used before.

    Only one of several concurrent calls succeeds.
    """
    used_id = db.session.scalar(
        update(TotpAuthenticator)
        .where(TotpAuthenticator.id == authenticator_id, TotpAuthenticator.last_used_step < step)
        .values(last_used_step=step)
        .returning(TotpAuthenticator.id)
        .execution_options(synchronize_session=False)
    )
    db.session.commit()
    return used_id is not None


def _delete_authenticators(user_id: int, confirmed: bool) -> None:
    state = TotpAuthenticator.confirmed_at
    db.session.execute(
        delete(TotpAuthenticator)
        .where(TotpAuthenticator.staff_user_id == user_id, state.is_not(None) if confirmed else state.is_(None))
        .execution_options(synchronize_session=False)
    )


def _count_recovery_codes(user_id: int) -> int:
    unused = select(func.count()).where(RecoveryCode.staff_user_id == user_id, RecoveryCode.used_at.is_(None))
    return db.session.scalar(unused) or 0


@lru_cache(maxsize=1)
def _get_dummy_secret() -> tuple[bytes, int]:
    return totp.encrypt_totp_secret(totp.generate_totp_secret(), 0), 0
