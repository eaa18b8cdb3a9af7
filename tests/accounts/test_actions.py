"""Actions on staff users, invitations, passwords and API keys."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, func, select, update

from tests.support.accounts import PASSWORD
from tests.support.sessions import TEST_CLIENT
from tests.support.sql_statements import recorded_statements
from webapp.accounts import actions as account_actions
from webapp.accounts import (
    api_key_actions,
    invitation_actions,
    links,
    passwords,
    session_actions,
    session_queries,
    sign_in_actions,
)
from webapp.accounts import queries as account_queries
from webapp.accounts.models import ApiKey, AuditEntry, Invitation, StaffDevice, StaffSession, StaffUser
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db

Person = Callable[..., StaffUser]
Token = Callable[..., str]


def run_concurrently(app: Flask, *calls: Callable[[], object]) -> list[object]:
    """Make all calls at once in threads; return results or errors in order."""
    start = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def run(index: int, call: Callable[[], object]) -> None:
        with app.app_context():
            start.wait()
            try:
                results[index] = call()
            except DomainError as error:
                results[index] = error
            finally:
                db.session.remove()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def count(model: type) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def bearer(key: str) -> str:
    return f"Bearer {key}"


def test_passwords_are_hashed_with_at_least_the_recommended_cost() -> None:
    """The minimum of the OWASP Password Storage Cheat Sheet for Argon2id."""
    assert passwords.ARGON2_PARAMETERS["time_cost"] >= 2
    assert passwords.ARGON2_PARAMETERS["memory_cost"] >= 19 * 1024
    assert passwords.ARGON2_PARAMETERS["parallelism"] == 1


class TestInvitations:
    def test_an_invitation_creates_a_user_with_its_role(self, make_invitation_token: Token) -> None:
        user = invitation_actions.accept_invitation(
            make_invitation_token("manager"), "Ann", " Ann@Example.COM ", PASSWORD, "Europe/Berlin"
        )
        assert (user.email, user.role, user.time_zone) == ("ann@example.com", "manager", "Europe/Berlin")

    def test_a_new_invitation_replaces_the_earlier_one_for_its_address(self, make_invitation_token: Token) -> None:
        first = make_invitation_token("manager", "ann@example.com")
        other = make_invitation_token("manager", "bob@example.com")
        second = make_invitation_token("viewer", "Ann@Example.com")

        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(first, "Ann", "ann@example.com", PASSWORD, "UTC")
        assert invitation_actions.accept_invitation(second, "Ann", "ann@example.com", PASSWORD, "UTC").role == "viewer"
        assert invitation_actions.accept_invitation(other, "Bob", "bob@example.com", PASSWORD, "UTC").role == "manager"

    def test_joining_ends_the_other_invitations_of_the_address(self, make_invitation_token: Token) -> None:
        make_invitation_token("manager", "ann@example.com")
        make_invitation_token("manager", "bob@example.com")
        unaddressed = make_invitation_token("viewer")

        invitation_actions.accept_invitation(unaddressed, "Ann", "ann@example.com", PASSWORD, "UTC")

        left = account_queries.list_unused_invitations()
        assert [invitation.email for invitation in left] == ["bob@example.com"]

    def test_an_addressed_invitation_creates_no_account_with_another_address(
        self, make_invitation_token: Token
    ) -> None:
        token = make_invitation_token("manager", "Ann@Example.com")

        with pytest.raises(InvalidInput) as raised:
            invitation_actions.accept_invitation(token, "Eve", "eve@example.com", PASSWORD, "UTC")

        assert (raised.value.errors[0].field, raised.value.errors[0].key) == ("email", "email_not_invited")
        assert count(StaffUser) == 0
        assert invitation_actions.accept_invitation(token, "Ann", "ANN@example.com", PASSWORD, "UTC").role == "manager"

    def test_inviting_and_joining_are_in_the_audit_log(self, make_invitation_token: Token) -> None:
        invitation_actions.accept_invitation(make_invitation_token("viewer"), "Ann", "ann@example.com", PASSWORD, "UTC")

        entries = db.session.execute(select(AuditEntry.action, AuditEntry.actor, AuditEntry.subject, AuditEntry.detail))
        assert entries.all() == [
            ("invitation.created", "tests", "", {"role": "viewer"}),
            ("staff.joined", "ann@example.com", "ann@example.com", {"role": "viewer"}),
        ]

    def test_the_token_itself_is_not_stored(self, make_invitation_token: Token) -> None:
        token = make_invitation_token()
        stored = db.session.scalars(select(Invitation.token_hash)).one()
        assert token.encode() not in bytes(stored)

    def test_an_invitation_works_once(self, make_invitation_token: Token) -> None:
        token = make_invitation_token()
        invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC")
        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(token, "Bob", "bob@example.com", PASSWORD, "UTC")
        assert count(StaffUser) == 1

    def test_concurrent_acceptances_create_one_user(self, app: Flask, make_invitation_token: Token) -> None:
        token = make_invitation_token()
        acceptances = [
            partial(invitation_actions.accept_invitation, token, f"P{n}", f"p{n}@example.com", PASSWORD, "UTC")
            for n in range(8)
        ]
        results = run_concurrently(app, *acceptances)
        assert sum(isinstance(result, NotFound) for result in results) == 7
        assert count(StaffUser) == 1

    def test_an_expired_invitation_is_refused(self, make_invitation_token: Token) -> None:
        token = make_invitation_token()
        lifetime = db.session.scalar(select(Invitation.expires_at - func.now()))
        assert lifetime
        assert timedelta(days=6, hours=23) < lifetime <= timedelta(days=7)
        assert len(token) == 32
        db.session.execute(update(Invitation).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
        db.session.commit()
        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC")

    def test_a_taken_email_leaves_the_invitation_usable(
        self, make_invitation_token: Token, make_user_with_password: Person
    ) -> None:
        make_user_with_password("admin", email="ann@example.com")
        token = make_invitation_token()
        with pytest.raises(InvalidInput) as raised:
            invitation_actions.accept_invitation(token, "Ann", "ANN@example.com", PASSWORD, "UTC")
        assert raised.value.errors[0].field == "email"
        assert invitation_actions.accept_invitation(token, "Ann", "ann2@example.com", PASSWORD, "UTC").id

    def test_a_withdrawn_invitation_is_refused(self, make_invitation_token: Token) -> None:
        token = make_invitation_token("viewer", "ann@example.com")
        invitation_actions.withdraw_invitation(account_queries.list_unused_invitations()[0].id, by="tests")
        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC")
        entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "invitation.withdrawn")).one()
        assert (entry.actor, entry.subject, entry.detail) == ("tests", "ann@example.com", {"role": "viewer"})

    def test_an_invitation_that_expires_at_this_moment_gets_no_other_link(self, make_invitation_token: Token) -> None:
        make_invitation_token()
        invitation = account_queries.list_unused_invitations()[0]
        db.session.execute(update(Invitation).values(email="ann@example.com", expires_at=func.now()))

        assert links.add_emailed_link(invitation.id) is None

    def test_an_invitation_of_the_first_administrator_replaces_earlier_ones(self, app: Flask) -> None:
        kept = [
            invitation_actions.create_invitation("admin", "ann@example.com", by="tests"),
            invitation_actions.create_invitation("manager", None, by="tests"),
        ]
        replaced = invitation_actions.create_first_admin_invitation(by="tests")
        kept.append(invitation_actions.create_first_admin_invitation(by="tests"))
        tokens = {link.rpartition("/")[2] for link in kept}
        unused = {invitation.token_hash for invitation in account_queries.list_unused_invitations()}
        assert unused == {links.hash_token(token) for token in tokens}
        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(replaced.rpartition("/")[2], "Ann", "ann@example.com", PASSWORD, "UTC")

    def test_an_accepted_invitation_cannot_be_withdrawn(self, make_invitation_token: Token) -> None:
        token = make_invitation_token("viewer")
        invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC")
        invitation_actions.withdraw_invitation(db.session.scalars(select(Invitation.id)).one(), by="tests")
        assert count(Invitation) == 1
        assert "invitation.withdrawn" not in db.session.scalars(select(AuditEntry.action)).all()

    def test_an_existing_user_cannot_be_invited(self, make_user_with_password: Person) -> None:
        make_user_with_password("manager", email="ann@example.com")
        with pytest.raises(InvalidInput):
            invitation_actions.create_invitation("viewer", "Ann@example.com", by="tests")

    def test_an_unknown_role_is_rejected(self, app: Flask) -> None:
        with pytest.raises(InvalidInput):
            invitation_actions.create_invitation("owner", None, by="tests")


class TestPasswordChanges:
    def reset_token(self, user: StaffUser) -> str:
        return invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]

    def test_a_reset_replaces_the_password_and_ends_the_sessions(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("manager")
        session_actions.start_staff_session(user.id, TEST_CLIENT)
        invitation_actions.reset_password(self.reset_token(user), "a brand new one")
        assert sign_in_actions.sign_in_user(user.email, "a brand new one")
        assert (count(StaffSession), count(StaffDevice)) == (0, 0)

    def test_a_user_who_is_disabled_during_a_reset_keeps_the_password(
        self, make_user_with_password: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = make_user_with_password()
        token, before, hash_password = self.reset_token(user), user.password_hash, passwords.hash_password

        def disable_first(password: str) -> str:
            with db.engine.begin() as other:
                other.execute(update(StaffUser).values(disabled_at=func.now()))
            return hash_password(password)

        monkeypatch.setattr(passwords, "hash_password", disable_first)
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token, "a brand new one")

        db.session.commit()
        db.session.refresh(user)
        assert user.password_hash == before
        assert db.session.scalars(select(Invitation.used_at)).all() == [None]

    def test_a_reset_link_works_once(self, make_user_with_password: Person) -> None:
        token = self.reset_token(make_user_with_password())
        invitation_actions.reset_password(token, "a brand new one")
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token, "another new one")

    def test_a_second_reset_link_revokes_the_first(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        first = self.reset_token(user)
        self.reset_token(user)
        with pytest.raises(NotFound):
            invitation_actions.reset_password(first, "a brand new one")

    def test_a_reset_link_creates_no_user(self, make_user_with_password: Person) -> None:
        token = self.reset_token(make_user_with_password())
        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(token, "Eve", "eve@example.com", PASSWORD, "UTC")
        assert count(StaffUser) == 1

    def test_an_invitation_resets_no_password(
        self, make_user_with_password: Person, make_invitation_token: Token
    ) -> None:
        make_user_with_password()
        with pytest.raises(NotFound):
            invitation_actions.reset_password(make_invitation_token(), "a brand new one")

    def test_a_disabled_user_gets_no_reset_link(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("viewer", disabled_at=datetime.now(UTC))
        with pytest.raises(DomainError, match=r"The account of .+ is disabled. Enable it first."):
            self.reset_token(user)

    def test_disabling_revokes_the_reset_link(self, make_user_with_password: Person) -> None:
        make_user_with_password("admin")
        user = make_user_with_password("viewer")
        token = self.reset_token(user)
        account_actions.disable_staff_user(user.id, by="tests")
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token, "a brand new one")

    def test_changing_the_own_password_requires_the_current_one(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        with pytest.raises(InvalidInput) as raised:
            sign_in_actions.change_own_password(user.id, "something else", "a brand new one")
        assert raised.value.errors[0].field == "current"
        assert sign_in_actions.sign_in_user(user.email, PASSWORD)

    def test_changing_the_own_password_ends_every_session(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        session_actions.start_staff_session(user.id, TEST_CLIENT)
        sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one")
        assert (count(StaffSession), count(StaffDevice)) == (0, 0)

    def test_changing_the_own_password_revokes_the_reset_link(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        token = self.reset_token(user)
        sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one")
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token, "another new one")
        assert sign_in_actions.sign_in_user(user.email, "a brand new one")

    def test_every_change_of_a_password_is_in_the_audit_log(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        invitation_actions.reset_password(self.reset_token(user), "a brand new one")
        sign_in_actions.change_own_password(user.id, "a brand new one", "another new one")
        session_actions.start_staff_session(user.id, TEST_CLIENT, method="password")
        account_actions.update_profile(user.id, "Ann", "UTC")
        entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert [(e.actor, e.action, e.subject) for e in entries] == [
            ("tests", "password.link_created", user.email),
            (user.email, "password.reset", user.email),
            (user.email, "password.changed", user.email),
            (user.email, "staff.signed_in", user.email),
            (user.email, "staff.profile_changed", user.email),
        ]

    def test_the_reset_links_of_other_users_stay_valid(self, make_user_with_password: Person) -> None:
        user, other = make_user_with_password("admin"), make_user_with_password("viewer")
        token = self.reset_token(other)
        self.reset_token(user)
        sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one")
        assert invitation_actions.reset_password(token, "another new one").id == other.id

    def test_a_used_reset_link_is_kept_when_another_is_created(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        invitation_actions.reset_password(self.reset_token(user), "a brand new one")
        self.reset_token(user)
        assert count(Invitation) == 2


class TestSignIn:
    def test_sign_in_ignores_the_case_of_the_email(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        assert sign_in_actions.sign_in_user(user.email.upper(), PASSWORD).id == user.id

    @pytest.mark.parametrize("email", ["nobody@example.com", "no address at all", "admin@example.com", "\0"])
    def test_every_failed_sign_in_has_the_same_error(self, make_user_with_password: Person, email: str) -> None:
        make_user_with_password("admin")
        with pytest.raises(DomainError) as raised:
            sign_in_actions.sign_in_user(email, "not the password")
        assert (raised.value.key, raised.value.errors) == ("sign_in_failed", [])

    @pytest.mark.parametrize("email", ["nobody@example.com", "admin@example.com"])
    def test_every_failed_sign_in_verifies_one_hash(
        self, make_user_with_password: Person, monkeypatch: pytest.MonkeyPatch, email: str
    ) -> None:
        make_user_with_password("admin")
        checked: list[str] = []
        verify_password = passwords.verify_password

        def record_and_verify(password_hash: str, password: str) -> bool:
            checked.append(password_hash)
            return verify_password(password_hash, password)

        monkeypatch.setattr(passwords, "verify_password", record_and_verify)
        with pytest.raises(DomainError):
            sign_in_actions.sign_in_user(email, "not the password")
        assert [entry.rpartition("$")[0].rpartition("$")[0] for entry in checked] == ["$argon2id$v=19$m=8,t=1,p=1"]

    def test_only_the_right_password_reveals_that_a_user_is_disabled(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("viewer", disabled_at=datetime.now(UTC))
        with pytest.raises(DomainError) as wrong:
            sign_in_actions.sign_in_user(user.email, "not the password")
        with pytest.raises(DomainError) as right:
            sign_in_actions.sign_in_user(user.email, PASSWORD)
        assert (wrong.value.key, right.value.key) == ("sign_in_failed", "disabled")

    def test_a_hash_with_old_parameters_is_replaced(
        self, app: Flask, make_user_with_password: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = make_user_with_password()
        monkeypatch.setitem(app.config, "ARGON2", {"time_cost": 2, "memory_cost": 16, "parallelism": 1})
        sign_in_actions.sign_in_user(user.email, PASSWORD)
        # As for a user who is asked for a second factor.
        sign_in_actions.end_password_check()
        db.session.rollback()
        assert "m=16,t=2" in user.password_hash
        assert sign_in_actions.sign_in_user(user.email, PASSWORD)

    def test_the_user_is_locked_until_the_session_starts(self, make_user_with_password: Person) -> None:
        """A concurrent change of the password ends the session, too."""
        user = make_user_with_password("admin")
        make_user_with_password("viewer")
        sign_in_actions.sign_in_user(user.email, PASSWORD)
        with db.engine.connect() as other:
            unlocked = other.scalars(select(StaffUser.role).with_for_update(skip_locked=True)).all()
        assert unlocked == ["viewer"]

    def test_a_hash_with_the_current_parameters_is_kept(self, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        before = user.password_hash
        sign_in_actions.sign_in_user(user.email, PASSWORD)
        assert user.password_hash == before

    @pytest.mark.parametrize(
        "change", [str.upper, lambda text: f" {text}", lambda text: f"{text} ", lambda text: text[:-1]]
    )
    @pytest.mark.parametrize("password", ["correct horse battery", ("correct horse battery " * 9 + "x" * 11)[:200]])
    def test_a_password_is_verified_to_its_last_character(
        self, client: FlaskClient, make_user_with_password: Person, password: str, change: Callable[[str], str]
    ) -> None:
        user = make_user_with_password("viewer")
        sign_in_actions.change_own_password(user.id, PASSWORD, password)
        for entered, status in ((change(password), 422), (password, 302)):
            response = client.post("/sign-in", data={"email": user.email, "password": entered})
            assert response.status_code == status

    def test_passwords_are_normalised_before_hashing(self, app: Flask) -> None:
        assert passwords.verify_password(passwords.hash_password("cafe\u0301 noir au lait"), "caf\u00e9 noir au lait")


class TestStaff:
    def test_the_last_active_admin_keeps_the_role(self, make_user_with_password: Person) -> None:
        admin = make_user_with_password("admin")
        make_user_with_password("admin", email="gone@example.com", disabled_at=datetime.now(UTC))
        with pytest.raises(DomainError) as raised:
            account_actions.change_staff_role(admin.id, "manager", by="tests")
        assert raised.value.key == "last_admin"
        assert account_actions.change_staff_role(admin.id, "admin", by="tests").role == "admin"

    def test_the_last_active_admin_cannot_be_disabled(self, make_user_with_password: Person) -> None:
        admin = make_user_with_password("admin")
        with pytest.raises(DomainError) as raised:
            account_actions.disable_staff_user(admin.id, by="tests")
        assert raised.value.key == "last_admin"

    def test_concurrent_removal_of_all_admins_leaves_one(self, app: Flask, make_user_with_password: Person) -> None:
        ids = [make_user_with_password("admin", email=f"a{n}@example.com").id for n in range(6)]
        db.session.remove()
        calls: list[Callable[[], object]] = [
            partial(account_actions.disable_staff_user, i, by="tests") for i in ids[::2]
        ]
        calls += [partial(account_actions.change_staff_role, i, "viewer", by="tests") for i in ids[1::2]]
        results = run_concurrently(app, *calls)
        assert sum(isinstance(result, DomainError) for result in results) == 1
        assert len(account_queries.lock_active_admins()) == 1

    def test_enabling_a_user_does_not_restore_ended_sessions(self, make_user_with_password: Person) -> None:
        make_user_with_password("admin")
        user = make_user_with_password("viewer")
        token = session_actions.start_staff_session(user.id, TEST_CLIENT).token
        account_actions.disable_staff_user(user.id, by="tests")
        account_actions.enable_staff_user(user.id, by="tests")
        assert session_queries.find_staff_session(token) is None
        assert sign_in_actions.sign_in_user(user.email, PASSWORD)

    def test_a_disabled_user_has_no_session(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("viewer")
        token = session_actions.start_staff_session(user.id, TEST_CLIENT).token
        db.session.execute(update(StaffUser).values(disabled_at=func.now()))
        assert session_queries.find_staff_session(token) is None

    def test_every_change_is_in_the_audit_log(self, make_user_with_password: Person) -> None:
        make_user_with_password("admin")
        user = make_user_with_password("viewer")
        account_actions.change_staff_role(user.id, "manager", by="ann")
        account_actions.disable_staff_user(user.id, by="ann")
        account_actions.enable_staff_user(user.id, by="ann")
        account_actions.end_staff_sessions(user.id, by="ann")
        entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert [(e.actor, e.action, e.subject) for e in entries] == [
            ("ann", "staff.role_changed", user.email),
            ("ann", "staff.disabled", user.email),
            ("ann", "staff.enabled", user.email),
            ("ann", "staff.sessions_ended", user.email),
        ]

    def test_disabling_and_enabling_again_changes_nothing(self, make_user_with_password: Person) -> None:
        make_user_with_password("admin")
        user = make_user_with_password("viewer")
        disabled_at = {account_actions.disable_staff_user(user.id, by="ann").disabled_at for _ in range(2)}
        for _ in range(2):
            account_actions.enable_staff_user(user.id, by="ann")
        assert len(disabled_at) == 1
        actions = db.session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
        assert actions == ["staff.disabled", "staff.enabled"]

    def test_an_unknown_user_is_not_found(self, make_user_with_password: Person) -> None:
        make_user_with_password("admin")
        with pytest.raises(NotFound):
            account_actions.disable_staff_user(4711, by="tests")


class TestApiKeys:
    def test_a_new_key_authenticates(self, app: Flask) -> None:
        caller = api_key_actions.authenticate_api_key(
            bearer(api_key_actions.create_api_key("Shop", ["read", "redeem"], by="tests"))
        )
        assert (caller.name, caller.scopes) == ("Shop", ["read", "redeem"])

    @pytest.mark.parametrize("header", ["bearer {}", "BEARER  {} "])
    def test_the_scheme_may_be_in_lower_case_and_the_key_in_spaces(self, app: Flask, header: str) -> None:
        """The scheme is case-insensitive (RFC 9110, 11.1)."""
        key = api_key_actions.create_api_key("Shop", ["read"], by="tests")
        assert api_key_actions.authenticate_api_key(header.format(key)).name == "Shop"

    def test_the_secret_is_not_stored(self, app: Flask) -> None:
        secret = api_key_actions.create_api_key("Shop", ["read"], by="tests").split("_", 3)[3]
        # 256 bits in Base64.
        assert len(secret) == 43
        assert secret.encode() not in bytes(db.session.scalars(select(ApiKey.secret_hash)).one())

    def test_the_audit_log_has_the_scopes_of_a_key_and_its_revocation(self, app: Flask) -> None:
        api_key_actions.create_api_key("Shop", ["read", "redeem"], by="tests")
        for _ in range(2):
            api_key_actions.revoke_api_key(db.session.scalars(select(ApiKey.id)).one(), by="ann")

        columns = AuditEntry.action, AuditEntry.actor, AuditEntry.subject, AuditEntry.detail
        assert db.session.execute(select(*columns).order_by(AuditEntry.id)).all() == [
            ("api_key.created", "tests", "Shop", {"scopes": ["read", "redeem"]}),
            ("api_key.revoked", "ann", "Shop", None),
        ]

    def test_every_invalid_key_has_the_same_error(self, app: Flask) -> None:
        good = api_key_actions.create_api_key("Shop", ["read"], by="tests")
        expired = api_key_actions.create_api_key("Old", ["read"], "tests", datetime.now(UTC) + timedelta(days=1))
        revoked = api_key_actions.create_api_key("Gone", ["read"], by="tests")
        db.session.execute(update(ApiKey).where(ApiKey.name == "Old").values(expires_at=func.now()))
        db.session.commit()
        api_key_actions.revoke_api_key(
            db.session.scalars(select(ApiKey.id).where(ApiKey.name == "Gone")).one(), by="tests"
        )
        invalid_headers = [
            "",
            "Bearer",
            bearer("x"),
            bearer(good + "x"),
            bearer(good[:-1]),
            f"Basic {good}",
            bearer("onecode_live_nobody_secret"),
            bearer(f"x,{good}"),
            bearer(f"x,{bearer(good)}"),
            f"{bearer(good)},{bearer(good)}",
            bearer("onecode_live_\0_secret"),
            bearer(expired),
            bearer(revoked),
        ]
        errors = set()
        for header in invalid_headers:
            with pytest.raises(DomainError) as raised:
                api_key_actions.authenticate_api_key(header)
            errors.add((raised.value.key, raised.value.status, raised.value.message))
        assert len(errors) == 1

    def test_authentication_runs_one_statement(self, app: Flask) -> None:
        key = bearer(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        api_key_actions.authenticate_api_key(key)
        # Keys are cached for a second.
        app.extensions.pop("api_keys")
        recorded: list[str] = []
        listener = lambda *args: recorded.append(args[2])  # noqa: E731
        event.listen(db.engine, "before_cursor_execute", listener)
        api_key_actions.authenticate_api_key(key)
        event.remove(db.engine, "before_cursor_execute", listener)
        assert len(recorded) == 1

    def test_the_last_use_is_updated_at_most_once_a_minute(self, app: Flask) -> None:
        key = bearer(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        updated = []
        for ago in (None, 30, 61):
            if ago:
                db.session.execute(update(ApiKey).values(last_used_at=func.now() - timedelta(seconds=ago)))
                db.session.commit()
            before = db.session.scalar(select(ApiKey.last_used_at))
            # Keys are cached for a second.
            app.extensions.pop("api_keys", None)
            app.extensions.pop("api_key_use_attempts", None)
            api_key_actions.authenticate_api_key(key)
            updated.append(db.session.scalar(select(ApiKey.last_used_at)) != before)
        assert updated == [True, False, True]

    def test_a_key_is_cached_for_a_second_but_always_verified(self, app: Flask) -> None:
        key = api_key_actions.create_api_key("Shop", ["read"], by="tests")
        api_key_actions.authenticate_api_key(bearer(key))
        with recorded_statements() as recorded:
            api_key_actions.authenticate_api_key(bearer(key))
            with pytest.raises(DomainError):
                api_key_actions.authenticate_api_key(bearer(key[:-1] + "!"))
        assert recorded == []

    def test_a_key_that_this_process_revoked_is_refused_immediately(self, app: Flask) -> None:
        key = bearer(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        caller = api_key_actions.authenticate_api_key(key)
        api_key_actions.revoke_api_key(caller.id, by="tests")
        with pytest.raises(DomainError):
            api_key_actions.authenticate_api_key(key)

    def test_a_key_that_another_process_revoked_is_refused_after_a_second(self, app: Flask) -> None:
        key = bearer(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        api_key_actions.authenticate_api_key(key)
        db.session.execute(update(ApiKey).values(revoked_at=func.now()))
        db.session.commit()
        # A second passes.
        keys = app.extensions["api_keys"]
        keys.update({public_id: (read_at - 1, row) for public_id, (read_at, row) in keys.items()})
        with pytest.raises(DomainError):
            api_key_actions.authenticate_api_key(key)

    def test_concurrent_calls_with_one_key_all_authenticate(self, app: Flask) -> None:
        key = bearer(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        results = run_concurrently(app, *[lambda: api_key_actions.authenticate_api_key(key).name] * 8)
        assert results == ["Shop"] * 8

    @pytest.mark.parametrize(
        ("name", "scopes", "days", "field"),
        [
            (" ", ["read"], 1, "name"),
            ("A", [], 1, "scopes"),
            ("A", ["all"], 1, "scopes"),
            ("A", ["read"], -1, "expires_on"),
        ],
    )
    def test_an_api_key_with_invalid_values_is_not_created(
        self, app: Flask, name: str, scopes: list[str], days: int, field: str
    ) -> None:
        with pytest.raises(InvalidInput) as raised:
            api_key_actions.create_api_key(name, scopes, "tests", datetime.now(UTC) + timedelta(days=days))
        assert raised.value.errors[0].field == field
        assert count(ApiKey) == 0
