"""What may be done with staff, links and keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from flask import Flask
from sqlalchemy import event, func, select, update

from tests.support.accounts import PASSWORD
from tests.support.sql_statements import statements
from webapp.accounts import actions as account_actions
from webapp.accounts import api_key_actions, passwords
from webapp.accounts import queries as account_queries
from webapp.accounts.models import ApiKey, AuditEntry, Invitation, StaffUser
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db

Person = Callable[..., StaffUser]
Token = Callable[..., str]


def at_the_same_time(app: Flask, *deeds: Callable[[], object]) -> list[object]:
    """Do everything at once, each in a thread and a database session of its own; results or errors, in order."""
    start = threading.Barrier(len(deeds))
    results: list[object] = [None] * len(deeds)

    def run(index: int, deed: Callable[[], object]) -> None:
        with app.app_context():
            start.wait()
            try:
                results[index] = deed()
            except DomainError as error:
                results[index] = error
            finally:
                db.session.remove()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(deeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def count(model: type) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def key_of(text: str) -> str:
    return f"Bearer {text}"


class TestInvitations:
    def test_an_invitation_makes_a_user_with_its_role(self, token: Token) -> None:
        user = account_actions.accept_invitation(
            token("manager"), "Ann", " Ann@Example.COM ", PASSWORD, "Europe/Berlin"
        )
        assert (user.email, user.role, user.time_zone) == ("ann@example.com", "manager", "Europe/Berlin")

    def test_the_token_itself_is_not_kept(self, token: Token) -> None:
        link = token()
        stored = db.session.scalars(select(Invitation.token_hash)).one()
        assert link.encode() not in bytes(stored)

    def test_it_works_once(self, token: Token) -> None:
        link = token()
        account_actions.accept_invitation(link, "Ann", "ann@example.com", PASSWORD, "UTC")
        with pytest.raises(NotFound):
            account_actions.accept_invitation(link, "Bob", "bob@example.com", PASSWORD, "UTC")
        assert count(StaffUser) == 1

    def test_two_tabs_at_the_same_moment_make_one_user(self, app: Flask, token: Token) -> None:
        link = token()
        joins = [
            partial(account_actions.accept_invitation, link, f"P{n}", f"p{n}@example.com", PASSWORD, "UTC")
            for n in range(8)
        ]
        results = at_the_same_time(app, *joins)
        assert sum(isinstance(result, NotFound) for result in results) == 7
        assert count(StaffUser) == 1

    def test_it_does_not_work_after_seven_days(self, token: Token) -> None:
        link = token()
        db.session.execute(update(Invitation).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
        db.session.commit()
        with pytest.raises(NotFound):
            account_actions.accept_invitation(link, "Ann", "ann@example.com", PASSWORD, "UTC")

    def test_an_email_that_is_taken_leaves_the_link_usable(self, token: Token, person: Person) -> None:
        person("admin", email="ann@example.com")
        link = token()
        with pytest.raises(InvalidInput) as refusal:
            account_actions.accept_invitation(link, "Ann", "ANN@example.com", PASSWORD, "UTC")
        assert refusal.value.errors[0].field == "email"
        assert account_actions.accept_invitation(link, "Ann", "ann2@example.com", PASSWORD, "UTC").id

    def test_a_withdrawn_one_does_not_work(self, token: Token) -> None:
        link = token("viewer")
        account_actions.withdraw_invitation(account_queries.list_open_invitations()[0].id, by="tests")
        with pytest.raises(NotFound):
            account_actions.accept_invitation(link, "Ann", "ann@example.com", PASSWORD, "UTC")

    def test_nobody_is_invited_who_is_here(self, person: Person) -> None:
        person("manager", email="ann@example.com")
        with pytest.raises(InvalidInput):
            account_actions.create_invitation("viewer", "Ann@example.com", by="tests")

    def test_a_role_that_does_not_exist_is_refused(self, app: Flask) -> None:
        with pytest.raises(InvalidInput):
            account_actions.create_invitation("owner", None, by="tests")


class TestNewPasswords:
    def link(self, user: StaffUser) -> str:
        return account_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]

    def test_a_link_replaces_the_password_and_ends_the_sessions(self, person: Person) -> None:
        user = person("manager")
        version = user.session_version
        account_actions.reset_password(self.link(user), "a brand new one")
        assert account_actions.sign_in_user(user.email, "a brand new one").session_version == version + 1

    def test_a_link_works_once(self, person: Person) -> None:
        link = self.link(person())
        account_actions.reset_password(link, "a brand new one")
        with pytest.raises(NotFound):
            account_actions.reset_password(link, "another new one")

    def test_a_second_link_makes_the_first_worthless(self, person: Person) -> None:
        user = person()
        first = self.link(user)
        self.link(user)
        with pytest.raises(NotFound):
            account_actions.reset_password(first, "a brand new one")

    def test_a_link_to_a_new_password_makes_no_user(self, person: Person) -> None:
        link = self.link(person())
        with pytest.raises(NotFound):
            account_actions.accept_invitation(link, "Eve", "eve@example.com", PASSWORD, "UTC")
        assert count(StaffUser) == 1

    def test_an_invitation_changes_no_password(self, person: Person, token: Token) -> None:
        person()
        with pytest.raises(NotFound):
            account_actions.reset_password(token(), "a brand new one")

    def test_somebody_disabled_gets_no_link(self, person: Person) -> None:
        user = person("viewer", disabled_at=datetime.now(UTC))
        with pytest.raises(DomainError, match="disabled"):
            self.link(user)

    def test_disabling_makes_a_link_worthless(self, person: Person) -> None:
        person("admin")
        user = person("viewer")
        link = self.link(user)
        account_actions.disable_staff_user(user.id, by="tests")
        with pytest.raises(NotFound):
            account_actions.reset_password(link, "a brand new one")

    def test_ones_own_change_needs_the_current_password(self, person: Person) -> None:
        user = person()
        with pytest.raises(InvalidInput) as refusal:
            account_actions.change_own_password(user.id, "something else", "a brand new one")
        assert refusal.value.errors[0].field == "current"
        assert account_actions.sign_in_user(user.email, PASSWORD)

    def test_ones_own_change_ends_every_session(self, person: Person) -> None:
        user = person()
        before = user.get_id()
        account_actions.change_own_password(user.id, PASSWORD, "a brand new one")
        assert user.get_id() != before


class TestSignIn:
    def test_the_right_password_in_any_case_of_the_email(self, person: Person) -> None:
        user = person()
        assert account_actions.sign_in_user(user.email.upper(), PASSWORD).id == user.id

    @pytest.mark.parametrize("email", ["nobody@example.com", "no address at all", "admin@example.com", "\0"])
    def test_the_refusal_is_the_same_for_everybody(self, person: Person, email: str) -> None:
        person("admin")
        with pytest.raises(DomainError) as refusal:
            account_actions.sign_in_user(email, "not the password")
        assert (refusal.value.key, refusal.value.errors) == ("sign_in_failed", [])

    @pytest.mark.parametrize("email", ["nobody@example.com", "admin@example.com"])
    def test_the_work_is_the_same_for_everybody(
        self, person: Person, monkeypatch: pytest.MonkeyPatch, email: str
    ) -> None:
        person("admin")
        checked: list[str] = []
        real = passwords.verify_password

        def watched(password_hash: str, password: str) -> bool:
            checked.append(password_hash)
            return real(password_hash, password)

        monkeypatch.setattr(passwords, "verify_password", watched)
        with pytest.raises(DomainError):
            account_actions.sign_in_user(email, "not the password")
        assert [entry.rpartition("$")[0].rpartition("$")[0] for entry in checked] == ["$argon2id$v=19$m=8,t=1,p=1"]

    def test_somebody_disabled_learns_it_only_with_the_password(self, person: Person) -> None:
        user = person("viewer", disabled_at=datetime.now(UTC))
        with pytest.raises(DomainError) as wrong:
            account_actions.sign_in_user(user.email, "not the password")
        with pytest.raises(DomainError) as right:
            account_actions.sign_in_user(user.email, PASSWORD)
        assert (wrong.value.key, right.value.key) == ("sign_in_failed", "disabled")

    def test_a_hash_with_old_parameters_is_renewed(
        self, app: Flask, person: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = person()
        monkeypatch.setitem(app.config, "ARGON2", {"time_cost": 2, "memory_cost": 16, "parallelism": 1})
        account_actions.sign_in_user(user.email, PASSWORD)
        assert "m=16,t=2" in user.password_hash
        assert account_actions.sign_in_user(user.email, PASSWORD)

    def test_a_hash_with_the_parameters_of_today_stays(self, person: Person) -> None:
        user = person()
        before = user.password_hash
        account_actions.sign_in_user(user.email, PASSWORD)
        assert user.password_hash == before

    def test_accents_are_the_same_however_they_are_typed(self, app: Flask) -> None:
        assert passwords.verify_password(passwords.hash_password("cafe\u0301 noir au lait"), "caf\u00e9 noir au lait")


class TestPeople:
    def test_the_last_active_admin_keeps_the_role(self, person: Person) -> None:
        admin = person("admin")
        person("admin", email="gone@example.com", disabled_at=datetime.now(UTC))
        with pytest.raises(DomainError) as refusal:
            account_actions.change_staff_role(admin.id, "manager", by="tests")
        assert refusal.value.key == "last_admin"

    def test_the_last_active_admin_is_not_disabled(self, person: Person) -> None:
        admin = person("admin")
        with pytest.raises(DomainError) as refusal:
            account_actions.disable_staff_user(admin.id, by="tests")
        assert refusal.value.key == "last_admin"

    def test_of_admins_who_unseat_each_other_at_once_one_stays(self, app: Flask, person: Person) -> None:
        ids = [person("admin", email=f"a{n}@example.com").id for n in range(6)]
        db.session.remove()
        deeds: list[Callable[[], object]] = [
            partial(account_actions.disable_staff_user, i, by="tests") for i in ids[::2]
        ]
        deeds += [partial(account_actions.change_staff_role, i, "viewer", by="tests") for i in ids[1::2]]
        results = at_the_same_time(app, *deeds)
        assert sum(isinstance(result, DomainError) for result in results) == 1
        assert len(account_queries.lock_active_admins()) == 1

    def test_disabling_ends_sessions_and_enabling_does_not_bring_them_back(self, person: Person) -> None:
        person("admin")
        user = person("viewer")
        session = user.id, user.session_version
        account_actions.disable_staff_user(user.id, by="tests")
        account_actions.enable_staff_user(user.id, by="tests")
        assert account_queries.find_session_user(*session) is None
        assert account_actions.sign_in_user(user.email, PASSWORD)

    def test_somebody_disabled_has_no_session(self, person: Person) -> None:
        user = person("viewer", disabled_at=datetime.now(UTC))
        assert account_queries.find_session_user(user.id, user.session_version) is None

    def test_every_deed_is_in_the_trail(self, person: Person) -> None:
        person("admin")
        user = person("viewer")
        account_actions.change_staff_role(user.id, "manager", by="ann")
        account_actions.disable_staff_user(user.id, by="ann")
        account_actions.enable_staff_user(user.id, by="ann")
        account_actions.end_staff_sessions(user.id, by="ann")
        trail = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert [(e.actor, e.action, e.subject) for e in trail] == [
            ("ann", "staff.role_changed", user.email),
            ("ann", "staff.disabled", user.email),
            ("ann", "staff.enabled", user.email),
            ("ann", "staff.sessions_ended", user.email),
        ]

    def test_somebody_unknown_is_not_found(self, person: Person) -> None:
        person("admin")
        with pytest.raises(NotFound):
            account_actions.disable_staff_user(4711, by="tests")


class TestKeys:
    def test_a_key_is_known_again(self, app: Flask) -> None:
        caller = api_key_actions.authenticate_api_key(
            key_of(api_key_actions.create_api_key("Shop", ["read", "redeem"], by="tests"))
        )
        assert (caller.name, caller.scopes) == ("Shop", ["read", "redeem"])

    def test_the_secret_is_not_kept(self, app: Flask) -> None:
        secret = api_key_actions.create_api_key("Shop", ["read"], by="tests").rpartition("_")[2]
        assert secret.encode() not in bytes(db.session.scalars(select(ApiKey.secret_hash)).one())

    def test_every_refusal_is_the_same(self, app: Flask) -> None:
        good = api_key_actions.create_api_key("Shop", ["read"], by="tests")
        expired = api_key_actions.create_api_key("Old", ["read"], "tests", datetime.now(UTC) + timedelta(days=1))
        revoked = api_key_actions.create_api_key("Gone", ["read"], by="tests")
        db.session.execute(update(ApiKey).where(ApiKey.name == "Old").values(expires_at=func.now()))
        db.session.commit()
        api_key_actions.revoke_api_key(
            db.session.scalars(select(ApiKey.id).where(ApiKey.name == "Gone")).one(), by="tests"
        )
        wrong = [
            "",
            "Bearer",
            key_of("x"),
            key_of(good + "x"),
            key_of(good[:-1]),
            f"Basic {good}",
            key_of("onecode_live_nobody_secret"),
            key_of("onecode_live_\0_secret"),
            key_of(expired),
            key_of(revoked),
        ]
        said = set()
        for header in wrong:
            with pytest.raises(DomainError) as refusal:
                api_key_actions.authenticate_api_key(header)
            said.add((refusal.value.key, refusal.value.status, refusal.value.message))
        assert len(said) == 1

    def test_a_key_costs_one_select(self, app: Flask) -> None:
        key = key_of(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        api_key_actions.authenticate_api_key(key)
        seen: list[str] = []
        listener = lambda *args: seen.append(args[2])  # noqa: E731
        event.listen(db.engine, "before_cursor_execute", listener)
        api_key_actions.authenticate_api_key(key)
        event.remove(db.engine, "before_cursor_execute", listener)
        assert len(seen) == 1

    def test_the_last_use_is_noted_once_a_minute(self, app: Flask) -> None:
        key = key_of(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        marks = []
        for ago in (None, 30, 61):
            if ago:
                db.session.execute(update(ApiKey).values(last_used_at=func.now() - timedelta(seconds=ago)))
                db.session.commit()
            before = db.session.scalar(select(ApiKey.last_used_at))
            # What was read a second ago is remembered.
            app.extensions.pop("api_keys", None)
            api_key_actions.authenticate_api_key(key)
            marks.append(db.session.scalar(select(ApiKey.last_used_at)) != before)
        assert marks == [True, False, True]

    def test_a_key_is_read_once_a_second_and_proven_each_time(self, app: Flask) -> None:
        whole = api_key_actions.create_api_key("Shop", ["read"], by="tests")
        # The first use is noted, which reads the key anew.
        api_key_actions.authenticate_api_key(key_of(whole))
        api_key_actions.authenticate_api_key(key_of(whole))
        with statements() as run:
            api_key_actions.authenticate_api_key(key_of(whole))
            with pytest.raises(DomainError):
                api_key_actions.authenticate_api_key(key_of(whole[:-1] + "!"))
        assert run == []

    def test_a_key_that_is_revoked_here_is_refused_at_once(self, app: Flask) -> None:
        key = key_of(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        caller = api_key_actions.authenticate_api_key(key)
        api_key_actions.revoke_api_key(caller.id, by="tests")
        with pytest.raises(DomainError):
            api_key_actions.authenticate_api_key(key)

    def test_a_key_that_is_revoked_elsewhere_is_refused_a_second_later(self, app: Flask) -> None:
        key = key_of(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        api_key_actions.authenticate_api_key(key)
        db.session.execute(update(ApiKey).values(revoked_at=func.now()))
        db.session.commit()
        time.sleep(api_key_actions.API_KEY_CACHE_SECONDS)
        with pytest.raises(DomainError):
            api_key_actions.authenticate_api_key(key)

    def test_many_calls_at_once_are_all_let_in(self, app: Flask) -> None:
        key = key_of(api_key_actions.create_api_key("Shop", ["read"], by="tests"))
        results = at_the_same_time(app, *[lambda: api_key_actions.authenticate_api_key(key).name] * 8)
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
    def test_a_key_that_makes_no_sense_is_refused(
        self, app: Flask, name: str, scopes: list[str], days: int, field: str
    ) -> None:
        with pytest.raises(InvalidInput) as refusal:
            api_key_actions.create_api_key(name, scopes, "tests", datetime.now(UTC) + timedelta(days=days))
        assert refusal.value.errors[0].field == field
        assert count(ApiKey) == 0
