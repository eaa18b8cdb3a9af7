"""Actions on recovery codes."""

from __future__ import annotations

from flask_babel import gettext as _
from sqlalchemy import delete, func, insert, select, update

from webapp.accounts import notices, passwords
from webapp.accounts.actions import check_is_active, lock_existing_staff_user
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.factors import recovery_codes
from webapp.accounts.factors.models import RecoveryCode
from webapp.core.errors import FieldError, InvalidInput
from webapp.core.extensions import db


class NewRecoveryCodes:
    """New recovery codes and their hashes, which take half a second to compute: create them before locking rows."""

    def __init__(self) -> None:
        self.codes = recovery_codes.generate_codes()
        parsed = [recovery_codes.parse_code(code) for code in self.codes]
        self.hashes = {code.slot: passwords.hash_password(code.text) for code in parsed if code}


def replace_recovery_codes(user_id: int) -> list[str]:
    """Replace the recovery codes of a user; return the new ones. They are stored as hashes only.

    :raises NotFound: when there is no user with this id.
    """
    new = NewRecoveryCodes()
    user = lock_existing_staff_user(user_id)
    store_recovery_codes(user_id, new)
    record_audit_entry(user.email, "recovery_codes.created", user.email)
    notices.notify_second_factor_changed(user, "recovery_codes.created")
    db.session.commit()
    notices.enqueue_account_emails()
    return new.codes


def store_recovery_codes(user_id: int, new: NewRecoveryCodes) -> None:
    """Replace the recovery codes of a user whose row is locked. Does not commit."""
    db.session.execute(delete(RecoveryCode).where(RecoveryCode.staff_user_id == user_id))
    rows = [{"staff_user_id": user_id, "slot": slot, "code_hash": code_hash} for slot, code_hash in new.hashes.items()]
    db.session.execute(insert(RecoveryCode), rows)


def use_recovery_code(user_id: int, code: str) -> int:
    """Use up a recovery code; return the number of unused ones that are left.

    Its first character names its row, so that only one hash is verified (ASVS 5.0, 6.5.2).

    :raises InvalidInput: `code_wrong` for a code that is wrong, has been replaced or was used.
    """
    parsed = recovery_codes.parse_code(code)
    row = None if parsed is None else db.session.get(RecoveryCode, (user_id, parsed.slot), populate_existing=True)
    if parsed is None or row is None or not passwords.verify_password(row.code_hash, parsed.text):
        message = _("This recovery code is wrong. Check it, and use a code from your newest list.")
        raise InvalidInput(FieldError("code", "code_wrong", message))
    # Before the code, as where codes are replaced: the order avoids deadlocks.
    user = lock_existing_staff_user(user_id)
    check_is_active(user)
    used_slot = db.session.scalar(
        update(RecoveryCode)
        .where(
            RecoveryCode.staff_user_id == user_id,
            RecoveryCode.slot == parsed.slot,
            RecoveryCode.code_hash == row.code_hash,
            RecoveryCode.used_at.is_(None),
        )
        .values(used_at=func.now())
        .returning(RecoveryCode.slot)
        .execution_options(synchronize_session=False)
    )
    if used_slot is None:
        db.session.rollback()
        raise InvalidInput(
            FieldError("code", "code_used", _("This recovery code was already used. Use another one from your list."))
        )
    codes_left = db.session.scalar(
        select(func.count()).where(RecoveryCode.staff_user_id == user_id, RecoveryCode.used_at.is_(None))
    )
    record_audit_entry(user.email, "recovery_code.used", user.email, left=codes_left)
    notices.notify_second_factor_changed(user, "recovery_code.used")
    db.session.commit()
    notices.enqueue_account_emails()
    return codes_left or 0
