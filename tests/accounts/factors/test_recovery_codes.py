"""Recovery codes: their format, and their single use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from tests.support.sql_statements import recorded_statements
from webapp.accounts import audit_queries, passwords
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors import recovery_code_actions, recovery_codes
from webapp.accounts.factors.models import RecoveryCode
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db


@pytest.fixture
def user(make_staff_user: Callable[..., StaffUser]) -> StaffUser:
    return make_staff_user("manager")


def error_key(user: StaffUser, code: str) -> str:
    with pytest.raises(InvalidInput) as error:
        recovery_code_actions.use_recovery_code(user.id, code)
    return error.value.errors[0].key


def test_codes_are_random_and_each_has_its_row(user: StaffUser) -> None:
    codes = recovery_code_actions.replace_recovery_codes(user.id)
    assert [code[0] for code in codes] == list(recovery_codes.SLOTS)
    assert all(len(code) == 14 and code.count("-") == 2 for code in codes)
    assert not set(codes) & set(recovery_codes.generate_codes())
    hashes = db.session.scalars(select(RecoveryCode.code_hash)).all()
    assert len(set(hashes)) == 10
    assert all(code_hash.startswith("$argon2id$") for code_hash in hashes)


def test_a_code_works_once_however_it_is_written(user: StaffUser) -> None:
    codes = recovery_code_actions.replace_recovery_codes(user.id)
    assert recovery_code_actions.use_recovery_code(user.id, codes[3].upper().replace("-", " ")) == 9
    assert error_key(user, codes[3]) == "code_used"
    assert recovery_code_actions.use_recovery_code(user.id, codes[4]) == 8
    assert factor_queries.load_factor_overview(user.id).recovery_codes_left == 8
    entry = audit_queries.find_last_audit_entry("recovery_code.used", user.email)
    assert entry is not None
    assert entry.detail == {"left": 8}


@pytest.mark.parametrize("code", ["", "123456", "z222-2222-2222", "a222-2222-2222", "a222\x00", "a" * 100_000])
def test_a_wrong_code_is_refused(user: StaffUser, code: str) -> None:
    recovery_code_actions.replace_recovery_codes(user.id)
    assert error_key(user, code) == "code_wrong"


def test_a_code_of_another_user_or_an_earlier_list_is_refused(
    user: StaffUser, make_staff_user: Callable[..., StaffUser]
) -> None:
    other = make_staff_user("viewer")
    others = recovery_code_actions.replace_recovery_codes(other.id)
    earlier = recovery_code_actions.replace_recovery_codes(user.id)
    recovery_code_actions.replace_recovery_codes(user.id)
    assert error_key(user, others[0]) == "code_wrong"
    assert error_key(user, earlier[0]) == "code_wrong"


def test_only_one_hash_is_verified(user: StaffUser, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = recovery_code_actions.replace_recovery_codes(user.id)
    verified: list[str] = []
    verify = passwords.verify_password

    def record(password_hash: str, password: str) -> bool:
        verified.append(password)
        return verify(password_hash, password)

    monkeypatch.setattr(passwords, "verify_password", record)
    recovery_code_actions.use_recovery_code(user.id, codes[9])
    assert len(verified) == 1


def test_the_user_is_locked_before_the_code(user: StaffUser) -> None:
    """Replacing the codes locks them in this order: another one could end in a deadlock."""
    codes = recovery_code_actions.replace_recovery_codes(user.id)
    with recorded_statements() as statements:
        recovery_code_actions.use_recovery_code(user.id, codes[0])
    locks = [text for text, _ in statements if text.startswith(("UPDATE", "DELETE")) or " FOR " in text]
    assert locks[0].startswith("SELECT staff_user.id")


def test_a_disabled_user_cannot_use_a_code(user: StaffUser) -> None:
    codes = recovery_code_actions.replace_recovery_codes(user.id)
    user.disabled_at = user.created_at
    db.session.commit()
    with pytest.raises(DomainError) as error:
        recovery_code_actions.use_recovery_code(user.id, codes[0])
    assert error.value.key == "disabled"
    assert factor_queries.load_factor_overview(user.id).recovery_codes_left == 10
