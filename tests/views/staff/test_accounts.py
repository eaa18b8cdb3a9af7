"""Signing in, invitations and the settings, as a browser sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from tests.support.accounts import PASSWORD
from webapp.accounts import actions as account_actions
from webapp.accounts import api_key_actions, audit
from webapp.accounts.models import ApiKey, AuditEntry, Invitation, StaffUser
from webapp.core.extensions import db
from webapp.views.staff.accounts import safe_redirect_path

Person = Callable[..., StaffUser]
SignIn = Callable[..., FlaskClient]

JOIN = {
    "name": "Ann Example",
    "email": "ann@example.com",
    "password": PASSWORD,
    "confirm": PASSWORD,
    "time_zone": "Europe/Berlin",
}


def post_sign_in(client: FlaskClient, email: str, password: str = PASSWORD, goal: str = "") -> TestResponse:
    return client.post(f"/sign-in{goal}", data={"email": email, "password": password})


def token_in(answer: TestResponse) -> str:
    """The CSRF token of the first form of a page."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', answer.text)
    assert found
    return found[1]


def link_in(answer: TestResponse) -> str:
    found = re.search(r"/invitations/[\w-]+", answer.text)
    assert found
    return found[0]


def is_signed_in(client: FlaskClient) -> bool:
    return client.get("/settings/profile").status_code == 200


class TestSignIn:
    def test_the_right_password_opens_the_first_page(
        self, client: FlaskClient, make_user_with_password: Person
    ) -> None:
        answer = post_sign_in(client, make_user_with_password().email)
        assert (answer.status_code, answer.location) == (302, "/")
        assert is_signed_in(client)

    def test_a_wrong_password_keeps_the_email_and_not_the_password(
        self, client: FlaskClient, make_user_with_password: Person
    ) -> None:
        answer = post_sign_in(client, make_user_with_password().email, "not the password")
        assert answer.status_code == 422
        assert "admin@example.com" in answer.text
        assert "not the password" not in answer.text

    def test_an_unknown_email_gets_the_same_answer(self, client: FlaskClient, make_user_with_password: Person) -> None:
        make_user_with_password("admin")
        answers = [post_sign_in(client, email, "nonono") for email in ("admin@example.com", "xdmin@example.com")]
        assert answers[0].text == answers[1].text.replace("xdmin", "admin")

    def test_one_comes_back_to_where_one_wanted_to_go(
        self, client: FlaskClient, make_user_with_password: Person
    ) -> None:
        asked = client.get("/settings/profile")
        answer = client.post(asked.location, data={"email": make_user_with_password().email, "password": PASSWORD})
        assert answer.location == "/settings/profile"

    @pytest.mark.parametrize(
        "goal", ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "evil", "", None]
    )
    def test_never_to_somebody_elses_page(self, app: Flask, goal: str | None) -> None:
        with app.test_request_context():
            assert safe_redirect_path(goal) == "/"

    def test_the_session_is_a_new_one(self, client: FlaskClient, make_user_with_password: Person) -> None:
        with client.session_transaction() as session:
            session["planted"] = "by somebody else"
        post_sign_in(client, make_user_with_password().email)
        with client.session_transaction() as session:
            assert "planted" not in session

    def test_without_a_token_nothing_happens(self, csrf_client: FlaskClient, make_user_with_password: Person) -> None:
        answer = post_sign_in(csrf_client, make_user_with_password().email)
        assert answer.status_code == 400
        assert not is_signed_in(csrf_client)

    def test_with_the_token_of_the_page_it_works(
        self, csrf_client: FlaskClient, make_user_with_password: Person
    ) -> None:
        token = token_in(csrf_client.get("/sign-in"))
        csrf_client.post(
            "/sign-in", data={"email": make_user_with_password().email, "password": PASSWORD, "csrf_token": token}
        )
        assert is_signed_in(csrf_client)

    def test_signing_out_ends_the_session(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        assert client.post("/sign-out").location == "/sign-in"
        assert not is_signed_in(client)

    def test_who_is_disabled_is_out_at_once(self, app: Flask, sign_in: SignIn, make_staff_user: Person) -> None:
        client = sign_in("viewer")
        make_staff_user("admin")
        account_actions.disable_staff_user(
            db.session.scalars(select(StaffUser.id).where(StaffUser.role == "viewer")).one(), by="tests"
        )
        assert not is_signed_in(client)

    def test_a_session_of_an_older_version_is_over(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        account_actions.end_staff_sessions(db.session.scalars(select(StaffUser.id)).one(), by="tests")
        assert not is_signed_in(client)

    @pytest.mark.parametrize("forged", ["", "1", "x.y", "1.", "²._"])
    def test_a_session_that_makes_no_sense_is_nobodys(self, client: FlaskClient, forged: str) -> None:
        with client.session_transaction() as session:
            session["_user_id"] = forged
        assert not is_signed_in(client)


class TestInvitations:
    def test_looking_consumes_nothing(self, client: FlaskClient, make_invitation_token: Callable[..., str]) -> None:
        address = f"/invitations/{make_invitation_token(email='ann@example.com')}"
        for _ in range(2):
            answer = client.get(address)
            assert (answer.status_code, "ann@example.com" in answer.text) == (200, True)
        assert client.post(address, data=JOIN).status_code == 302

    def test_one_is_signed_in_with_the_new_password(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        client.post(f"/invitations/{make_invitation_token('viewer')}", data=JOIN)
        assert "Ann Example" in client.get("/settings/profile").text

    @pytest.mark.parametrize(
        "wrong",
        [
            {"password": "short", "confirm": "short"},
            {"confirm": "something else"},
            {"name": " \u200b "},
            {"email": "no address"},
            {"time_zone": "Mars/Olympus"},
        ],
    )
    def test_what_can_not_be_taken_is_said_and_the_rest_is_kept(
        self, client: FlaskClient, make_invitation_token: Callable[..., str], wrong: dict[str, str]
    ) -> None:
        answer = client.post(f"/invitations/{make_invitation_token()}", data={**JOIN, **wrong})
        assert answer.status_code == 422
        assert ('value="ann@example.com"' in answer.text) or "email" in wrong
        assert "invalid-feedback" in answer.text
        assert db.session.scalar(select(Invitation.used_at)) is None

    def test_a_used_one_says_how_to_get_another(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        address = f"/invitations/{make_invitation_token()}"
        client.post(address, data=JOIN)
        for answer in (client.get(address), client.post(address, data=JOIN)):
            assert answer.status_code == 404
            assert "flask --app wsgi invite" in answer.text

    def test_an_unknown_one_too(self, client: FlaskClient) -> None:
        assert "flask --app wsgi invite" in client.get("/invitations/nonsense").text

    def test_the_page_does_not_pass_its_address_on(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        headers = client.get(f"/invitations/{make_invitation_token()}").headers
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("same-origin", "no-store")

    def test_a_link_to_a_new_password_sets_it(self, client: FlaskClient, make_user_with_password: Person) -> None:
        user = make_user_with_password()
        account_actions.sign_in_user(user.email, PASSWORD)
        link = account_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
        page = client.get(link).text
        assert "admin@example.com" in page
        assert "Choose a new password" in page
        assert "It signs you out on all other devices." in page
        new = {"password": "a brand new one", "confirm": "a brand new one"}
        assert client.post(link, data=new).location == "/"
        assert "Your new password is set." in client.get("/").text

    def test_a_link_for_somebody_who_never_signed_in_speaks_of_nothing_before(
        self, client: FlaskClient, make_user_with_password: Person
    ) -> None:
        user = make_user_with_password()
        link = account_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
        page = client.get(link).text
        assert f"Welcome, {user.name}" in page
        assert "Choose your password" in page
        new = {"password": "a brand new one", "confirm": "a brand new one"}
        assert client.post(link, data=new).location == "/"
        first = client.get("/").text
        assert f"Welcome, {user.name}." in first
        assert "new password" not in (page + first).lower()


class TestPeople:
    def test_the_link_is_shown_once(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        answer = client.post("/settings/people", data={"role": "viewer", "email": "new@example.com"})
        assert answer.status_code == 200
        link = link_in(answer)
        assert link not in client.get("/settings/people").text
        assert "new@example.com" in client.get(link).text

    def test_an_email_that_is_none_is_said_at_the_field(self, sign_in: SignIn) -> None:
        answer = sign_in("admin").post("/settings/people", data={"role": "viewer", "email": "no address"})
        assert answer.status_code == 422
        assert 'value="no address"' in answer.text

    def test_an_invitation_can_be_withdrawn(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        link = link_in(client.post("/settings/people", data={"role": "viewer"}))
        number = db.session.scalars(select(Invitation.id)).one()
        client.post(f"/settings/invitations/{number}/withdraw")
        assert client.get(link).status_code == 404

    def test_a_role_is_changed(self, sign_in: SignIn, make_staff_user: Person) -> None:
        user = make_staff_user("viewer")
        client = sign_in("admin")
        answer = client.post(f"/settings/people/{user.id}", data={"role": "manager"})
        assert answer.status_code == 302
        assert db.session.scalar(select(StaffUser.role).where(StaffUser.email == "viewer@example.com")) == "manager"

    def test_the_last_admin_stays_admin_and_reads_why(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        number = db.session.scalars(select(StaffUser.id)).one()
        answer = client.post(f"/settings/people/{number}", data={"role": "viewer"})
        assert (answer.status_code, "last active administrator" in answer.text) == (422, True)
        assert (
            "last active administrator" in client.post(f"/settings/people/{number}/disable", follow_redirects=True).text
        )

    def test_an_admin_who_steps_down_is_not_sent_to_a_page_they_may_not_see(
        self, sign_in: SignIn, make_staff_user: Person
    ) -> None:
        make_staff_user("admin", email="other@example.com")
        client = sign_in("admin")
        number = db.session.scalars(select(StaffUser.id).where(StaffUser.email == "admin@example.com")).one()
        answer = client.post(f"/settings/people/{number}", data={"role": "viewer"}, follow_redirects=True)
        assert (answer.status_code, answer.request.path) == (200, "/settings/profile")

    def test_somebody_is_disabled_and_enabled(self, sign_in: SignIn, make_staff_user: Person) -> None:
        number = make_staff_user("viewer").id
        client = sign_in("admin")
        assert "can no longer sign in" in client.post(f"/settings/people/{number}/disable", follow_redirects=True).text
        assert "can sign in again" in client.post(f"/settings/people/{number}/enable", follow_redirects=True).text

    def test_a_link_to_a_new_password_is_shown(self, sign_in: SignIn, make_staff_user: Person) -> None:
        number = make_staff_user("viewer").id
        client = sign_in("admin")
        assert client.get(link_in(client.post(f"/settings/people/{number}/new-password"))).status_code == 200

    @pytest.mark.parametrize("number", ["4711", "9" * 30])
    def test_nobody_is_a_page_that_says_so(self, sign_in: SignIn, number: str) -> None:
        assert sign_in("admin").get(f"/settings/people/{number}").status_code == 404

    def test_a_name_with_markup_is_only_text(self, sign_in: SignIn, make_staff_user: Person) -> None:
        user = make_staff_user("viewer")
        user.name = "<script>alert(1)</script>"
        db.session.commit()
        page = sign_in("admin").get("/settings/people").text
        assert "<script>alert" not in page


class TestKeys:
    def test_the_key_is_shown_once(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        answer = client.post("/settings/api-keys", data={"name": "Web shop", "scopes": ["read", "redeem"]})
        found = re.search(r"onecode_live_\w+_[\w-]+", answer.text)
        assert found
        assert api_key_actions.authenticate_api_key(f"Bearer {found[0]}").scopes == ["read", "redeem"]
        assert found[0] not in client.get("/settings/api-keys").text

    def test_it_ends_with_its_last_day_on_the_admins_clock(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        user = db.session.scalars(select(StaffUser)).one()
        user.time_zone = "Asia/Tokyo"
        db.session.commit()
        day = (datetime.now(UTC) + timedelta(days=10)).date()
        client.post("/settings/api-keys", data={"name": "A", "scopes": ["read"], "expires_on": day.isoformat()})
        assert db.session.scalar(select(ApiKey.expires_at)) == datetime(day.year, day.month, day.day, 15, tzinfo=UTC)

    @pytest.mark.parametrize(
        "values", [{"name": "", "scopes": "read"}, {"name": "A"}, {"name": "A", "scopes": "all"},
                   {"name": "A", "scopes": "read", "expires_on": "2001-01-01"},
                   {"name": "A", "scopes": "read", "expires_on": "9999-12-31"},
                   {"name": "A", "scopes": "read", "expires_on": "soon"}],
    )  # fmt: skip
    def test_what_makes_no_sense_is_said_at_the_field(self, sign_in: SignIn, values: dict[str, str]) -> None:
        answer = sign_in("admin").post("/settings/api-keys", data=values)
        assert (answer.status_code, "invalid-feedback" in answer.text) == (422, True)
        assert not db.session.scalar(select(func.count()).select_from(ApiKey))

    def test_a_revoked_key_is_refused(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        client.post("/settings/api-keys", data={"name": "Web shop", "scopes": "read"})
        client.post(f"/settings/api-keys/{db.session.scalars(select(ApiKey.id)).one()}/revoke")
        assert db.session.scalar(select(ApiKey.revoked_at))


class TestTrail:
    def test_one_walks_through_it_in_both_directions(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        for number in range(1, 121):
            audit.record_audit_entry("ann", "something.done", f"thing {number:03}")
        db.session.commit()
        first = client.get("/settings/audit").text
        second_at = re.search(r'rel="next" href="([^"]+)"', first)
        assert second_at
        second = client.get(second_at[1]).text
        back_at = re.search(r'rel="prev" href="([^"]+)"', second)
        assert back_at
        shown = [re.findall(r"thing (\d+)", page) for page in (first, second, client.get(back_at[1]).text)]
        assert [(page[0], page[-1]) for page in shown] == [("120", "071"), ("070", "021"), ("120", "071")]

    def test_a_place_that_makes_no_sense_is_the_first_page(self, sign_in: SignIn) -> None:
        assert sign_in("admin").get(f"/settings/audit?before={'9' * 40}").status_code == 200


class TestProfile:
    def test_name_and_zone_are_changed(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        client.post("/settings/profile", data={"name": "Vi", "time_zone": "Asia/Tokyo"})
        user = db.session.scalars(select(StaffUser)).one()
        assert (user.name, user.time_zone) == ("Vi", "Asia/Tokyo")

    def test_a_new_password_ends_the_other_sessions_and_keeps_this_one(
        self, app: Flask, make_user_with_password: Person
    ) -> None:
        user = make_user_with_password("viewer")
        app.config["WTF_CSRF_ENABLED"] = False
        here, there = app.test_client(), app.test_client()
        for client in (here, there):
            post_sign_in(client, user.email)
        here.post(
            "/settings/profile/password",
            data={"current": PASSWORD, "password": "a brand new one", "confirm": "a brand new one"},
        )
        assert (is_signed_in(here), is_signed_in(there)) == (True, False)

    def test_the_current_password_must_be_right(self, client: FlaskClient, make_user_with_password: Person) -> None:
        post_sign_in(client, make_user_with_password("viewer").email)
        answer = client.post(
            "/settings/profile/password",
            data={"current": "wrong wrong", "password": "a brand new one", "confirm": "a brand new one"},
        )
        assert (answer.status_code, "not your current password" in answer.text) == (422, True)

    def test_a_write_needs_the_token_of_the_page(
        self, csrf_client: FlaskClient, make_user_with_password: Person
    ) -> None:
        token = token_in(csrf_client.get("/sign-in"))
        csrf_client.post(
            "/sign-in", data={"email": make_user_with_password().email, "password": PASSWORD, "csrf_token": token}
        )
        values = {"name": "Mallory", "time_zone": "UTC"}
        assert csrf_client.post("/settings/profile", data=values).status_code == 400
        token = token_in(csrf_client.get("/settings/profile"))
        assert csrf_client.post("/settings/profile", data={**values, "csrf_token": token}).status_code == 302


ADMIN_ONLY = [
    ("GET", "/settings/people"),
    ("POST", "/settings/people"),
    ("GET", "/settings/people/1"),
    ("POST", "/settings/people/1"),
    ("POST", "/settings/people/1/disable"),
    ("POST", "/settings/people/1/enable"),
    ("POST", "/settings/people/1/end-sessions"),
    ("POST", "/settings/people/1/new-password"),
    ("POST", "/settings/invitations/1/withdraw"),
    ("GET", "/settings/api-keys"),
    ("POST", "/settings/api-keys"),
    ("POST", "/settings/api-keys/1/revoke"),
    ("GET", "/settings/audit"),
]


class TestRoles:
    @pytest.mark.parametrize("role", ["manager", "viewer"])
    @pytest.mark.parametrize(("method", "path"), ADMIN_ONLY)
    def test_only_admins_administer(self, sign_in: SignIn, role: str, method: str, path: str) -> None:
        assert sign_in(role).open(path, method=method).status_code == 403
        assert not db.session.scalar(select(func.count()).select_from(AuditEntry))

    @pytest.mark.parametrize(("method", "path"), [*ADMIN_ONLY, ("GET", "/settings/profile"), ("GET", "/")])
    def test_nobody_gets_in_without_signing_in(self, client: FlaskClient, method: str, path: str) -> None:
        assert "/sign-in" in client.open(path, method=method).location

    def test_every_staff_page_is_for_viewers_at_least_and_every_write_for_managers(
        self, app: Flask, sign_in: SignIn
    ) -> None:
        client = sign_in("viewer")
        writes = {
            rule.rule
            for rule in app.url_map.iter_rules()
            if rule.endpoint.startswith("staff.")
            and (rule.methods or set()) & {"POST", "PUT", "PATCH", "DELETE"}
            and not getattr(app.view_functions[rule.endpoint], "is_login_exempt", False)
            and getattr(app.view_functions[rule.endpoint], "required_role", "") != "viewer"
        }
        for rule in writes:
            path = re.sub(r"<[^>]*>", "1", rule)
            assert client.post(path).status_code == 403, rule

    @pytest.mark.parametrize(("role", "place"), [("admin", "people"), ("manager", "profile"), ("viewer", "profile")])
    def test_the_settings_start_with_what_one_may_see(self, sign_in: SignIn, role: str, place: str) -> None:
        client = sign_in(role)
        assert client.get("/settings").location == f"/settings/{place}"
        assert ("/settings/audit" in client.get(f"/settings/{place}").text) == (role == "admin")
