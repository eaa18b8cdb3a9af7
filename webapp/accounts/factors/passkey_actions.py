"""Actions on passkeys: creating them and signing in with them."""

from __future__ import annotations

from flask_babel import gettext as _
from sqlalchemy import func, or_, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts import notices
from webapp.accounts.actions import check_is_active, lock_existing_staff_user, roll_back_and_raise
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.factors import passkeys
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.models import Passkey
from webapp.accounts.factors.passkeys import Challenge
from webapp.accounts.factors.recovery_code_actions import NewRecoveryCodes, store_recovery_codes
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db

MAX_PASSKEYS = 20
MAX_NAME_LENGTH = 60


def add_passkey(user_id: int, name: str, response: str, challenge: Challenge | None) -> list[str]:
    """Store a new passkey of a user after verifying the response of the browser.

    :returns: recovery codes, if the user had none that are unused; otherwise an empty list.
    :raises InvalidInput: when the name is empty or too long.
    :raises DomainError: when the response is not valid, the passkey exists already, or there are too many.
    """
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        message = _("Enter a name with at most %(max)s characters.", max=MAX_NAME_LENGTH)
        raise InvalidInput(FieldError("name", "name_invalid", message))
    challenge = passkeys.consume_challenge(challenge)
    verified = passkeys.verify_registration(response, challenge)
    new = NewRecoveryCodes() if factor_queries.load_factor_overview(user_id).recovery_codes_left == 0 else None
    user = lock_existing_staff_user(user_id)
    if len(factor_queries.list_passkeys(user_id)) >= MAX_PASSKEYS:
        message = _("You have %(max)s passkeys, which is the maximum. Remove one first.", max=MAX_PASSKEYS)
        roll_back_and_raise(DomainError("too_many_passkeys", message))
    statement = insert(Passkey).values(
        staff_user_id=user_id,
        credential_id=verified.credential_id,
        public_key=verified.credential_public_key,
        sign_count=verified.sign_count,
        user_handle=challenge.user_handle,
        rp_id=passkeys.get_relying_party().id,
        name=name,
        transports=passkeys.read_transports(response),
    )
    statement = statement.on_conflict_do_nothing(index_elements=[Passkey.credential_id])
    if db.session.scalar(statement.returning(Passkey.id)) is None:
        roll_back_and_raise(DomainError("passkey_exists", _("This passkey has already been added.")))
    if new:
        store_recovery_codes(user_id, new)
    record_audit_entry(user.email, "passkey.added", user.email, name=name)
    notices.notify_second_factor_changed(user, "passkey.added")
    db.session.commit()
    notices.enqueue_account_emails()
    return new.codes if new else []


def verify_passkey(response: str, challenge: Challenge | None, user_id: int | None = None) -> StaffUser:
    """Return the user whose passkey has signed the challenge. Does not commit.

    The authenticator has verified the user, so that this is a sign-in with two factors. The row of the user is locked
    until the caller starts the session, which a concurrent reset of the second factors then ends.

    :param user_id: the only user to accept, when the passkey is the second factor; None to accept any.
    :raises DomainError: `passkey_expired`, `passkey_invalid`, `passkey_unknown`, or `disabled`.
    """
    challenge = passkeys.consume_challenge(challenge)
    credential_id, user_handle = passkeys.parse_credential(response)
    passkey = factor_queries.find_passkey(credential_id)
    if passkey is None or (user_id is not None and passkey.staff_user_id != user_id):
        message = _("This passkey is not known here. It may have been removed, or belong to another account.")
        raise DomainError("passkey_unknown", message, 422)
    # The handle is required only for a passkey that the authenticator has found on its own (Level 2, 7.2).
    if user_handle != passkey.user_handle and (user_handle is not None or user_id is None):
        raise DomainError("passkey_unknown", _("This passkey belongs to another account."), 422)
    verified = passkeys.verify_authentication(response, challenge, passkey)
    user = lock_existing_staff_user(passkey.staff_user_id)
    check_is_active(user)
    _update_sign_count(passkey, verified.new_sign_count, user)
    return user


def _update_sign_count(passkey: Passkey, sign_count: int, user: StaffUser) -> None:
    """Store the sign count and the time of use. Does not commit, unless it raises.

    :raises DomainError: `passkey_invalid` when the count has not grown, since the passkey may have been copied
        (Level 2, 6.1.1).
    """
    has_grown = or_(Passkey.sign_count < sign_count, (Passkey.sign_count == 0) & (sign_count == 0))
    updated_id = db.session.scalar(
        update(Passkey)
        .where(Passkey.id == passkey.id, has_grown)
        .values(sign_count=sign_count, last_used_at=func.now())
        .returning(Passkey.id)
        .execution_options(synchronize_session=False)
    )
    if updated_id is None:
        record_audit_entry(user.email, "passkey.refused", user.email, name=passkey.name)
        db.session.commit()
        message = _(
            "This passkey was refused, because a copy of it may exist. Sign in another way and remove it, "
            "or ask an administrator."
        )
        raise DomainError("passkey_invalid", message, 422)
