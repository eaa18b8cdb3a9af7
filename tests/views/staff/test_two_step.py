"""The settings pages of two-step verification: app, recovery codes, passkeys, and the reset by an administrator."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support.accounts import PASSWORD
from tests.support.authenticator import SoftwareAuthenticator
from tests.support.factors import add_app, add_passkey, code_now, submit_passkey_form
from tests.support.sessions import start_session
from webapp.accounts import audit_queries, session_queries
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors import recovery_code_actions
from webapp.accounts.models import StaffSession, StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc import queries as oidc_queries
from webapp.accounts.oidc.provider import OidcClaims
from webapp.core.extensions import db

PAGE = "/settings/profile/two-step"
CHANGES = [
    f"{PAGE}/app/start",
    f"{PAGE}/app",
    f"{PAGE}/app/remove",
    f"{PAGE}/recovery-codes",
    f"{PAGE}/passkeys/new",
    f"{PAGE}/passkeys",
    f"{PAGE}/passkeys/1/remove",
    f"{PAGE}/provider",
    f"{PAGE}/provider/link",
    f"{PAGE}/provider/unlink",
    "/settings/people/1/reset-second-factor",
    "/settings/people/1/unlink-identities",
]
SignIn = Callable[..., FlaskClient]


def user_of(role: str = "manager") -> StaffUser:
    return db.session.scalars(select(StaffUser).where(StaffUser.role == role)).one()


def set_times(**hours: int) -> None:
    """Set times of all sessions to some hours ago."""
    db.session.execute(update(StaffSession).values({k: func.now() - timedelta(hours=n) for k, n in hours.items()}))
    db.session.commit()


def cookie_of(client: FlaskClient) -> str:
    with client.session_transaction() as session:
        return str(session["_user_id"])


def codes_in(page: str) -> list[str]:
    return re.findall(r"<code>(\w{4}-\w{4}-\w{4})</code>", page)


def secret_in(page: str) -> str:
    return re.search(r'class="copy-text" dir="ltr">([A-Z2-7]+)<', page)[1]  # type: ignore[index]


def options_in(page: str) -> dict[str, Any]:
    options = re.search('data-passkey-create="([^"]*)"', page)
    assert options
    parsed: dict[str, Any] = json.loads(html.unescape(options[1]))
    return parsed


class TestApp:
    def test_an_app_is_set_up(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        assert "Two-step verification is off" in client.get(PAGE).text
        assert client.post(f"{PAGE}/app/start").location == f"{PAGE}/app"
        response = client.get(f"{PAGE}/app")
        assert response.headers["Cache-Control"] == "no-store"
        assert '<div class="qr"><svg' in response.text
        secret = secret_in(response.text)
        assert f"secret={secret}" in response.text
        page = client.post(f"{PAGE}/app", data={"code": code_now(secret)}).text
        codes = codes_in(page)
        assert len(codes) == 10
        download = re.search('href="data:text/plain;charset=utf-8,([^"]*)"', page)
        assert download
        assert set(codes) <= set(unquote(download[1]).split("\n"))
        assert "Two-step verification is on" in client.get(PAGE).text
        assert "10 unused codes are left." in client.get(PAGE).text
        assert not set(codes) & set(codes_in(client.get(PAGE).text))

    def test_a_wrong_code_is_reported_at_its_field(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        secret = secret_in(client.get(f"{PAGE}/app").text)
        response = client.post(f"{PAGE}/app", data={"code": "000000x"})
        assert response.status_code == 422
        assert "This code is wrong or has expired." in response.text
        assert secret_in(response.text) == secret
        assert client.post(f"{PAGE}/app", data={}).status_code == 422

    def test_sending_the_confirmation_again_starts_no_other_set_up(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        code = code_now(secret_in(client.get(f"{PAGE}/app").text))
        client.post(f"{PAGE}/app", data={"code": code})
        response = client.post(f"{PAGE}/app", data={"code": code})
        assert (response.status_code, response.location) == (302, PAGE)
        page = client.get(PAGE).text
        assert "The authenticator app is already set up. Recovery codes are shown only once:" in page
        assert codes_in(page) == []
        assert factor_queries.find_pending_totp_authenticator(user_of("viewer").id) is None

    def test_the_secret_is_shown_only_after_the_password(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        set_times(authenticated_at=1)
        assert client.get(f"{PAGE}/app").location == PAGE
        assert "Confirm your password" in client.post(f"{PAGE}/app/start").text

    def test_another_session_gets_another_secret(
        self, app: Flask, sign_in: SignIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = sign_in("viewer")
        secret = secret_in(client.get(f"{PAGE}/app").text)
        other = app.test_client()
        start_session(other, user_of("viewer"))
        other_secret = secret_in(other.get(f"{PAGE}/app").text)
        assert other_secret != secret
        response = client.post(f"{PAGE}/app", data={"code": code_now(secret)})
        assert "The set-up has changed. Scan the new QR code." in response.text
        assert secret_in(response.text) not in (secret, other_secret)
        # Nothing is wrong with the secret key.
        assert not [record for record in caplog.records if "cannot be decrypted" in record.getMessage()]

    def test_starting_the_setup_again_replaces_the_secret(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        secret = secret_in(client.get(f"{PAGE}/app").text)
        assert secret_in(client.get(f"{PAGE}/app").text) == secret
        client.post(f"{PAGE}/app/start")
        assert secret_in(client.get(f"{PAGE}/app").text) != secret

    def test_an_app_is_removed(self, sign_in: SignIn) -> None:
        client = sign_in("manager")
        add_app(user_of())
        set_times(second_factor_at=0)
        assert client.post(f"{PAGE}/app/remove").location == PAGE
        assert "The authenticator app was removed." in client.get(PAGE).text
        assert not factor_queries.has_second_factor(user_of().id)

    def test_the_last_factor_stays_if_the_role_requires_it(
        self, sign_in: SignIn, with_settings: Callable[..., object]
    ) -> None:
        client = sign_in("manager")
        add_app(user_of())
        set_times(second_factor_at=0)
        with_settings(second_factor_roles=("manager",))
        client.post(f"{PAGE}/app/remove")
        assert "Your role requires a second factor." in client.get(PAGE).text


class TestRecoveryCodes:
    def test_new_codes_are_shown_once_and_replace_the_old_ones(self, sign_in: SignIn) -> None:
        client = sign_in("manager")
        _, old = add_app(user_of())
        set_times(second_factor_at=0)
        token = re.search('name="form_token"[^>]*value="([^"]+)"', client.get(PAGE).text)
        assert token
        values = {"form_token": token[1]}
        codes = codes_in(client.post(f"{PAGE}/recovery-codes", data=values).text)
        assert len(codes) == 10
        assert not set(codes) & set(old)
        assert client.post(f"{PAGE}/recovery-codes", data=values).location == PAGE
        assert recovery_code_actions.use_recovery_code(user_of().id, codes[0]) == 9

    def test_without_a_factor_there_are_none(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        assert client.post(f"{PAGE}/recovery-codes").location == PAGE
        assert factor_queries.load_factor_overview(user_of("viewer").id).recovery_codes_left == 0


class TestPasskeys:
    def add(self, client: FlaskClient, authenticator: SoftwareAuthenticator, name: str = "Laptop") -> str:
        options = options_in(client.post(f"{PAGE}/passkeys/new", data={"name": name}).text)
        values = {"name": name, "credential": authenticator.create(options)}
        return client.post(f"{PAGE}/passkeys", data=values, follow_redirects=True).text

    def test_a_passkey_is_added_and_removed(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        assert len(codes_in(self.add(client, SoftwareAuthenticator(), "Laptop <1>"))) == 10
        page = client.get(PAGE).text
        assert "Laptop &lt;1&gt;" in page
        [passkey] = factor_queries.list_passkeys(user_of("viewer").id)
        client.post(f"{PAGE}/passkeys/{passkey.id}/remove")
        assert "was removed" in client.get(PAGE).text
        assert not factor_queries.has_second_factor(user_of("viewer").id)

    def test_a_response_of_another_origin_adds_nothing(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        page = self.add(client, SoftwareAuthenticator(origin="https://evil.example"))
        assert "could not be verified" in page
        assert not factor_queries.has_second_factor(user_of("viewer").id)

    def test_a_name_is_required(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        for name in ("", "x" * 61, "\x00"):
            assert client.post(f"{PAGE}/passkeys/new", data={"name": name}).status_code in (400, 422)

    def test_the_passkeys_of_others_cannot_be_removed(
        self, sign_in: SignIn, make_staff_user: Callable[..., StaffUser]
    ) -> None:
        other = make_staff_user("admin")
        add_passkey(other, SoftwareAuthenticator())
        [passkey] = factor_queries.list_passkeys(other.id)
        client = sign_in("viewer")
        client.post(f"{PAGE}/passkeys/{passkey.id}/remove")
        assert factor_queries.has_second_factor(other.id)

    @pytest.mark.parametrize(
        ("public_url", "text"),
        [
            ("http://127.0.0.1:8000", "set PUBLIC_URL to http://localhost:8000"),
            ("http://offers.example.com", "browsers require HTTPS"),
            ("https://offers.example.com", "only at the public address"),
        ],
    )
    def test_the_page_says_why_passkeys_do_not_work(
        self, sign_in: SignIn, with_settings: Callable[..., object], public_url: str, text: str
    ) -> None:
        client = sign_in("viewer")
        with_settings(public_url=public_url)
        page = client.get(PAGE).text
        assert text in page
        assert "Add passkey" not in page

    def test_a_passkey_of_another_host_is_marked(self, sign_in: SignIn, with_settings: Callable[..., object]) -> None:
        client = sign_in("manager")
        add_passkey(user_of(), SoftwareAuthenticator())
        set_times(second_factor_at=0)
        assert "Works only at" not in client.get(PAGE).text
        with_settings(public_url="https://offers.example.com")
        assert "Works only at localhost" in client.get(PAGE).text


@pytest.mark.parametrize("path", CHANGES)
def test_every_change_needs_a_recent_password(sign_in: SignIn, path: str) -> None:
    client = sign_in("admin")
    set_times(authenticated_at=1)
    response = client.post(path, data={})
    assert response.status_code == 403
    assert "Confirm your password" in response.text


class TestPresentFactor:
    """Users with a second factor confirm it before a change (OWASP ASVS 5.0, 7.5.1)."""

    @pytest.mark.parametrize("path", CHANGES)
    @pytest.mark.parametrize("is_verified", [True, False], ids=["long ago", "never"])
    def test_every_change_needs_the_present_factor(self, sign_in: SignIn, path: str, is_verified: bool) -> None:
        client = sign_in("admin")
        add_app(user_of("admin"))
        if is_verified:
            set_times(second_factor_at=1)
        response = client.post(path, data={"name": "Laptop"})
        assert (response.status_code, "Confirm the second step" in response.text) == (403, True)
        assert "recent_password" not in response.text
        assert 'action="/sign-out"' in response.text
        assert factor_queries.has_second_factor(user_of("admin").id)

    def test_the_setup_page_shows_no_secret_without_it(self, sign_in: SignIn) -> None:
        client = sign_in("manager")
        add_app(user_of())
        set_times(second_factor_at=1)
        assert client.get(f"{PAGE}/app").location == PAGE

    @pytest.mark.parametrize("path", [PAGE, f"{PAGE}/app"])
    def test_a_session_from_before_does_not_see_the_setup(self, sign_in: SignIn, path: str) -> None:
        client = sign_in("manager")
        secret, _ = add_app(user_of())
        page = f"/sign-in/second-factor?next={path}"
        assert client.get(path).location == page
        assert client.post(page, data={"code": code_now(secret)}).location == path
        assert client.get(path).status_code == 200

    def test_changing_the_password_does_not_replace_it(
        self, client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
    ) -> None:
        user = make_user_with_password("manager")
        start_session(client, user)
        add_app(user)
        set_times(second_factor_at=1)
        change = {"current": PASSWORD, "password": "a brand new one", "confirm": "a brand new one"}
        assert client.post("/settings/profile/password", data=change).status_code == 302
        assert client.get(PAGE).status_code == 200
        assert "Confirm the second step" in client.post(f"{PAGE}/app/remove").text

    @pytest.mark.parametrize("kind", ["app", "recovery"])
    def test_a_code_confirms_it_and_the_action_continues(self, app: Any, sign_in: SignIn, kind: str) -> None:
        client = sign_in("manager")
        secret, codes = add_app(user_of())
        former = cookie_of(client)
        wrong = client.post(f"{PAGE}/app/remove", data={"recent_code": "000000x"})
        assert (wrong.status_code, "This code is wrong" in wrong.text) == (422, True)
        code = code_now(secret) if kind == "app" else codes[0]
        assert client.post(f"{PAGE}/app/remove", data={"recent_code": code}).location == PAGE
        assert not factor_queries.has_second_factor(user_of().id)
        assert session_queries.find_staff_session(former) is None
        assert session_queries.find_staff_session(cookie_of(client))
        entry = audit_queries.find_last_audit_entry("second_factor.confirmed", "manager@example.com")
        assert entry
        assert entry.detail == {"method": "authenticator app" if kind == "app" else "recovery code"}

    def test_password_and_code_are_asked_for_together(
        self, client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
    ) -> None:
        user = make_user_with_password("manager")
        start_session(client, user)
        secret, _ = add_app(user)
        set_times(authenticated_at=1, second_factor_at=1)
        page = client.post(f"{PAGE}/app/remove").text
        assert "recent_password" in page
        assert "recent_code" in page
        data = {"recent_password": "wrong", "recent_code": code_now(secret)}
        assert "This is not your password." in client.post(f"{PAGE}/app/remove", data=data).text
        # The code was not used up by the wrong password.
        assert client.post(f"{PAGE}/app/remove", data=data | {"recent_password": PASSWORD}).location == PAGE

    def test_guesses_share_the_limit_of_signing_in(self, sign_in: SignIn) -> None:
        client = sign_in("manager")
        add_app(user_of())
        for _ in range(2):
            assert client.post("/sign-in/second-factor", data={"code": "000000x"}).status_code == 422
        data = {"recent_code": "000000x", "name": "Laptop"}
        responses = [client.post(f"{PAGE}/passkeys/new", data=data) for _ in range(4)]
        assert [response.status_code for response in responses] == [422] * 3 + [429]
        assert int(responses[-1].headers["Retry-After"]) > 0
        assert '<input type="hidden" name="name" value="Laptop">' in responses[-1].text

    def test_guesses_with_a_stolen_password_do_not_use_up_those_of_a_known_browser(
        self, app: Flask, client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
    ) -> None:
        user = make_user_with_password("manager")
        client.post("/sign-in", data={"email": user.email, "password": PASSWORD})
        secret, _ = add_app(user)
        thief = app.test_client()
        thief.post("/sign-in", data={"email": user.email, "password": PASSWORD})
        for _ in range(6):
            response = thief.post("/sign-in/second-factor", data={"code": "000000x"})
        assert response.status_code == 429
        assert client.post(f"{PAGE}/app/remove", data={"recent_code": code_now(secret)}).location == PAGE

    def test_a_passkey_confirms_it(self, sign_in: SignIn) -> None:
        client = sign_in("manager")
        authenticator = SoftwareAuthenticator()
        add_passkey(user_of(), authenticator)
        set_times(authenticated_at=1, second_factor_at=1)
        page = client.post(f"{PAGE}/recovery-codes").text
        assert submit_passkey_form(client, authenticator, page).location == PAGE
        assert len(codes_in(client.post(f"{PAGE}/recovery-codes").text)) == 10

    def test_the_passkey_of_another_user_does_not(
        self, sign_in: SignIn, make_staff_user: Callable[..., StaffUser]
    ) -> None:
        client = sign_in("manager")
        add_passkey(user_of(), SoftwareAuthenticator())
        other = SoftwareAuthenticator()
        add_passkey(make_staff_user("admin"), other)
        set_times(second_factor_at=1)
        page = client.post(f"{PAGE}/recovery-codes").text
        assert submit_passkey_form(client, other, page).location == PAGE
        assert "not known here" in client.get(PAGE).text
        assert "Confirm the second step" in client.post(f"{PAGE}/recovery-codes").text


def test_setting_up_a_factor_replaces_the_cookie(app: Any, sign_in: SignIn) -> None:
    client = sign_in("viewer")
    former = cookie_of(client)
    secret = secret_in(client.get(f"{PAGE}/app").text)
    client.post(f"{PAGE}/app", data={"code": code_now(secret)})
    assert session_queries.find_staff_session(former) is None
    assert session_queries.find_staff_session(cookie_of(client))


@pytest.mark.parametrize("has_app", [True, False])
def test_other_sessions_can_be_ended_after_a_change(app: Any, sign_in: SignIn, has_app: bool) -> None:
    client = sign_in("manager")
    assert "Other sessions" not in client.get(PAGE).text
    start_session(app.test_client(), user_of())
    if has_app:
        add_app(user_of())
        set_times(second_factor_at=0)
    page = client.get(PAGE).text
    assert 'action="/settings/profile/sessions/end-others"' in page


class TestReset:
    def test_an_administrator_resets_the_factors_of_a_user(
        self, sign_in: SignIn, app: Any, make_staff_user: Callable[..., StaffUser]
    ) -> None:
        user = make_staff_user("viewer")
        add_app(user)
        other = app.test_client()
        start_session(other, user)
        client = sign_in("admin")
        assert "Two-step verification" in client.get("/settings/people").text
        page = client.get(f"/settings/people/{user.id}").text
        assert "Reset two-step verification" in page
        client.post(f"/settings/people/{user.id}/reset-second-factor")
        page = client.get(f"/settings/people/{user.id}").text
        assert "was reset" in page
        assert "Reset two-step verification" not in page
        assert not factor_queries.has_second_factor(user.id)
        assert other.get("/").status_code == 302

    def test_an_administrator_sees_and_unlinks_the_account_at_the_provider(
        self, sign_in: SignIn, app: Flask, make_staff_user: Callable[..., StaffUser]
    ) -> None:
        user = make_staff_user("viewer")
        oidc_actions.link_identity(user.id, OidcClaims("https://login.example", "1", "", False, "Eve", False))
        other = app.test_client()
        start_session(other, user)
        client = sign_in("admin")
        page = client.get(f"/settings/people/{user.id}").text
        assert oidc_queries.list_identities(user.id)[0].label in page
        assert "Unlink account" in page
        assert client.post(f"/settings/people/{user.id}/unlink-identities").location == f"/settings/people/{user.id}"
        assert "Unlink account" not in client.get(f"/settings/people/{user.id}").text
        assert oidc_queries.list_identities(user.id) == []
        assert other.get("/").status_code == 302

    @pytest.mark.parametrize("role", ["manager", "viewer"])
    @pytest.mark.parametrize("action", ["reset-second-factor", "unlink-identities"])
    def test_others_cannot(self, sign_in: SignIn, role: str, action: str) -> None:
        assert sign_in(role).post(f"/settings/people/1/{action}").status_code == 403
