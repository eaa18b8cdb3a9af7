"""Authenticator apps: codes, their single use, and the encryption of secrets."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyotp
import pytest
from flask import Flask
from sqlalchemy import func, select, update

from tests.support.authenticator import SoftwareAuthenticator
from tests.support.factors import add_app, add_passkey, code_now
from tests.support.sql_statements import recorded_statements
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors import recovery_code_actions, totp, totp_actions
from webapp.accounts.factors.models import RecoveryCode, TotpAuthenticator
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db

MakeUser = Callable[..., StaffUser]
NOON = datetime(2026, 5, 3, 12, tzinfo=UTC)
# RFC 6238, appendix B: the SHA-1 secret, times in seconds, and the last six digits of the codes.
RFC_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


def code_at(secret: str, at: datetime) -> str:
    return pyotp.TOTP(secret).at(at)


@pytest.fixture
def user(make_staff_user: MakeUser) -> StaffUser:
    return make_staff_user("manager")


@pytest.fixture
def secret(user: StaffUser) -> str:
    """The secret of a confirmed app, whose last used code is that of the previous step."""
    secret, _ = add_app(user)
    return secret


@pytest.mark.parametrize(("seconds", "code"), [(59, "287082"), (1111111109, "081804"), (20000000000, "353130")])
def test_codes_are_those_of_the_standard(seconds: int, code: str) -> None:
    assert totp.find_totp_step(RFC_SECRET, code, datetime.fromtimestamp(seconds, UTC)) == seconds // 30


@pytest.mark.parametrize("seconds", [-30, 0, 30])
def test_a_code_of_the_neighbouring_steps_is_accepted(seconds: int) -> None:
    code = code_at(RFC_SECRET, NOON + timedelta(seconds=seconds))
    assert totp.find_totp_step(RFC_SECRET, f" {code[:3]} {code[3:]} ", NOON) is not None


@pytest.mark.parametrize("seconds", [-90, -60, 60, 90])
def test_a_code_of_other_steps_is_refused(seconds: int) -> None:
    assert totp.find_totp_step(RFC_SECRET, code_at(RFC_SECRET, NOON + timedelta(seconds=seconds)), NOON) is None


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "١٢٣٤٥٦", "12345\x00", "1" * 100_000])
def test_a_malformed_code_is_wrong(code: str) -> None:
    assert totp.find_totp_step(RFC_SECRET, code, NOON) is None


def test_apps_show_the_program_and_the_account() -> None:
    assert totp.build_provisioning_uri(RFC_SECRET, "ada@example.com", "Onecode") == (
        f"otpauth://totp/Onecode:ada%40example.com?secret={RFC_SECRET}&issuer=Onecode"
    )


def test_a_secret_is_stored_encrypted_for_its_user(user: StaffUser) -> None:
    secret = totp_actions.start_totp_setup(user.id)
    stored = db.session.scalars(select(TotpAuthenticator.secret_encrypted)).one()
    assert secret.encode() not in stored
    assert totp.decrypt_totp_secret(stored, user.id) == secret
    with pytest.raises(totp.SecretUnreadable):
        totp.decrypt_totp_secret(stored, user.id + 1)


def test_a_secret_of_an_earlier_version_is_decrypted(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.config, "SECRET_KEY", "the key of an earlier version")
    stored = base64.b64decode("AAECAwQFBgcICQoLzXII6j2XSoLhgj5ncYMQTtIA9nmElSFzGhkuHWo2ncRK4HmzTAeyhdhMP7naG+Rd")
    assert totp.decrypt_totp_secret(stored, 7) == RFC_SECRET


def test_the_setup_keeps_its_secret_until_it_is_confirmed(user: StaffUser) -> None:
    secret = totp_actions.start_totp_setup(user.id)
    assert totp_actions.start_totp_setup(user.id) == secret
    assert not factor_queries.has_second_factor(user.id)
    codes = totp_actions.confirm_totp(user.id, code_now(secret))
    assert len(codes) == 10
    assert factor_queries.load_factor_overview(user.id).recovery_codes_left == 10
    assert totp_actions.start_totp_setup(user.id) != secret


def test_a_setup_that_was_not_finished_is_started_again_after_an_hour(user: StaffUser) -> None:
    """Someone may have seen the secret, which the user would confirm long afterwards."""
    secret = totp_actions.start_totp_setup(user.id)
    secrets = []
    for minutes in (59, 61):
        db.session.execute(update(TotpAuthenticator).values(created_at=func.now() - timedelta(minutes=minutes)))
        db.session.commit()
        secrets.append(totp_actions.start_totp_setup(user.id))
    new_secret = secrets[1]
    assert [shown == secret for shown in secrets] == [True, False]
    with pytest.raises(InvalidInput):
        totp_actions.confirm_totp(user.id, code_now(secret))
    assert totp_actions.confirm_totp(user.id, code_now(new_secret))


def test_a_wrong_code_confirms_nothing(user: StaffUser) -> None:
    totp_actions.start_totp_setup(user.id)
    with pytest.raises(InvalidInput) as error:
        totp_actions.confirm_totp(user.id, "000000x")
    assert error.value.errors[0].field == "code"
    assert not factor_queries.has_second_factor(user.id)


def test_a_new_app_replaces_the_old_one_and_keeps_the_recovery_codes(user: StaffUser, secret: str) -> None:
    new_secret = totp_actions.start_totp_setup(user.id)
    totp_actions.use_totp_code(user.id, code_now(secret))
    assert totp_actions.confirm_totp(user.id, code_now(new_secret)) == []
    with pytest.raises(InvalidInput):
        totp_actions.use_totp_code(user.id, code_now(secret, 1))
    totp_actions.use_totp_code(user.id, code_now(new_secret, 1))


def test_a_code_is_accepted_once(user: StaffUser, secret: str) -> None:
    code = code_now(secret)
    totp_actions.use_totp_code(user.id, code)
    with pytest.raises(InvalidInput) as error:
        totp_actions.use_totp_code(user.id, code)
    assert error.value.errors[0].key == "code_used"


def test_the_code_of_the_setup_is_not_accepted_again(user: StaffUser) -> None:
    secret = totp_actions.start_totp_setup(user.id)
    code = code_now(secret)
    totp_actions.confirm_totp(user.id, code)
    with pytest.raises(InvalidInput):
        totp_actions.use_totp_code(user.id, code)


def test_an_older_code_is_refused_after_a_newer_one(user: StaffUser, secret: str) -> None:
    totp_actions.use_totp_code(user.id, code_now(secret, 1))
    with pytest.raises(InvalidInput):
        totp_actions.use_totp_code(user.id, code_now(secret))


def test_concurrent_uses_of_a_code_succeed_once(app: Flask, user: StaffUser, secret: str) -> None:
    code, user_id = code_now(secret), user.id
    db.session.rollback()
    barrier, results = threading.Barrier(4), []

    def use() -> None:
        with app.app_context():
            barrier.wait()
            try:
                totp_actions.use_totp_code(user_id, code)
                results.append("accepted")
            except InvalidInput as error:
                results.append(error.errors[0].key)
            finally:
                db.session.remove()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["accepted", "code_used", "code_used", "code_used"]


def test_a_secret_that_cannot_be_decrypted_is_logged(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    encrypted = totp.encrypt_totp_secret(totp.generate_totp_secret(), 1)
    with pytest.raises(totp.SecretUnreadable):
        totp.decrypt_totp_secret(encrypted, 2)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "the secret of the authenticator app of user 2 cannot be decrypted")
    ]


def test_another_secret_key_is_explained_and_the_app_can_be_set_up_again(
    app: Flask, user: StaffUser, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.config, "SECRET_KEY", "another")
    with pytest.raises(DomainError) as error:
        totp_actions.use_totp_code(user.id, code_now(secret))
    assert error.value.key == "app_unreadable"
    new_secret = totp_actions.start_totp_setup(user.id)
    totp_actions.confirm_totp(user.id, code_now(new_secret))
    totp_actions.use_totp_code(user.id, code_now(new_secret, 1))


def test_a_setup_of_another_secret_key_is_started_again(
    app: Flask, user: StaffUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = totp_actions.start_totp_setup(user.id)
    monkeypatch.setitem(app.config, "SECRET_KEY", "another")
    with pytest.raises(DomainError) as error:
        totp_actions.confirm_totp(user.id, code_now(secret))
    assert error.value.key == "setup_expired"
    assert totp_actions.start_totp_setup(user.id) != secret


class TestCodeBeforePassword:
    def test_the_code_of_the_user_is_right_once(self, user: StaffUser, secret: str) -> None:
        code = code_now(secret)
        assert totp_actions.check_code_before_password(" Manager@Example.com", code)
        assert not totp_actions.check_code_before_password("manager@example.com", code)

    def test_others_have_no_right_code(self, user: StaffUser, make_staff_user: MakeUser, secret: str) -> None:
        make_staff_user("viewer")
        for email in ("viewer@example.com", "unknown@example.com", "no address", ""):
            assert not totp_actions.check_code_before_password(email, code_now(secret)), email

    def test_wrong_codes_cost_the_same_for_all_accounts(
        self, user: StaffUser, make_staff_user: MakeUser, secret: str
    ) -> None:
        make_staff_user("viewer")
        costs = []
        for email in (user.email, "viewer@example.com", "unknown@example.com"):
            db.session.rollback()
            with recorded_statements() as statements:
                assert not totp_actions.check_code_before_password(email, "000000x")
            costs.append(len(statements))
        assert costs == [2, 2, 2]

    def test_a_disabled_user_has_none(self, user: StaffUser, secret: str, make_staff_user: MakeUser) -> None:
        user.disabled_at = NOON
        db.session.commit()
        assert not totp_actions.check_code_before_password(user.email, code_now(secret))

    def test_an_app_that_is_not_confirmed_has_none(self, user: StaffUser) -> None:
        secret = totp_actions.start_totp_setup(user.id)
        assert not totp_actions.check_code_before_password(user.email, code_now(secret))


class TestRemoval:
    def test_the_app_and_the_recovery_codes_are_removed(self, user: StaffUser, secret: str) -> None:
        factor_actions.remove_totp(user.id)
        overview = factor_queries.load_factor_overview(user.id)
        assert (overview.is_enabled, overview.recovery_codes_left) == (False, 0)

    def test_the_last_factor_stays_if_the_role_requires_one(
        self, user: StaffUser, secret: str, with_settings: Callable[..., object]
    ) -> None:
        with_settings(second_factor_roles=("manager",))
        with pytest.raises(DomainError) as error:
            factor_actions.remove_totp(user.id)
        assert error.value.key == "second_factor_required"
        assert factor_queries.load_factor_overview(user.id).is_enabled
        assert factor_queries.load_factor_overview(user.id).recovery_codes_left == 10

    def test_a_reset_removes_everything(self, user: StaffUser, secret: str) -> None:
        add_passkey(user, SoftwareAuthenticator())
        factor_actions.reset_second_factor(user.id, by="admin@example.com")
        overview = factor_queries.load_factor_overview(user.id)
        assert (overview.is_enabled, overview.recovery_codes_left) == (False, 0)

    def test_the_recovery_codes_stay_with_another_factor(self, user: StaffUser, secret: str) -> None:
        add_passkey(user, SoftwareAuthenticator())
        factor_actions.remove_totp(user.id)
        assert factor_queries.load_factor_overview(user.id).recovery_codes_left == 10


class TestTwoUsers:
    @pytest.fixture
    def other(self, make_staff_user: MakeUser) -> StaffUser:
        """Another user, with every factor and an app that is being set up."""
        other = make_staff_user("viewer")
        add_app(other)
        add_passkey(other, SoftwareAuthenticator())
        totp_actions.start_totp_setup(other.id)
        return other

    @pytest.mark.parametrize(
        "change",
        [
            factor_actions.remove_totp,
            lambda user_id: factor_actions.reset_second_factor(user_id, by="admin@example.com"),
            lambda user_id: totp_actions.confirm_totp(user_id, code_now(totp_actions.start_totp_setup(user_id))),
            totp_actions.discard_totp_setup,
            recovery_code_actions.replace_recovery_codes,
        ],
        ids=["removed", "reset", "replaced", "set-up discarded", "new codes"],
    )
    def test_the_factors_of_the_other_stay(
        self, user: StaffUser, secret: str, other: StaffUser, change: Callable[[int], object]
    ) -> None:
        before = factor_queries.load_factor_overview(other.id)
        pending = factor_queries.find_pending_totp_authenticator(other.id)
        assert (before.is_enabled, len(before.passkeys), before.recovery_codes_left) == (True, 1, 10)
        assert pending is not None

        change(user.id)

        assert factor_queries.load_factor_overview(other.id) == before
        assert factor_queries.find_pending_totp_authenticator(other.id) == pending

    def test_each_has_an_overview_and_recovery_codes_of_their_own(
        self, user: StaffUser, other: StaffUser, make_staff_user: MakeUser
    ) -> None:
        assert not factor_queries.load_factor_overview(user.id).is_enabled
        assert not factor_queries.has_second_factor(user.id)
        assert factor_queries.find_totp_authenticator(user.id) is None
        assert factor_queries.list_users_with_second_factor() == {other.id}
        _, codes = add_app(user)
        assert len(codes) == 10
        assert len(add_passkey(make_staff_user("admin"), SoftwareAuthenticator())) == 10
        assert recovery_code_actions.use_recovery_code(user.id, codes[0]) == 9

    def test_codes_of_both_are_accepted_in_the_same_time_step(
        self, user: StaffUser, secret: str, make_staff_user: MakeUser
    ) -> None:
        other = make_staff_user("viewer")
        other_secret, _ = add_app(other)
        totp_actions.use_totp_code(user.id, code_now(secret, 1))
        totp_actions.use_totp_code(other.id, code_now(other_secret))


def test_new_recovery_codes_come_with_a_new_app_if_all_were_used(user: StaffUser, secret: str) -> None:
    db.session.execute(update(RecoveryCode).values(used_at=func.now()))
    assert len(totp_actions.confirm_totp(user.id, code_now(totp_actions.start_totp_setup(user.id)))) == 10
