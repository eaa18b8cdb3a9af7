"""Staff pages for signing in, invitations and settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_wtf import FlaskForm
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from tests.support.accounts import PASSWORD
from webapp.accounts import actions as account_actions
from webapp.accounts import api_key_actions, invitation_actions
from webapp.accounts.models import ApiKey, AuditEntry, Invitation, StaffUser
from webapp.core.extensions import db
from webapp.views.form_base import PostForm
from webapp.views.staff.sign_in import safe_redirect_path

MakeUser = Callable[..., StaffUser]
SignIn = Callable[..., FlaskClient]

JOIN = {
    "name": "Ann Example",
    "email": "ann@example.com",
    "password": PASSWORD,
    "confirm": PASSWORD,
    "time_zone": "Europe/Berlin",
}


def post_sign_in(client: FlaskClient, email: str, password: str = PASSWORD, query: str = "") -> TestResponse:
    return client.post(f"/sign-in{query}", data={"email": email, "password": password})


def csrf_token_in(response: TestResponse) -> str:
    """The CSRF token of the first form of a page."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', response.text)
    assert found
    return found[1]


def form_token_in(response: TestResponse) -> str:
    """The token of the form of a page that creates a secret."""
    found = re.search(r'name="form_token"[^>]*value="([^"]+)"', response.text)
    assert found
    return found[1]


def count(model: type[ApiKey | Invitation]) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def invitation_link_in(response: TestResponse) -> str:
    found = re.search(r"/invitations/[\w-]+", response.text)
    assert found
    return found[0]


def is_signed_in(client: FlaskClient) -> bool:
    return client.get("/settings/profile").status_code == 200


def test_forms_are_not_read_from_json(client: FlaskClient, make_user_with_password: MakeUser) -> None:
    make_user_with_password()

    responses = [
        client.post("/sign-in", json={"email": "admin@example.com", "password": PASSWORD}),
        client.post("/sign-in", json=["email"]),
        client.post("/sign-in", data="{", content_type="application/json"),
    ]

    assert [response.status_code for response in responses] == [422, 422, 422]
    assert not is_signed_in(client)


def test_every_form_with_post_is_read_from_form_bodies_only() -> None:
    assert FlaskForm.__subclasses__() == [PostForm]


class TestSignInPage:
    def test_the_right_password_opens_the_start_page(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        response = post_sign_in(client, make_user_with_password().email)
        assert (response.status_code, response.location) == (302, "/")
        assert is_signed_in(client)

    def test_after_a_wrong_password_only_the_email_stays_in_the_form(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        response = post_sign_in(client, make_user_with_password().email, "not the password")
        assert response.status_code == 422
        assert "admin@example.com" in response.text
        assert "not the password" not in response.text

    def test_an_unknown_email_gets_the_same_response(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password("admin")
        known, unknown = (post_sign_in(client, email, "nonono") for email in ("admin@example.com", "xdmin@example.com"))
        # Tokens hold the second in which they were made.
        pages = [response.text.replace(csrf_token_in(response), "") for response in (known, unknown)]
        assert pages[0] == pages[1].replace("xdmin", "admin")

    def test_signing_in_leads_to_the_requested_page(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        redirect = client.get("/settings/profile")
        response = client.post(redirect.location, data={"email": make_user_with_password().email, "password": PASSWORD})
        assert response.location == "/settings/profile"

    @pytest.mark.parametrize(
        "target", ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "evil", "", None]
    )
    def test_redirects_to_other_sites_are_refused(self, app: Flask, target: str | None) -> None:
        with app.test_request_context():
            assert safe_redirect_path(target) == "/"

    def test_signing_in_starts_a_new_session(self, client: FlaskClient, make_user_with_password: MakeUser) -> None:
        with client.session_transaction() as session:
            session["planted"] = "by an attacker"
        post_sign_in(client, make_user_with_password().email)
        with client.session_transaction() as session:
            assert "planted" not in session

    def test_signing_in_without_a_csrf_token_is_refused(
        self, csrf_client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        response = post_sign_in(csrf_client, make_user_with_password().email)
        assert response.status_code == 400
        assert not is_signed_in(csrf_client)

    def test_signing_in_with_the_csrf_token_of_the_page_works(
        self, csrf_client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        token = csrf_token_in(csrf_client.get("/sign-in"))
        csrf_client.post(
            "/sign-in", data={"email": make_user_with_password().email, "password": PASSWORD, "csrf_token": token}
        )
        assert is_signed_in(csrf_client)

    def test_signing_out_ends_the_session(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        assert client.post("/sign-out").location == "/sign-in#signed-out"
        assert not is_signed_in(client)

    def test_a_disabled_user_is_signed_out_at_once(
        self, app: Flask, sign_in: SignIn, make_staff_user: MakeUser
    ) -> None:
        client = sign_in("viewer")
        make_staff_user("admin")
        account_actions.disable_staff_user(
            db.session.scalars(select(StaffUser.id).where(StaffUser.role == "viewer")).one(), by="tests"
        )
        assert not is_signed_in(client)

    def test_an_ended_session_is_invalid(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        account_actions.end_staff_sessions(db.session.scalars(select(StaffUser.id)).one(), by="tests")
        assert not is_signed_in(client)

    @pytest.mark.parametrize("forged", ["", "1", "x.y", "1.", "²._"])
    def test_a_forged_session_is_not_signed_in(self, client: FlaskClient, forged: str) -> None:
        with client.session_transaction() as session:
            session["_user_id"] = forged
        assert not is_signed_in(client)


class TestInvitationPages:
    def test_opening_an_invitation_does_not_use_it(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        url = f"/invitations/{make_invitation_token(email='ann@example.com')}"
        for _ in range(2):
            response = client.get(url)
            assert (response.status_code, "ann@example.com" in response.text) == (200, True)
        assert client.post(url, data=JOIN).status_code == 302

    def test_accepting_an_invitation_signs_in(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        client.post(f"/invitations/{make_invitation_token('viewer')}", data=JOIN)
        assert "Ann Example" in client.get("/settings/profile").text

    @pytest.mark.parametrize(
        "invalid",
        [
            {"password": "short", "confirm": "short"},
            {"password": "Ann Example 1", "confirm": "Ann Example 1"},
            {"confirm": "something else"},
            {"name": " \u200b "},
            {"email": "no address"},
            {"time_zone": "Mars/Olympus"},
        ],
    )
    def test_invalid_input_is_reported_and_the_rest_kept(
        self, client: FlaskClient, make_invitation_token: Callable[..., str], invalid: dict[str, str]
    ) -> None:
        response = client.post(f"/invitations/{make_invitation_token()}", data={**JOIN, **invalid})
        assert response.status_code == 422
        assert ('value="ann@example.com"' in response.text) or "email" in invalid
        assert "invalid-feedback" in response.text
        assert (f'id="{next(iter(invalid))}-error"') in response.text
        assert db.session.scalar(select(Invitation.used_at)) is None

    def test_a_used_invitation_explains_how_to_get_another(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        url = f"/invitations/{make_invitation_token()}"
        client.post(url, data=JOIN)
        for response in (client.get(url), client.post(url, data=JOIN)):
            assert response.status_code == 404
            assert ".venv/bin/flask --app wsgi invite" in response.text

    def test_an_unknown_invitation_explains_how_to_get_one(self, client: FlaskClient) -> None:
        assert ".venv/bin/flask --app wsgi invite" in client.get("/invitations/nonsense").text

    def test_the_invitation_page_is_neither_cached_nor_sent_as_referrer(
        self, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        headers = client.get(f"/invitations/{make_invitation_token()}").headers
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("same-origin", "no-store")

    def test_a_password_reset_link_sets_the_password(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password()
        user.last_sign_in_at = user.created_at
        db.session.commit()
        link = invitation_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
        page = client.get(link).text
        assert "admin@example.com" in page
        assert "Choose a new password" in page
        assert "Setting it signs you out on all other devices." in page
        new = {"password": "a brand new one", "confirm": "a brand new one"}
        assert client.post(link, data=new).location == "/"
        assert "Your new password was set." in client.get("/").text

    def test_a_weak_password_is_reported_and_the_reset_link_still_works(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password()
        link = invitation_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
        response = client.post(link, data={"password": "password123", "confirm": "password123"})
        assert (response.status_code, 'id="password-error"' in response.text) == (422, True)
        assert "password123" not in response.text
        assert client.post(link, data={"password": "a brand new one", "confirm": "a brand new one"}).location == "/"

    def test_a_password_link_for_a_new_user_is_a_welcome(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password()
        link = invitation_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
        page = client.get(link).text
        assert f"Welcome, {user.name}" in page
        assert "Choose your password" in page
        new = {"password": "a brand new one", "confirm": "a brand new one"}
        assert client.post(link, data=new).location == "/"
        first = client.get("/").text
        assert f"Welcome, {user.name}." in first
        assert "new password" not in (page + first).lower()


class TestPeople:
    def test_the_invitation_link_is_shown_once(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        response = client.post("/settings/people", data={"role": "viewer", "email": "new@example.com"})
        assert response.status_code == 200
        link = invitation_link_in(response)
        assert link not in client.get("/settings/people").text
        assert "new@example.com" in client.get(link).text

    def test_reloading_the_page_with_the_link_creates_no_other_link(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        token = form_token_in(client.get("/settings/people"))
        response = client.post("/settings/people", data={"role": "viewer", "form_token": token})
        link = invitation_link_in(response)
        reloaded = client.post("/settings/people", data={"role": "viewer", "form_token": token}, follow_redirects=True)
        assert "This link was already created" in reloaded.text
        assert link not in reloaded.text
        assert count(Invitation) == 1
        client.post("/settings/people", data={"role": "viewer", "form_token": form_token_in(response)})
        assert count(Invitation) == 2

    def test_a_form_that_created_no_link_can_be_corrected(
        self, sign_in: SignIn, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password("viewer")
        client = sign_in("admin")
        values = {"role": "viewer", "form_token": form_token_in(client.get("/settings/people"))}
        for _ in range(2):
            response = client.post("/settings/people", data={**values, "email": "viewer@example.com"})
            assert "A user with this email address already exists" in response.text
        response = client.post("/settings/people", data={**values, "email": "new@example.com"})
        assert invitation_link_in(response)

    def test_an_invalid_email_is_reported_at_its_field(self, sign_in: SignIn) -> None:
        response = sign_in("admin").post("/settings/people", data={"role": "viewer", "email": "no address"})
        assert response.status_code == 422
        assert 'value="no address"' in response.text

    def test_an_invitation_can_be_withdrawn(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        link = invitation_link_in(client.post("/settings/people", data={"role": "viewer"}))
        row_id = db.session.scalars(select(Invitation.id)).one()
        client.post(f"/settings/invitations/{row_id}/withdraw")
        assert client.get(link).status_code == 404

    def test_a_role_is_changed(self, sign_in: SignIn, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        client = sign_in("admin")
        response = client.post(f"/settings/people/{user.id}", data={"role": "manager"})
        assert response.status_code == 302
        assert db.session.scalar(select(StaffUser.role).where(StaffUser.email == "viewer@example.com")) == "manager"

    def test_the_last_admin_cannot_be_demoted_or_disabled(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        row_id = db.session.scalars(select(StaffUser.id)).one()
        response = client.post(f"/settings/people/{row_id}", data={"role": "viewer"})
        assert (response.status_code, "last active administrator" in response.text) == (422, True)
        assert (
            "last active administrator" in client.post(f"/settings/people/{row_id}/disable", follow_redirects=True).text
        )

    def test_an_admin_who_becomes_viewer_is_redirected_to_the_profile(
        self, sign_in: SignIn, make_staff_user: MakeUser
    ) -> None:
        make_staff_user("admin", email="other@example.com")
        client = sign_in("admin")
        row_id = db.session.scalars(select(StaffUser.id).where(StaffUser.email == "admin@example.com")).one()
        response = client.post(f"/settings/people/{row_id}", data={"role": "viewer"}, follow_redirects=True)
        assert (response.status_code, response.request.path) == (200, "/settings/profile")

    def test_a_user_is_disabled_and_enabled(self, sign_in: SignIn, make_staff_user: MakeUser) -> None:
        row_id = make_staff_user("viewer").id
        client = sign_in("admin")
        assert "can no longer sign in" in client.post(f"/settings/people/{row_id}/disable", follow_redirects=True).text
        assert "can sign in again" in client.post(f"/settings/people/{row_id}/enable", follow_redirects=True).text

    def test_a_password_reset_link_is_shown(self, sign_in: SignIn, make_staff_user: MakeUser) -> None:
        row_id = make_staff_user("viewer").id
        client = sign_in("admin")
        assert client.get(invitation_link_in(client.post(f"/settings/people/{row_id}/new-password"))).status_code == 200

    def test_reloading_the_page_with_a_password_reset_link_keeps_that_link(
        self, sign_in: SignIn, make_staff_user: MakeUser
    ) -> None:
        user_page = f"/settings/people/{make_staff_user('viewer').id}"
        client = sign_in("admin")
        form = {"form_token": form_token_in(client.get(user_page))}
        link = invitation_link_in(client.post(f"{user_page}/new-password", data=form))
        reloaded = client.post(f"{user_page}/new-password", data=form, follow_redirects=True)
        assert "This link was already created" in reloaded.text
        assert client.get(link).status_code == 200

    def test_a_refused_password_reset_link_can_be_requested_again(
        self, sign_in: SignIn, make_staff_user: MakeUser
    ) -> None:
        client, user = sign_in("admin"), make_staff_user("viewer")
        form = {"form_token": form_token_in(client.get(f"/settings/people/{user.id}"))}
        account_actions.disable_staff_user(user.id, by="tests")
        url = f"/settings/people/{user.id}/new-password"
        assert client.post(url, data=form).status_code == 302
        account_actions.enable_staff_user(user.id, by="tests")

        assert "/invitations/" in client.post(url, data=form).text

    @pytest.mark.parametrize("user_id", ["4711", "9" * 30])
    def test_an_unknown_user_is_not_found(self, sign_in: SignIn, user_id: str) -> None:
        assert sign_in("admin").get(f"/settings/people/{user_id}").status_code == 404

    def test_markup_in_a_name_is_escaped(self, sign_in: SignIn, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        user.name = "<script>alert(1)</script>"
        db.session.commit()
        page = sign_in("admin").get("/settings/people").text
        assert "<script>alert" not in page


class TestApiKeyPages:
    def test_the_key_is_shown_once(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        response = client.post("/settings/api-keys", data={"name": "Web shop", "scopes": ["read", "redeem"]})
        found = re.search(r"onecode_live_\w+_[\w-]+", response.text)
        assert found
        assert api_key_actions.authenticate_api_key(f"Bearer {found[0]}").scopes == ["read", "redeem"]
        assert found[0] not in client.get("/settings/api-keys").text

    def test_reloading_the_page_with_the_key_creates_no_other_key(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        form = {"name": "Till", "scopes": "read", "form_token": form_token_in(client.get("/settings/api-keys"))}
        key = re.search(r"onecode_live_\w+_[\w-]+", client.post("/settings/api-keys", data=form).text)
        assert key
        reloaded = client.post("/settings/api-keys", data=form, follow_redirects=True)
        assert "This key was already created" in reloaded.text
        assert key[0] not in reloaded.text
        assert count(ApiKey) == 1

    def test_a_key_expires_at_the_end_of_the_day_in_the_admins_time_zone(self, sign_in: SignIn) -> None:
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
    def test_invalid_input_is_reported_at_its_field(self, sign_in: SignIn, values: dict[str, str]) -> None:
        response = sign_in("admin").post("/settings/api-keys", data=values)
        assert (response.status_code, "invalid-feedback" in response.text) == (422, True)
        assert not db.session.scalar(select(func.count()).select_from(ApiKey))

    def test_a_revoked_key_is_refused(self, sign_in: SignIn) -> None:
        client = sign_in("admin")
        client.post("/settings/api-keys", data={"name": "Web shop", "scopes": "read"})
        client.post(f"/settings/api-keys/{db.session.scalars(select(ApiKey.id)).one()}/revoke")
        assert db.session.scalar(select(ApiKey.revoked_at))


class TestProfile:
    def test_name_and_time_zone_are_changed(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        client.post("/settings/profile", data={"name": "Vi", "time_zone": "Asia/Tokyo"})
        user = db.session.scalars(select(StaffUser)).one()
        assert (user.name, user.time_zone) == ("Vi", "Asia/Tokyo")

    def test_a_new_password_ends_the_other_sessions_and_keeps_this_one(
        self, app: Flask, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password("viewer")
        app.config["WTF_CSRF_ENABLED"] = False
        this_client, other_client = app.test_client(), app.test_client()
        for client in (this_client, other_client):
            post_sign_in(client, user.email)
        this_client.post(
            "/settings/profile/password",
            data={"current": PASSWORD, "password": "a brand new one", "confirm": "a brand new one"},
        )
        assert (is_signed_in(this_client), is_signed_in(other_client)) == (True, False)

    def test_a_weak_new_password_is_reported_at_its_field(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password("viewer")
        post_sign_in(client, user.email)
        data = {"current": PASSWORD, "password": "1234567890", "confirm": "1234567890"}
        response = client.post("/settings/profile/password", data=data)
        assert (response.status_code, 'id="password-error"' in response.text) == (422, True)
        assert "This is a commonly used password." in response.text
        assert is_signed_in(client)

    def test_the_current_password_must_be_right(self, client: FlaskClient, make_user_with_password: MakeUser) -> None:
        post_sign_in(client, make_user_with_password("viewer").email)
        response = client.post(
            "/settings/profile/password",
            data={"current": "wrong wrong", "password": "a brand new one", "confirm": "a brand new one"},
        )
        assert (response.status_code, "not your current password" in response.text) == (422, True)

    def test_ten_wrong_passwords_are_the_limit_of_each_user(
        self, app: Flask, make_user_with_password: MakeUser
    ) -> None:
        app.config["WTF_CSRF_ENABLED"] = False
        here, other = app.test_client(), app.test_client()
        post_sign_in(here, make_user_with_password("viewer").email)
        post_sign_in(other, make_user_with_password("manager").email)
        data = {"current": "wrong wrong", "password": "a brand new one", "confirm": "a brand new one"}
        responses = [here.post("/settings/profile/password", data=data) for _ in range(11)]
        assert [response.status_code for response in responses] == [422] * 10 + [429]
        assert 0 < int(responses[-1].headers["Retry-After"]) <= 300
        assert other.post("/settings/profile/password", data=data).status_code == 422

    def test_changing_the_profile_needs_the_csrf_token(
        self, csrf_client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        token = csrf_token_in(csrf_client.get("/sign-in"))
        csrf_client.post(
            "/sign-in", data={"email": make_user_with_password().email, "password": PASSWORD, "csrf_token": token}
        )
        values = {"name": "Mallory", "time_zone": "UTC"}
        assert csrf_client.post("/settings/profile", data=values).status_code == 400
        token = csrf_token_in(csrf_client.get("/settings/profile"))
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
    ("GET", "/settings/audit.csv"),
    ("GET", "/settings/audit/access"),
    ("GET", "/settings/audit/access.csv"),
]


class TestRoles:
    @pytest.mark.parametrize("role", ["manager", "viewer"])
    @pytest.mark.parametrize(("method", "path"), ADMIN_ONLY)
    def test_administration_needs_an_admin(self, sign_in: SignIn, role: str, method: str, path: str) -> None:
        assert sign_in(role).open(path, method=method).status_code == 403
        assert not db.session.scalar(select(func.count()).select_from(AuditEntry))

    @pytest.mark.parametrize(("method", "path"), [*ADMIN_ONLY, ("GET", "/settings/profile"), ("GET", "/")])
    def test_every_page_needs_signing_in(self, client: FlaskClient, method: str, path: str) -> None:
        assert "/sign-in" in client.open(path, method=method).location

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_htmx_is_redirected_to_the_sign_in_page(self, client: FlaskClient, method: str) -> None:
        response = client.open("/offers/new", method=method, headers={"HX-Request": "true"})
        assert (response.status_code, response.headers["HX-Redirect"]) == (401, "/sign-in")

    def test_signing_in_after_a_rejected_write_leads_to_the_start_page(self, client: FlaskClient) -> None:
        assert client.get("/offers?q=a").location == "/sign-in?next=/offers?q%3Da"
        assert client.post("/settings/people/1/disable").location == "/sign-in"

    def test_only_these_pages_need_no_session(self, app: Flask) -> None:
        exempt = {
            name.rpartition(".")[2]
            for name, view in app.view_functions.items()
            if name.startswith("staff.") and getattr(view, "is_login_exempt", False)
        }
        # docs/accounts.md lists the ways to sign in.
        assert exempt == {
            "sign_in", "second_factor", "passkey_options", "sign_in_with_passkey", "sign_out",
            "invitation", "accept_with_identity", "request_password_reset", "password_reset_requested",
            "start_oidc_sign_in", "oidc_callback", "finish_oidc", "start_oidc_invitation",
        }  # fmt: skip

    def test_viewers_cannot_write(self, app: Flask, sign_in: SignIn) -> None:
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

    @pytest.mark.parametrize(("role", "section"), [("admin", "people"), ("manager", "profile"), ("viewer", "profile")])
    def test_the_settings_start_with_the_first_permitted_section(
        self, sign_in: SignIn, role: str, section: str
    ) -> None:
        client = sign_in(role)
        assert client.get("/settings").location == f"/settings/{section}"
        assert ("/settings/audit" in client.get(f"/settings/{section}").text) == (role == "admin")
