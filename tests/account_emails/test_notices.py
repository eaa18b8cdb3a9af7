"""Notices by email about changes to accounts."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support.accounts import PASSWORD
from tests.support.smtp_relay import Relay
from webapp.account_emails import actions as account_email_actions
from webapp.accounts import actions as account_actions
from webapp.accounts import api_key_actions, invitation_actions, notices, sign_in_actions
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import recovery_code_actions
from webapp.accounts.models import AccountEmail, StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc.provider import OidcClaims
from webapp.core import task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.mail import smtp

MakeUser = Callable[..., StaffUser]
RIGHT_TO_LEFT_OVERRIDE = "\u202e"
SECOND_FACTOR_CHANGES: dict[notices.SecondFactorChange, str] = {
    "totp.added": "An authenticator app was added",
    "totp.removed": "The authenticator app of your Onecode account was removed",
    "passkey.added": "A passkey was added",
    "passkey.removed": "A passkey of your Onecode account was removed",
    "recovery_code.used": "A recovery code was used",
    "recovery_codes.created": "New recovery codes were created",
    "second_factor.reset": "An administrator removed the authenticator app, passkeys and recovery codes",
    "identity.linked": "An account at your sign-in provider was linked",
    "identity.unlinked": "The account at your sign-in provider was unlinked",
}


def send_emails() -> None:
    task_queue.run("accounts.send_emails")


def count_emails() -> int:
    return db.session.scalar(select(func.count()).select_from(AccountEmail)) or 0


def notify_of_device(user: StaffUser, device: str = "Firefox on Linux") -> None:
    notices.notify_new_device(user, device, "203.0.113.7")
    db.session.commit()
    notices.enqueue_account_emails()


@pytest.fixture
def admins(make_staff_user: MakeUser) -> list[StaffUser]:
    """Two active administrators, one that is disabled, and a manager."""
    make_staff_user("admin", email="gone@example.com", disabled_at=datetime.now(UTC))
    make_staff_user("manager")
    return [make_staff_user("admin", email=email) for email in ("ada@example.com", "bob@example.com")]


class TestWhoIsNotified:
    def test_a_new_device_is_reported_to_its_user(self, relay: Relay, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer", time_zone="Asia/Tokyo")
        notify_of_device(user)
        db.session.execute(update(AccountEmail).values(created_at=datetime(2026, 5, 3, 10, tzinfo=UTC)))
        db.session.commit()
        send_emails()

        (received,) = relay.messages
        assert received.message["Subject"] == "New sign-in to Onecode: Firefox on Linux"
        assert (received.to, received.message["Auto-Submitted"]) == ("viewer@example.com", "auto-generated")
        body = received.text.replace("\r\n", "\n")
        assert body.startswith("Hello Viewer,\n\nThere was a sign-in to your Onecode account from a new device.")
        facts = "Device:     Firefox on Linux\nTime:       3 May 2026, 19:00 JST\nIP address: 203.0.113.7"
        assert f"\n\n{facts}\n\nIf that" in body
        assert body.endswith("\nhttp://localhost/settings/profile\n\nTest shop\nhttp://localhost\n")

    def test_a_new_api_key_is_reported_to_all_active_admins(self, relay: Relay, admins: list[StaffUser]) -> None:
        key = api_key_actions.create_api_key("Web shop", ["read", "redeem"], by="ada@example.com")
        assert count_emails() == 2
        send_emails()

        assert relay.recipients == {"ada@example.com": 1, "bob@example.com": 1}
        received = relay.message_to("bob@example.com")
        assert received.message["Subject"] == "New API key in Onecode: Web shop"
        body = received.text
        for expected in ("Web shop", "read, redeem", "ada@example.com", "http://localhost/settings/api-keys"):
            assert expected in body
        assert key.split("_", 3)[3] not in body
        assert "IP address" not in body

    def test_a_new_role_of_administrator_is_reported_to_all_admins(
        self, relay: Relay, admins: list[StaffUser], make_staff_user: MakeUser
    ) -> None:
        user = make_staff_user("viewer")
        account_actions.change_staff_role(user.id, "admin", by="ada@example.com")
        send_emails()

        assert relay.recipients == {"ada@example.com": 1, "bob@example.com": 1, "viewer@example.com": 1}
        received = relay.message_to("bob@example.com")
        assert received.message["Subject"] == "New administrator in Onecode: Viewer"
        for expected in ("Viewer is now an administrator", "ada@example.com", f"/settings/people/{user.id}"):
            assert expected in received.text

    @pytest.mark.parametrize(("before", "after"), [("viewer", "manager"), ("admin", "viewer"), ("admin", "admin")])
    def test_other_changes_of_a_role_are_not_reported(
        self, admins: list[StaffUser], make_staff_user: MakeUser, before: str, after: str
    ) -> None:
        user = make_staff_user(before, email="someone@example.com")
        account_actions.change_staff_role(user.id, after, by="ada@example.com")  # type: ignore[arg-type]
        assert count_emails() == 0

    @pytest.mark.parametrize("role", ["admin", "manager"])
    def test_an_invited_administrator_is_reported_to_the_others(
        self, relay: Relay, admins: list[StaffUser], make_invitation_token: Callable[..., str], role: str
    ) -> None:
        token = make_invitation_token(role)
        invitation_actions.accept_invitation(token, "Cleo", "cleo@example.com", PASSWORD, "UTC")
        send_emails()

        others = {"ada@example.com": 1, "bob@example.com": 1}
        assert relay.recipients == (others if role == "admin" else {})
        for received in relay.messages:
            assert "Cleo has accepted an invitation" in received.text
            assert "By:" not in received.text

    def test_a_changed_password_is_reported_to_its_user(self, relay: Relay, make_user_with_password: MakeUser) -> None:
        user = make_user_with_password("viewer")
        sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one")
        send_emails()

        received = relay.message_to("viewer@example.com")
        assert received.message["Subject"] == "Your Onecode password was changed"
        assert "http://localhost/forgot-password" in received.text
        assert "a brand new one" not in received.text

    def test_a_reset_password_is_reported_to_its_user(self, relay: Relay, make_user_with_password: MakeUser) -> None:
        user = make_user_with_password("viewer", last_sign_in_at=datetime.now(UTC))
        link = invitation_actions.create_password_reset_link(user.id, by="tests")
        invitation_actions.reset_password(link.rpartition("/")[2], "a brand new one")
        send_emails()

        received = relay.message_to("viewer@example.com")
        assert received.message["Subject"] == "Your Onecode password was reset"
        assert link.rpartition("/")[2] not in received.text

    @pytest.mark.parametrize(("change", "words"), SECOND_FACTOR_CHANGES.items())
    def test_a_changed_second_factor_is_reported_to_its_user(
        self, relay: Relay, make_staff_user: MakeUser, change: notices.SecondFactorChange, words: str
    ) -> None:
        notices.notify_second_factor_changed(make_staff_user("viewer"), change)
        db.session.commit()
        send_emails()

        received = relay.message_to("viewer@example.com")
        is_identity = change.startswith("identity.")
        subject = "Sign-in provider" if is_identity else "Two-step verification"
        assert received.message["Subject"] == f"{subject} of your Onecode account"
        assert words in received.text.split("\r\n\r\n")[1]

    def test_every_change_of_a_second_factor_has_a_text(self) -> None:
        assert set(get_args(notices.SecondFactorChange)) == set(SECOND_FACTOR_CHANGES)

    def test_a_reset_of_second_factors_is_reported_to_its_user(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        factor_actions.reset_second_factor(user.id, by="ada@example.com")
        assert db.session.scalars(select(AccountEmail.detail)).all() == [{"change": "second_factor.reset"}]

    def test_linking_a_provider_and_new_recovery_codes_are_reported(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        claims = OidcClaims("https://login.example.com", "1", "ada@example.com", True, "Ada", False)
        oidc_actions.link_identity(user.id, claims)
        oidc_actions.link_identity(user.id, claims)
        oidc_actions.unlink_identity(user.id, claims.issuer)
        oidc_actions.unlink_identity(user.id, claims.issuer)
        recovery_code_actions.replace_recovery_codes(user.id)
        changes = [detail["change"] for detail in db.session.scalars(select(AccountEmail.detail)) if detail]
        assert sorted(changes) == ["identity.linked", "identity.unlinked", "recovery_codes.created"]

    def test_the_first_password_is_not_reported(self, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        link = invitation_actions.create_password_reset_link(user.id, by="tests")
        invitation_actions.reset_password(link.rpartition("/")[2], "a brand new one")
        assert count_emails() == 0
        link = invitation_actions.create_password_reset_link(user.id, by="tests")
        invitation_actions.reset_password(link.rpartition("/")[2], "another new one")
        assert count_emails() == 1

    def test_a_reset_password_of_an_invited_user_is_reported(self, make_invitation_token: Callable[..., str]) -> None:
        user = invitation_actions.accept_invitation(
            make_invitation_token("viewer"), "Ann", "ann@example.com", PASSWORD, "UTC"
        )
        link = invitation_actions.create_password_reset_link(user.id, by="tests")
        invitation_actions.reset_password(link.rpartition("/")[2], "a brand new one")
        assert count_emails() == 1

    def test_a_disabled_user_gets_no_notice(self, relay: Relay, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        make_staff_user("admin")
        notify_of_device(user)
        account_actions.disable_staff_user(user.id, by="tests")
        send_emails()
        assert (relay.messages, count_emails()) == ([], 0)

    def test_the_address_is_that_of_the_request(self, relay: Relay, sign_in: Callable[..., FlaskClient]) -> None:
        client = sign_in("admin")
        form = {"name": "Till", "scopes": "read"}
        client.post("/settings/api-keys", data=form, environ_base={"REMOTE_ADDR": "203.0.113.9"})
        send_emails()
        assert "IP address: 203.0.113.9\r\n" in relay.message_to("admin@example.com").text

    @pytest.mark.parametrize("kind", ["device", "key", "admin", "password", "reset", "factor"])
    def test_every_link_in_a_notice_leads_to_a_page(
        self, relay: Relay, sign_in: Callable[..., FlaskClient], kind: str
    ) -> None:
        client = sign_in("admin")
        user = db.session.scalars(select(StaffUser)).one()
        {
            "device": lambda: notices.notify_new_device(user, "Firefox"),
            "key": lambda: notices.notify_api_key_created("Till", ["read"], "x"),
            "admin": lambda: notices.notify_admin_added(user.id, "Ann", "ann@example.com", "x"),
            "password": lambda: notices.notify_password_changed(user),
            "reset": lambda: notices.notify_password_reset(user),
            "factor": lambda: notices.notify_second_factor_changed(user, "totp.added"),
        }[kind]()
        db.session.commit()
        send_emails()

        links = re.findall(r"http://localhost(/\S+)", relay.message_to("admin@example.com").text)
        assert links
        assert {link: client.get(link).status_code for link in links} == dict.fromkeys(links, 200)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("Ann\r\nBcc: eve@example.com\r\n\r\nHi", "Ann Bcc: eve@example.com Hi"),
            ("Zoë 🦊 O'Neil", "Zoë 🦊 O'Neil"),
            ("=?utf-8?q?x?=", "=?utf-8?q?x?="),
            ("نور حداد", "\u2068نور حداد\u2069"),
            (f"Ann {RIGHT_TO_LEFT_OVERRIDE}nimda", "Ann nimda"),
            ("A" * 100, "A" * 100),
        ],
        ids=["line breaks", "emoji", "encoded word", "right to left", "override", "long"],
    )
    def test_no_name_changes_the_headers_or_lines(
        self, relay: Relay, make_staff_user: MakeUser, name: str, shown: str
    ) -> None:
        user = make_staff_user("admin")
        user.name = name
        db.session.flush()
        notices.notify_admin_added(user.id, name, user.email, by="tests")
        db.session.commit()
        send_emails()

        (received,) = relay.messages
        assert received.message["Subject"] == f"New administrator in Onecode: {shown}"
        assert (received.message["Bcc"], received.to) == (None, "admin@example.com")
        assert received.raw.count(b"\n") == received.raw.count(b"\r\n")
        assert max(map(len, received.raw.split(b"\r\n"))) <= 998
        lines = received.text.splitlines()
        assert lines[0] == f"Hello {shown},"
        assert [line.partition(" ")[0] for line in lines if line.startswith(("Bcc:", "User:", "By:", "Time:"))] == [
            "User:",
            "By:",
            "Time:",
        ]

    def test_the_text_is_not_html(self, relay: Relay, make_staff_user: MakeUser) -> None:
        make_staff_user("admin")
        api_key_actions.create_api_key("<b>Tills & “shop”</b>", ["read"], by="tests")
        send_emails()
        received = relay.message_to("admin@example.com")
        assert received.message.get_content_type() == "text/plain"
        assert "Key:        <b>Tills & “shop”</b>\r\n" in received.text


class TestSending:
    def test_an_unavailable_queue_does_not_break_the_action(
        self, relay: Relay, make_user_with_password: MakeUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = make_user_with_password("viewer")
        monkeypatch.setattr(task_queue, "enqueue", lambda *_, **__: False)
        sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one")
        # The worker runs this task every minute.
        send_emails()
        assert relay.recipients == {"viewer@example.com": 1}

    def test_a_change_that_fails_sends_no_notice(self, relay: Relay, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        notices.notify_new_device(user, "Firefox")
        db.session.rollback()
        send_emails()
        assert relay.connections == 0

    def test_a_notice_is_retried_while_the_relay_is_unavailable(
        self, relay: Relay, make_staff_user: MakeUser, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(mail_port=1)
        notify_of_device(make_staff_user("viewer"))
        waits = []
        for _ in account_email_actions.RETRY_DELAYS:
            send_emails()
            waits.append(db.session.scalar(select(AccountEmail.due_at - func.clock_timestamp())))
            db.session.execute(update(AccountEmail).values(due_at=func.now()))
            db.session.commit()
        with_settings(mail_port=relay.port)
        send_emails()

        passed = [
            seconds - (wait or timedelta()).total_seconds()
            for seconds, wait in zip((60, 600, 3600), waits, strict=True)
        ]
        assert all(0 <= seconds < 50 for seconds in passed)
        assert relay.recipients == {"viewer@example.com": 1}
        assert count_emails() == 0

    def test_a_notice_is_given_up_after_the_last_retry(
        self, make_staff_user: MakeUser, caplog: pytest.LogCaptureFixture
    ) -> None:
        notify_of_device(make_staff_user("viewer"))
        db.session.execute(update(AccountEmail).values(attempts=len(account_email_actions.RETRY_DELAYS)))
        db.session.commit()
        send_emails()
        assert count_emails() == 0
        assert "gave up an email to a user (new_device)" in caplog.text
        assert "viewer@example.com" not in caplog.text

    def test_a_rejected_notice_is_not_retried_and_the_next_one_sent(
        self, relay: Relay, admins: list[StaffUser]
    ) -> None:
        relay.behaviour.rcpt["ada@example.com"] = "550 no such mailbox"
        api_key_actions.create_api_key("Till", ["read"], by="tests")
        send_emails()
        assert (relay.recipients, count_emails()) == ({"bob@example.com": 1}, 0)

    def test_a_notice_that_a_worker_is_sending_is_not_sent_by_another(
        self, relay: Relay, make_staff_user: MakeUser, app: Flask
    ) -> None:
        notify_of_device(make_staff_user("viewer"))
        leases: list[timedelta | None] = []

        def send_in_another_context(_to: object) -> None:
            with app.app_context():
                leases.append(db.session.scalar(select(AccountEmail.due_at - func.now())))
                send_emails()

        relay.behaviour.on_body = send_in_another_context
        send_emails()
        assert relay.recipients == {"viewer@example.com": 1}
        assert [timedelta(minutes=9) < (lease or timedelta()) <= timedelta(minutes=10) for lease in leases] == [True]

    def test_the_email_that_has_waited_longest_is_sent_first(self, relay: Relay, make_staff_user: MakeUser) -> None:
        for role in ("viewer", "manager"):
            notify_of_device(make_staff_user(role))
        hour_ago = update(AccountEmail).values(due_at=func.now() - timedelta(hours=1))
        db.session.execute(hour_ago.where(AccountEmail.id == select(func.min(AccountEmail.id)).scalar_subquery()))
        notify_of_device(make_staff_user("admin"))
        db.session.execute(hour_ago.where(AccountEmail.id == select(func.max(AccountEmail.id)).scalar_subquery()))
        db.session.commit()
        send_emails()
        assert [received.to for received in relay.messages] == [
            "viewer@example.com",
            "admin@example.com",
            "manager@example.com",
        ]

    def test_while_the_relay_is_unavailable_only_one_email_is_tried_and_waits_longer(
        self, admins: list[StaffUser], with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(mail_port=1)
        api_key_actions.create_api_key("Till", ["read"], by="tests")
        send_emails()
        columns = AccountEmail.attempts, AccountEmail.due_at <= func.now()
        assert db.session.execute(select(*columns).order_by(AccountEmail.id)).all() == [(1, False), (0, True)]

    def test_a_stopping_worker_sends_no_more_emails(
        self, relay: Relay, make_staff_user: MakeUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop_requested = threading.Event()
        stop_requested.set()
        monkeypatch.setattr(task_queue, "stop_requested", stop_requested)
        notify_of_device(make_staff_user("viewer"))
        send_emails()
        assert (relay.messages, count_emails()) == ([], 1)

    def test_the_notice_of_a_killed_worker_is_sent_after_its_lease(
        self, relay: Relay, make_staff_user: MakeUser
    ) -> None:
        notify_of_device(make_staff_user("viewer"))
        db.session.execute(update(AccountEmail).values(attempts=1, due_at=func.now() - timedelta(seconds=1)))
        db.session.commit()
        send_emails()
        assert relay.recipients == {"viewer@example.com": 1}

    def test_no_transaction_is_open_while_the_relay_receives_a_notice(
        self, relay: Relay, make_staff_user: MakeUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_transactions = []
        connect = smtp.RelayConnection.open

        def watched_open(self: smtp.RelayConnection) -> None:
            open_transactions.append(db.session().in_transaction())
            connect(self)

        monkeypatch.setattr(smtp.RelayConnection, "open", watched_open)
        notify_of_device(make_staff_user("viewer"))
        send_emails()
        assert open_transactions == [False]

    def test_without_a_relay_no_notice_is_added(
        self, make_staff_user: MakeUser, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(uses_mail_sink=True, public_url="https://shop.example")
        notify_of_device(make_staff_user("admin"))
        api_key_actions.create_api_key("Till", ["read"], by="tests")
        assert (count_emails(), huey.storage.queue_size()) == (0, 0)
