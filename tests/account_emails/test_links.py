"""Links by email: password reset and invitations."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support.accounts import PASSWORD
from tests.support.smtp_relay import ReceivedMessage, Relay
from tests.support.sql_statements import recorded_statements
from webapp.accounts import invitation_actions, links, password_reset_actions, sign_in_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.models import AccountEmail, AuditEntry, Invitation, StaffUser
from webapp.core import task_queue
from webapp.core.errors import InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.rate_limit import RateLimitCounter
from webapp.core.settings import Settings

MakeUser = Callable[..., StaffUser]
NEW = {"password": "a brand new one", "confirm": "a brand new one"}


def send_emails() -> None:
    task_queue.run("accounts.send_emails")


def request_reset(email: str = "viewer@example.com") -> None:
    password_reset_actions.request_password_reset(email)
    send_emails()


def path_in(received: ReceivedMessage) -> str:
    """The path of the link in an email."""
    found = re.search(r"^http://localhost(/invitations/[\w-]+)\r?$", received.text, re.MULTILINE)
    assert found
    return found[1]


def token_in(received: ReceivedMessage) -> str:
    return path_in(received).rpartition("/")[2]


class TestPasswordReset:
    @pytest.fixture(autouse=True)
    def user(self, make_user_with_password: MakeUser) -> StaffUser:
        return make_user_with_password("viewer", last_sign_in_at=datetime.now(UTC), time_zone="Europe/Berlin")

    def test_the_emailed_link_sets_the_password(self, client: FlaskClient, relay: Relay, user: StaffUser) -> None:
        response = client.post("/forgot-password", data={"email": " Viewer@Example.com "})
        db.session.execute(update(AccountEmail).values(created_at=datetime(2026, 5, 3, 10, tzinfo=UTC)))
        db.session.commit()
        send_emails()
        received = relay.message_to("viewer@example.com")

        assert (response.status_code, response.location) == (302, "/forgot-password/sent")
        assert received.message["Subject"] == "Reset your Onecode password"
        assert received.text.startswith("Hello Viewer,\r\n")
        assert "Time:       3 May 2026, 12:00 CEST\r\nIP address: 127.0.0.1\r\n" in received.text
        assert client.post(path_in(received), data=NEW).location == "/"
        assert sign_in_actions.sign_in_user(user.email, NEW["password"])

    def test_line_breaks_in_a_name_are_removed(self, relay: Relay, user: StaffUser) -> None:
        user.name = "Ann\r\nBcc: eve@example.com"
        request_reset()
        assert relay.messages[0].text.startswith("Hello Ann Bcc: eve@example.com,\r\n\r\nA password reset")

    def test_opening_the_link_uses_nothing_up(self, client: FlaskClient, relay: Relay) -> None:
        """Mail scanners open links."""
        request_reset()
        path = path_in(relay.message_to("viewer@example.com"))
        assert [client.get(path).status_code, client.head(path).status_code, client.get(path).status_code] == [200] * 3
        assert client.post(path, data=NEW).status_code == 302
        assert client.get(path).status_code == 404

    def test_the_link_works_for_an_hour(self, relay: Relay) -> None:
        request_reset()
        lifetime = db.session.scalar(select(Invitation.expires_at - func.now()))
        assert lifetime
        assert timedelta(minutes=59) < lifetime <= timedelta(hours=1)
        db.session.execute(update(Invitation).values(expires_at=func.now()))
        db.session.commit()
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token_in(relay.messages[0]), NEW["password"])

    def test_only_the_last_link_works(self, relay: Relay, user: StaffUser) -> None:
        request_reset()
        request_reset()
        first, last = map(token_in, relay.messages)

        with pytest.raises(NotFound):
            invitation_actions.reset_password(first, NEW["password"])
        assert invitation_actions.reset_password(last, NEW["password"]).id == user.id

    def test_a_request_leaves_the_link_of_an_administrator(self, relay: Relay, user: StaffUser) -> None:
        """Otherwise strangers could use up the links of users who receive no emails."""
        token = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        request_reset()
        assert invitation_actions.reset_password(token, NEW["password"]).id == user.id
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token_in(relay.messages[0]), NEW["password"])

    def test_a_new_password_ends_the_other_links(self, relay: Relay, user: StaffUser) -> None:
        token = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        request_reset()
        invitation_actions.reset_password(token_in(relay.messages[0]), NEW["password"])
        with pytest.raises(NotFound):
            invitation_actions.reset_password(token, NEW["password"])

    def test_the_user_is_locked_before_the_link(self, user: StaffUser) -> None:
        """Changes of a user lock first the user and then their links: another order could end in a deadlock."""
        token = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        with recorded_statements() as statements:
            invitation_actions.reset_password(token, NEW["password"])
        locks = [text for text, _ in statements if text.startswith(("UPDATE", "DELETE")) or " FOR " in text]
        assert locks[0].startswith("SELECT staff_user.id")

    def test_known_and_unknown_addresses_get_the_same_response_and_work(
        self, client: FlaskClient, relay: Relay
    ) -> None:
        pages, statements = [], []
        for n, email in enumerate(("viewer@example.com", "vlewer@example.com")):
            client_address = {"REMOTE_ADDR": f"203.0.113.{n}"}
            with recorded_statements() as recorded:
                response = client.post("/forgot-password", data={"email": email}, environ_base=client_address)
            pages.append((response.status_code, response.location, response.text, [*response.headers.keys()]))
            statements.append([statement for statement, _parameters in recorded])
        send_emails()

        assert pages[0] == pages[1]
        assert statements[0] == statements[1]
        assert relay.recipients == {"viewer@example.com": 1}
        assert db.session.scalar(select(func.count()).select_from(AccountEmail)) == 0

    def test_three_emails_an_hour_for_an_address(self, relay: Relay) -> None:
        for _ in range(5):
            request_reset()
        assert relay.recipients == {"viewer@example.com": 3}
        # An hour passes.
        db.session.execute(update(RateLimitCounter).values(expires_at=RateLimitCounter.expires_at - timedelta(hours=1)))
        db.session.commit()
        request_reset()
        assert relay.recipients == {"viewer@example.com": 4}

    def test_requests_for_another_address_do_not_count(self, relay: Relay, make_staff_user: MakeUser) -> None:
        make_staff_user("admin")
        for _ in range(5):
            request_reset("admin@example.com")
        request_reset()
        assert relay.recipients == {"admin@example.com": 3, "viewer@example.com": 1}

    def test_twenty_requests_an_hour_from_an_address(self, client: FlaskClient) -> None:
        statuses = [client.post("/forgot-password", data={"email": f"v{n}@example.com"}).status_code for n in range(21)]
        other = client.post(
            "/forgot-password", data={"email": "v@example.com"}, environ_base={"REMOTE_ADDR": "203.0.113.9"}
        )
        assert statuses == [302] * 20 + [429]
        assert other.status_code == 302

    def test_a_disabled_user_is_told_so_by_email(self, relay: Relay, user: StaffUser) -> None:
        user.disabled_at = datetime.now(UTC)
        db.session.commit()
        request_reset()
        body = relay.message_to("viewer@example.com").text
        assert "Your account is disabled" in body
        assert "/invitations/" not in body
        assert account_queries.list_unused_invitations() == []
        assert db.session.scalars(select(AuditEntry.action)).all() == ["password.reset_requested"]

    def test_a_request_is_in_the_audit_log_once(
        self, client: FlaskClient, relay: Relay, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(mail_port=1)
        client.post("/forgot-password", data={"email": "viewer@example.com"})
        send_emails()
        db.session.execute(update(AccountEmail).values(due_at=func.now()))
        db.session.commit()
        with_settings(mail_port=relay.port)
        send_emails()

        entries = db.session.execute(
            select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject, AuditEntry.detail)
        ).all()
        assert entries == [("anonymous", "password.reset_requested", "viewer@example.com", {"address": "127.0.0.1"})]
        assert relay.recipients == {"viewer@example.com": 1}

    def test_the_token_is_in_no_row(self, relay: Relay) -> None:
        password_reset_actions.request_password_reset("viewer@example.com")
        (queued,) = db.session.scalars(select(AccountEmail)).all()
        assert (queued.detail, queued.invitation_id) == (None, None)
        send_emails()
        token = token_in(relay.messages[0])
        assert db.session.scalars(select(Invitation.token_hash)).all() == [links.hash_token(token)]

    @pytest.mark.parametrize("email", ["", "no address", "a@b", "viewer@example.com\r\nBcc: eve@example.com"])
    def test_an_invalid_address_is_reported_at_its_field(self, client: FlaskClient, email: str) -> None:
        response = client.post("/forgot-password", data={"email": email})
        assert (response.status_code, 'id="email-error"' in response.text) == (422, True)
        assert db.session.scalar(select(func.count()).select_from(AccountEmail)) == 0

    def test_the_form_needs_the_csrf_token(self, csrf_client: FlaskClient) -> None:
        assert csrf_client.post("/forgot-password", data={"email": "viewer@example.com"}).status_code == 400
        assert db.session.scalar(select(func.count()).select_from(AccountEmail)) == 0

    def test_a_request_changes_neither_password_nor_sessions(
        self, client: FlaskClient, relay: Relay, user: StaffUser
    ) -> None:
        client.post("/sign-in", data={"email": user.email, "password": PASSWORD})
        request_reset()
        assert client.get("/settings/profile").status_code == 200
        assert sign_in_actions.sign_in_user(user.email, PASSWORD)

    def test_the_link_leads_to_the_public_url(self, client: FlaskClient, relay: Relay) -> None:
        client.post("/forgot-password", data={"email": "viewer@example.com"}, headers={"Host": "evil.example"})
        send_emails()
        assert "evil.example" not in relay.messages[0].text

    def test_without_a_relay_the_sign_in_page_names_the_administrator(
        self, client: FlaskClient, with_settings: Callable[..., Settings]
    ) -> None:
        assert 'href="/forgot-password"' in client.get("/sign-in").text
        with_settings(uses_mail_sink=True, public_url="https://shop.example")
        page = client.get("/sign-in").text
        assert 'href="/forgot-password"' not in page
        assert "Ask an administrator for a password reset link" in page
        assert [client.get("/forgot-password").status_code, client.post("/forgot-password").status_code] == [404, 404]

    @pytest.mark.parametrize(("uses_sink", "is_shown"), [(True, True), (False, False)])
    def test_with_the_mail_sink_the_page_leads_to_it(
        self, client: FlaskClient, with_settings: Callable[..., Settings], uses_sink: bool, is_shown: bool
    ) -> None:
        with_settings(uses_mail_sink=uses_sink, port=8010)
        assert client.get("/forgot-password").status_code == 200
        assert ("http://127.0.0.1:8012/" in client.get("/forgot-password/sent").text) == is_shown


class TestInvitations:
    def invite(self, client: FlaskClient, **values: str) -> str:
        """Invite with an email, and return the path of the link that the page shows."""
        form = {"role": "manager", "email": "ann@example.com", "is_emailed": "y", **values}
        page = client.post("/settings/people", data=form).text
        send_emails()
        found = re.search(r"/invitations/[\w-]+", page)
        assert found
        return found[0]

    @pytest.fixture
    def admin(self, sign_in: Callable[..., FlaskClient]) -> FlaskClient:
        return sign_in("admin")

    def test_the_emailed_link_and_the_shown_one_work_once_together(
        self, app: object, admin: FlaskClient, relay: Relay
    ) -> None:
        shown = self.invite(admin)
        received = relay.message_to("ann@example.com")
        emailed = path_in(received)

        assert received.message["Subject"] == "Your invitation to Onecode"
        assert "within 7 days" in received.text
        assert shown != emailed
        assert [admin.get(path).status_code for path in (shown, emailed)] == [200, 200]
        invitation_actions.accept_invitation(token_in(received), "Ann", "ann@example.com", PASSWORD, "UTC")
        assert [admin.get(path).status_code for path in (shown, emailed)] == [404, 404]

    def test_the_shown_link_also_uses_the_emailed_one(self, admin: FlaskClient, relay: Relay) -> None:
        token = self.invite(admin).rpartition("/")[2]
        invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC")
        with pytest.raises(NotFound):
            invitation_actions.accept_invitation(token_in(relay.messages[0]), "Ann", "ann@example.com", PASSWORD, "UTC")

    def test_no_email_is_sent_without_the_choice(self, admin: FlaskClient, relay: Relay) -> None:
        self.invite(admin, is_emailed="")
        assert relay.messages == []

    def test_an_email_needs_an_address(self, admin: FlaskClient, relay: Relay) -> None:
        response = admin.post("/settings/people", data={"role": "viewer", "email": "", "is_emailed": "y"})
        assert (response.status_code, 'id="email-error"' in response.text) == (422, True)
        assert "Enter the email address to send the link to." in response.text
        assert account_queries.list_unused_invitations() == []

    def test_a_revoked_invitation_is_not_emailed(self, admin: FlaskClient, relay: Relay) -> None:
        invitation_actions.create_invitation("viewer", "ann@example.com", by="tests", is_emailed=True)
        (invitation,) = account_queries.list_unused_invitations()
        invitation_actions.withdraw_invitation(invitation.id, by="tests")
        send_emails()
        assert relay.messages == []

    def test_a_used_invitation_is_not_emailed(self, relay: Relay, app: object) -> None:
        link = invitation_actions.create_invitation("viewer", "ann@example.com", by="tests", is_emailed=True)
        token = link.rpartition("/")[2]
        invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC")
        send_emails()
        assert relay.messages == []

    def test_each_invited_person_gets_their_own_link(self, relay: Relay, app: object) -> None:
        people = {"ann@example.com": "viewer", "bob@example.com": "manager"}
        for email, role in people.items():
            invitation_actions.create_invitation(role, email, by="tests", is_emailed=True)
        send_emails()
        for email, role in people.items():
            token = token_in(relay.message_to(email))
            assert invitation_actions.accept_invitation(token, "Person", email, PASSWORD, "UTC").role == role

    def test_a_repeated_email_has_a_link_that_works(
        self, relay: Relay, app: object, with_settings: Callable[..., Settings]
    ) -> None:
        with_settings(mail_port=1)
        invitation_actions.create_invitation("viewer", "ann@example.com", by="tests", is_emailed=True)
        send_emails()
        db.session.execute(update(AccountEmail).values(due_at=func.now()))
        db.session.commit()
        with_settings(mail_port=relay.port)
        send_emails()
        token = token_in(relay.message_to("ann@example.com"))
        assert invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC").role == "viewer"

    def test_the_choice_is_in_the_audit_log(self, app: object) -> None:
        invitation_actions.create_invitation("viewer", "ann@example.com", by="tests", is_emailed=True)
        assert db.session.scalars(select(AuditEntry.detail)).all() == [{"role": "viewer", "emailed": "yes"}]

    def test_without_a_relay_no_email_is_offered_or_accepted(
        self, admin: FlaskClient, with_settings: Callable[..., Settings]
    ) -> None:
        assert 'name="is_emailed"' in admin.get("/settings/people").text
        with_settings(uses_mail_sink=True, public_url="https://shop.example")
        assert 'name="is_emailed"' not in admin.get("/settings/people").text
        with pytest.raises(InvalidInput, match="No relay is set"):
            invitation_actions.create_invitation("viewer", "ann@example.com", by="tests", is_emailed=True)

    def test_the_address_of_an_invitation_cannot_be_edited(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        path = f"/invitations/{make_invitation_token('viewer', 'ann@example.com')}"
        form = {"name": "Eve", "password": PASSWORD, "confirm": PASSWORD, "time_zone": "UTC"}
        page = client.post(path, data={**form, "email": "eve@example.com"})

        field = re.search(r'<input[^>]*name="email"[^>]*>', page.text)
        assert (page.status_code, 'id="email-error"' in page.text, bool(field)) == (422, True, True)
        assert field
        assert 'value="ann@example.com"' in field[0]
        assert "readonly" in field[0]
        assert 'value="Eve"' in page.text
        assert client.post(path, data={**form, "email": "ann@example.com"}).status_code == 302

    def test_an_invitation_for_anyone_has_an_editable_address(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        field = re.search(r'<input[^>]*name="email"[^>]*>', client.get(f"/invitations/{make_invitation_token()}").text)
        assert field
        assert "readonly" not in field[0]
