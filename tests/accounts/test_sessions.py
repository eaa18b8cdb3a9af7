"""Sessions of staff, and the devices that they signed in with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import ColumnElement, delete, func, insert, select, update

from tests.support.accounts import PASSWORD
from tests.support.sessions import TEST_CLIENT
from tests.support.sql_statements import recorded_statements
from webapp.accounts import actions as account_actions
from webapp.accounts import invitation_actions, passwords, session_actions, session_queries, sign_in_actions
from webapp.accounts.models import AccountEmail, AuditEntry, StaffDevice, StaffSession, StaffUser
from webapp.accounts.session_actions import SessionClient
from webapp.core import database_timeouts, task_queue
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db

MakeUser = Callable[..., StaffUser]


def start(user: StaffUser, *device_tokens: str) -> session_actions.StartedSession:
    return session_actions.start_staff_session(user.id, TEST_CLIENT, device_tokens)


def count(model: type[StaffSession | StaffDevice | AccountEmail]) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def set_times(**ages: timedelta) -> None:
    """Set columns of all sessions to times before now."""
    values: dict[str, ColumnElement[datetime]] = {name: func.now() - age for name, age in ages.items()}
    db.session.execute(update(StaffSession).values(**values))
    db.session.commit()


class TestSessions:
    def test_a_token_finds_its_session_and_user_by_one_statement(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        started = start(user)
        with recorded_statements() as statements:
            loaded = session_queries.find_staff_session(started.token)
            assert loaded is not None
            assert (loaded.id, loaded.user.email) == (started.id, "viewer@example.com")
        assert len(statements) == 1

    def test_no_token_is_stored(self, make_staff_user: MakeUser) -> None:
        started = start(make_staff_user())
        stored = [
            *db.session.scalars(select(StaffSession.token_hash)),
            *db.session.scalars(select(StaffDevice.token_hash)),
        ]
        assert [len(value) for value in stored] == [32, 32]
        assert started.token.encode() not in stored
        assert started.device_token.encode() not in stored
        # 256 bits in Base64.
        assert [len(token) for token in (started.token, started.device_token)] == [43, 43]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, (True, False, False)),
            ({"has_second_factor": True}, (True, True, True)),
            ({"has_second_factor": True, "is_recent": False}, (False, True, True)),
            ({"has_second_factor": True, "is_second_factor_recent": False}, (True, True, False)),
        ],
        ids=str,
    )
    def test_a_session_has_the_factors_that_were_verified(
        self, make_staff_user: MakeUser, options: dict[str, bool], expected: tuple[bool, bool, bool]
    ) -> None:
        user = make_staff_user()
        started = session_actions.start_staff_session(user.id, TEST_CLIENT, **options)  # type: ignore[arg-type]
        loaded = session_queries.find_staff_session(started.token)
        assert loaded is not None
        assert (loaded.has_recent_password, loaded.has_second_factor, loaded.has_recent_second_factor) == expected

    @pytest.mark.parametrize("token", ["", "1.1", "x" * 100_000, "\0", "\ud800"])
    def test_an_unknown_token_has_no_session(self, make_staff_user: MakeUser, token: str) -> None:
        start(make_staff_user())
        assert session_queries.find_staff_session(token) is None

    @pytest.mark.parametrize(
        ("ages", "is_active"),
        [
            ({"last_used_at": timedelta(hours=11, minutes=59)}, True),
            ({"last_used_at": timedelta(hours=12, minutes=1)}, False),
            ({"created_at": timedelta(days=13, hours=23)}, True),
            ({"created_at": timedelta(days=14, minutes=1)}, False),
            # Negative ages: the clock of the database was set back.
            ({"created_at": timedelta(seconds=-30), "last_used_at": timedelta(seconds=-30)}, True),
            ({"created_at": timedelta(seconds=-95), "last_used_at": timedelta()}, False),
            ({"created_at": timedelta(), "last_used_at": timedelta(seconds=-95)}, False),
            ({"created_at": timedelta(hours=-1)}, False),
            ({"last_used_at": timedelta(hours=-1)}, False),
        ],
    )
    def test_a_session_ends_at_both_limits(
        self, make_staff_user: MakeUser, ages: dict[str, timedelta], is_active: bool
    ) -> None:
        user = make_staff_user()
        token = start(user).token
        set_times(**ages)
        assert (session_queries.find_staff_session(token) is not None) == is_active
        assert len(session_queries.list_staff_sessions(user.id)) == is_active
        task_queue.run("accounts.sweep")
        assert count(StaffSession) == is_active

    def test_the_limits_are_settings(self, make_staff_user: MakeUser, with_settings: Callable[..., object]) -> None:
        token = start(make_staff_user()).token
        set_times(created_at=timedelta(days=2), last_used_at=timedelta(hours=2))
        assert session_queries.find_staff_session(token)
        with_settings(session_idle_hours=1)
        assert session_queries.find_staff_session(token) is None
        with_settings(session_idle_hours=12, session_max_days=1)
        assert session_queries.find_staff_session(token) is None

    @pytest.mark.parametrize(
        ("minutes", "is_recent"),
        # Negative ages: the clock of the database was set back.
        [(14, True), (15, False), (-0.5, True), (-5, False)],
    )
    def test_a_password_is_recent_for_fifteen_minutes(
        self, make_staff_user: MakeUser, minutes: float, is_recent: bool
    ) -> None:
        token = start(make_staff_user()).token
        set_times(authenticated_at=timedelta(minutes=minutes))
        loaded = session_queries.find_staff_session(token)
        assert loaded is not None
        assert loaded.has_recent_password == is_recent

    def test_confirming_the_password_makes_it_recent_in_this_session(self, make_user_with_password: MakeUser) -> None:
        user = make_user_with_password()
        here, other = start(user), start(user)
        set_times(authenticated_at=timedelta(hours=1))
        token = session_actions.confirm_password(user.id, here.id, PASSWORD)
        loaded = [session_queries.find_staff_session(item) for item in (token, other.token)]
        assert [item is not None and item.has_recent_password for item in loaded] == [True, False]
        assert session_queries.find_staff_session(here.token) is None

    def test_a_wrong_password_confirms_nothing(self, make_user_with_password: MakeUser) -> None:
        user = make_user_with_password()
        started = start(user)
        set_times(authenticated_at=timedelta(hours=1))
        with pytest.raises(InvalidInput):
            session_actions.confirm_password(user.id, started.id, "not the password")
        loaded = session_queries.find_staff_session(started.token)
        assert loaded is not None
        assert not loaded.has_recent_password

    def test_a_session_that_has_just_ended_cannot_be_confirmed(self, make_user_with_password: MakeUser) -> None:
        user = make_user_with_password()
        started = start(user)
        session_actions.sign_out(started.token)
        with pytest.raises(DomainError, match="session has ended"):
            session_actions.confirm_password(user.id, started.id, PASSWORD)

    def test_the_last_use_is_updated_at_most_once_a_minute(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        started, other = start(user), start(user)
        elsewhere = SessionClient("198.51.100.7", "another browser")
        columns = select(StaffSession.client_address, StaffSession.user_agent)
        updated = []
        for seconds in (30, 61):
            set_times(last_used_at=timedelta(seconds=seconds))
            session_actions.update_last_use(started.id, elsewhere)
            updated.append(tuple(db.session.execute(columns.where(StaffSession.id == started.id)).one()))
        assert updated == [TEST_CLIENT, elsewhere]
        assert db.session.execute(columns.where(StaffSession.id == other.id)).one() == TEST_CLIENT
        assert [item.id for item in session_queries.list_staff_sessions(user.id)] == [started.id, other.id]

    def test_the_last_use_does_not_wait_for_another_request_that_records_it(self, make_staff_user: MakeUser) -> None:
        started = start(make_staff_user())
        set_times(last_used_at=timedelta(seconds=61))
        with db.engine.connect() as other, database_timeouts.statement_deadline(30):
            other.execute(select(StaffSession.id).with_for_update())
            session_actions.update_last_use(started.id, SessionClient("198.51.100.7", "another browser"))
        assert db.session.scalars(select(StaffSession.client_address)).one() == TEST_CLIENT.address

    def test_the_oldest_sessions_and_devices_of_a_user_end(self, make_staff_user: MakeUser) -> None:
        user, other = make_staff_user("admin"), make_staff_user("viewer")
        kept = start(other)
        first = start(user)
        for model in (StaffDevice, StaffSession):
            rows = [{"n": n} for n in range(70)]
            values: dict[str, object] = {"staff_user_id": user.id, "last_used_at": func.now() - timedelta(hours=1)}
            if model is StaffSession:
                values |= {"client_address": "192.0.2.1", "user_agent": ""}
            for row in rows:
                digest = func.sha256(func.convert_to(str(row["n"]), "UTF8"))
                db.session.execute(insert(model).values(token_hash=digest, **values))
        db.session.commit()

        newest = start(user)

        assert count(StaffSession) == 50 + 1
        assert count(StaffDevice) == 50 + 1
        assert all(session_queries.find_staff_session(item.token) for item in (kept, first, newest))

    def test_only_signing_in_counts_as_the_last_sign_in(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        times = []
        for method in (None, "password"):
            session_actions.start_staff_session(user.id, TEST_CLIENT, method=method)
            times.append(db.session.scalar(select(StaffUser.last_sign_in_at)))
        assert [time is not None for time in times] == [False, True]

    def test_the_user_is_locked_before_a_session_starts(self, make_staff_user: MakeUser) -> None:
        """Disabling the user at the same time then ends that session."""
        user = make_staff_user()
        with recorded_statements() as statements:
            start(user)
        locks = [text for text, _ in statements if text.startswith(("INSERT", "UPDATE", "DELETE")) or " FOR " in text]
        assert locks[0].startswith("SELECT staff_user.id")

    def test_a_session_needs_an_active_user(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer", disabled_at=func.now())
        with pytest.raises(DomainError, match="disabled"):
            start(user)
        assert count(StaffSession) == 0

    def test_the_previous_session_of_the_browser_ends(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        first = start(user)
        session_actions.start_staff_session(user.id, TEST_CLIENT, replaced_token=first.token)
        assert session_queries.find_staff_session(first.token) is None
        assert count(StaffSession) == 1


class TestEndingSessions:
    def test_signing_out_deletes_the_session_and_keeps_the_device(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        here, other = start(user), start(user)
        for _ in range(2):
            session_actions.sign_out(here.token)
        assert session_queries.find_staff_session(here.token) is None
        assert session_queries.find_staff_session(other.token)
        assert session_queries.find_device_id(user.email, [here.device_token])
        assert db.session.scalars(select(AuditEntry.action)).all() == ["staff.signed_out"]

    def test_one_of_the_own_sessions_is_ended(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        here, other, third = start(user), start(user), start(user)
        for _ in range(2):
            session_actions.end_own_session(user, other.id, here.id)
        found = [session_queries.find_staff_session(item.token) is not None for item in (here, other, third)]
        assert found == [True, False, True]
        assert session_queries.find_device_id(user.email, [other.device_token]) is None
        assert session_queries.find_device_id(user.email, [here.device_token])
        assert db.session.scalars(select(AuditEntry.action)).all() == ["staff.session_ended"]

    def test_an_older_session_of_the_same_browser_is_ended_without_its_device(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        older = start(user)
        here = start(user, older.device_token)
        session_actions.end_own_session(user, older.id, here.id)
        assert session_queries.find_device_id(user.email, [here.device_token])

    @pytest.mark.parametrize("is_one_ended", [True, False], ids=["one", "all others"])
    def test_ending_sessions_from_a_deleted_device_forgets_their_devices(
        self, make_staff_user: MakeUser, is_one_ended: bool
    ) -> None:
        """The device of the current session was deleted, since it was one of the oldest."""
        user = make_staff_user()
        here, other = start(user), start(user)
        db.session.execute(
            delete(StaffDevice).where(StaffDevice.id == session_queries.find_device_id(user.email, [here.device_token]))
        )
        db.session.commit()
        if is_one_ended:
            session_actions.end_own_session(user, other.id, here.id)
        else:
            session_actions.end_other_sessions(user, here.id)
        assert session_queries.find_device_id(user.email, [other.device_token]) is None

    def test_the_session_of_another_user_is_not_ended(self, make_staff_user: MakeUser) -> None:
        user, other = start(make_staff_user("viewer")), start(make_staff_user("admin"))
        viewer = db.session.scalars(select(StaffUser).where(StaffUser.role == "viewer")).one()
        session_actions.end_own_session(viewer, other.id, user.id)
        session_actions.end_other_sessions(viewer, user.id)
        assert session_queries.find_staff_session(other.token)
        assert session_queries.find_device_id("admin@example.com", [other.device_token])

    def test_all_other_sessions_are_ended(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        here, others = start(user), [start(user) for _ in range(3)]
        session_actions.end_other_sessions(user, here.id)
        assert [item.id for item in session_queries.list_staff_sessions(user.id)] == [here.id]
        assert session_queries.find_device_id(user.email, [here.device_token])
        assert session_queries.find_device_id(user.email, [item.device_token for item in others]) is None
        assert db.session.scalars(select(AuditEntry.action)).all() == ["staff.sessions_ended"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda user: account_actions.end_staff_sessions(user.id, by="ann"),
            lambda user: account_actions.disable_staff_user(user.id, by="ann"),
            lambda user: sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one"),
            lambda user: invitation_actions.reset_password(
                invitation_actions.create_password_reset_link(user.id, by="ann").rpartition("/")[2], "a brand new one"
            ),
        ],
        ids=["ended by an admin", "disabled", "password changed", "password reset"],
    )
    def test_changes_of_a_user_end_sessions_and_forget_devices(
        self, make_user_with_password: MakeUser, change: Callable[[StaffUser], object]
    ) -> None:
        admin, user = make_user_with_password("admin"), make_user_with_password("viewer")
        kept, ended = start(admin), start(user)
        change(user)
        assert session_queries.find_staff_session(ended.token) is None
        assert session_queries.find_device_id(user.email, [ended.device_token]) is None
        assert session_queries.find_staff_session(kept.token)
        assert session_queries.find_device_id(admin.email, [kept.device_token])

    def test_a_new_role_ends_the_sessions_except_the_one_that_changes_it(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user("admin")
        make_staff_user("admin", email="other@example.com")
        here, other = start(user), start(user)
        account_actions.change_staff_role(user.id, "admin", by="ann")
        assert count(StaffSession) == 2
        account_actions.change_staff_role(user.id, "viewer", by="ann", kept_session_id=here.id)
        assert session_queries.find_staff_session(here.token)
        assert session_queries.find_staff_session(other.token) is None
        assert session_queries.find_device_id(user.email, [other.device_token])

    def test_deleting_a_user_deletes_sessions_and_devices(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        token = start(user).token
        db.session.delete(user)
        db.session.commit()
        assert session_queries.find_staff_session(token) is None
        assert (count(StaffSession), count(StaffDevice)) == (0, 0)

    def test_a_password_that_is_reset_during_a_sign_in_ends_the_sign_in(
        self, app: Flask, make_user_with_password: MakeUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = make_user_with_password()
        verify_password = passwords.verify_password

        def verify_and_reset(password_hash: str, password: str) -> bool:
            is_right = verify_password(password_hash, password)
            with db.engine.begin() as connection:
                connection.execute(update(StaffUser).values(password_hash="another hash"))
            return is_right

        monkeypatch.setattr(passwords, "verify_password", verify_and_reset)
        with pytest.raises(DomainError, match="wrong"):
            sign_in_actions.sign_in_user(user.email, PASSWORD)


class TestDevices:
    def test_a_browser_is_known_for_the_account_that_signed_in(self, make_staff_user: MakeUser) -> None:
        user, other = make_staff_user("viewer"), make_staff_user("admin")
        token = start(user).device_token
        assert session_queries.find_device_id(" Viewer@EXAMPLE.com", ["forged", token])
        assert session_queries.find_device_id(other.email, [token]) is None
        assert session_queries.find_device_id(user.email, ["forged"]) is None
        assert session_queries.find_device_id(user.email, []) is None
        assert session_queries.find_device_id("no address", [token]) is None

    def test_a_known_browser_stays_the_same_device(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        first = start(user)
        db.session.execute(update(StaffDevice).values(last_used_at=func.now() - timedelta(days=30)))
        again = start(user, "of another user", first.device_token)
        assert again.device_token == first.device_token
        assert db.session.scalars(select(StaffDevice.last_used_at > func.now() - timedelta(days=1))).all() == [True]

    def test_the_second_user_of_a_browser_has_a_device_of_their_own(self, make_staff_user: MakeUser) -> None:
        first, second = make_staff_user("viewer"), make_staff_user("admin")
        token = start(first).device_token
        db.session.execute(delete(AccountEmail))

        other_token = start(second, token).device_token

        assert other_token != token
        assert session_queries.find_device_id(second.email, [token, other_token])
        assert [(notice.kind, notice.staff_user_id) for notice in db.session.scalars(select(AccountEmail))] == [
            ("new_device", second.id)
        ]

    def test_a_sign_in_with_a_new_browser_is_reported_unless_it_is_expected(self, make_staff_user: MakeUser) -> None:
        user, client = make_staff_user(), session_actions.SessionClient("192.0.2.7", "Mozilla/5.0 (X11) Firefox/140.0")
        known = session_actions.start_staff_session(user.id, client, is_new_device_expected=True).device_token
        session_actions.start_staff_session(user.id, client, [known])
        assert count(AccountEmail) == 0
        session_actions.start_staff_session(user.id, client)
        notice = db.session.scalars(select(AccountEmail)).one()
        assert (notice.kind, notice.staff_user_id, notice.address) == ("new_device", user.id, "192.0.2.7")
        assert notice.detail == {"device": "Firefox"}

    def test_a_copied_device_cookie_is_of_no_use_after_a_password_reset(
        self, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password()
        copied = start(user).device_token
        link = invitation_actions.create_password_reset_link(user.id, by="ann")
        invitation_actions.reset_password(link.rpartition("/")[2], "a brand new one")
        assert start(user, copied).device_token != copied
        assert session_queries.find_device_id(user.email, [copied]) is None

    def test_a_device_that_was_not_used_for_a_year_is_deleted(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user()
        started = start(user)
        remaining = []
        for days in (364, 365):
            db.session.execute(update(StaffDevice).values(last_used_at=func.now() - timedelta(days=days)))
            db.session.commit()
            task_queue.run("accounts.sweep")
            remaining.append(count(StaffDevice))
        assert remaining == [1, 0]
        assert session_queries.find_staff_session(started.token)
