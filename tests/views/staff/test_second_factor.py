"""Signing in with a second factor, with passkeys, and while the password is being guessed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from tests.support.accounts import PASSWORD
from tests.support.authenticator import SoftwareAuthenticator
from tests.support.factors import add_app, add_passkey, code_now, sign_with_passkey, submit_passkey_form
from tests.support.sessions import start_session
from webapp.accounts import actions as account_actions
from webapp.accounts import audit_queries, invitation_actions, passwords, sign_in_actions
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors import totp_actions
from webapp.accounts.models import StaffSession, StaffUser
from webapp.core.extensions import db

MakeUser = Callable[..., StaffUser]
FACTOR_PAGE = "/sign-in/second-factor"
PAGE = "/settings/profile/two-step"


@pytest.fixture
def user(make_user_with_password: MakeUser) -> StaffUser:
    return make_user_with_password("manager")


def post_password(client: FlaskClient, address: str = "192.0.2.1", **changed: str) -> TestResponse:
    data = {"email": "manager@example.com", "password": PASSWORD} | changed
    return client.post("/sign-in?next=/offers", data=data, environ_base={"REMOTE_ADDR": address})


def post_code(client: FlaskClient, code: str, page: str = f"{FACTOR_PAGE}?next=/offers") -> TestResponse:
    return client.post(page, data={"code": code})


def is_signed_in(client: FlaskClient) -> bool:
    return client.get("/settings/profile").status_code == 200


def sign_in_method(user: StaffUser) -> object:
    entry = audit_queries.find_last_audit_entry("staff.signed_in", user.email)
    return entry and entry.detail and entry.detail["method"]


class TestCodes:
    def test_the_password_alone_does_not_sign_in(self, client: FlaskClient, user: StaffUser) -> None:
        secret, _ = add_app(user)
        response = post_password(client)
        assert response.location == f"{FACTOR_PAGE}?next=/offers"
        assert not is_signed_in(client)
        assert sign_in_method(user) is None
        assert db.session.scalars(select(StaffSession.id)).all() == []
        page = client.get(response.location).text
        assert "manager@example.com" in page
        assert post_code(client, code_now(secret)).location == "/offers"
        assert is_signed_in(client)
        assert sign_in_method(user) == "password and authenticator app"

    def test_without_a_factor_the_password_signs_in(self, client: FlaskClient, user: StaffUser) -> None:
        assert post_password(client).location == "/offers"
        assert sign_in_method(user) == "password"
        assert client.get(FACTOR_PAGE).location.startswith("/sign-in")

    def test_a_wrong_code_is_reported_at_its_field(self, client: FlaskClient, user: StaffUser) -> None:
        add_app(user)
        post_password(client)
        response = post_code(client, "000 00x")
        assert response.status_code == 422
        assert "This code is wrong or has expired." in response.text
        assert not is_signed_in(client)

    def test_a_code_signs_in_once(self, app: Flask, client: FlaskClient, user: StaffUser) -> None:
        secret, _ = add_app(user)
        code = code_now(secret)
        post_password(client)
        post_code(client, code)
        other = app.test_client()
        post_password(other)
        assert "already used" in post_code(other, code).text
        assert not is_signed_in(other)

    def test_a_recovery_code_signs_in_once(self, app: Flask, client: FlaskClient, user: StaffUser) -> None:
        _, codes = add_app(user)
        post_password(client)
        page = f"{FACTOR_PAGE}?recovery=&next=/offers"
        assert "Recovery code" in client.get(page).text
        assert post_code(client, codes[0], page).location == "/offers"
        assert "9 codes are left" in client.get("/offers").text
        assert sign_in_method(user) == "password and recovery code"
        other = app.test_client()
        post_password(other)
        assert "already used" in post_code(other, codes[0], page).text
        assert not is_signed_in(other)

    def test_after_a_change_of_the_secret_key_a_recovery_code_signs_in(
        self, app: Flask, client: FlaskClient, user: StaffUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret, codes = add_app(user)
        monkeypatch.setitem(app.config, "SECRET_KEY", "another")
        post_password(client)
        response = post_code(client, code_now(secret))
        assert response.status_code == 422
        assert "the secret key of this server has changed" in response.text
        assert post_code(client, codes[0], f"{FACTOR_PAGE}?recovery=").location == "/"

    def test_guesses_are_limited_with_the_right_password_too(
        self, app: Flask, client: FlaskClient, user: StaffUser
    ) -> None:
        secret, _ = add_app(user)
        post_password(client)
        statuses = [post_code(client, "000000x").status_code for _ in range(6)]
        assert statuses == [422] * 5 + [429]
        assert int(post_code(client, "000000x").headers["Retry-After"]) > 0
        other = app.test_client()
        post_password(other)
        assert post_code(other, code_now(secret)).status_code == 429
        assert not is_signed_in(other)

    def test_a_stolen_password_does_not_lock_out_a_known_browser(
        self, app: Flask, client: FlaskClient, user: StaffUser
    ) -> None:
        post_password(client)
        client.post("/sign-out")
        secret, _ = add_app(user)
        thief = app.test_client()
        post_password(thief)
        for _ in range(6):
            response = post_code(thief, "000000x")
        assert response.status_code == 429
        post_password(client)
        statuses = [post_code(client, "000000x").status_code for _ in range(4)]
        assert statuses == [422] * 4
        assert post_code(client, code_now(secret)).location == "/offers"
        post_password(client)
        statuses = [post_code(client, "000000x").status_code for _ in range(6)]
        assert statuses == [422] * 5 + [429]

    def test_a_success_resets_the_limit(self, app: Flask, user: StaffUser) -> None:
        secret, _ = add_app(user)
        for step in (0, 1):
            client = app.test_client()
            post_password(client)
            for _ in range(4):
                assert post_code(client, "000000x").status_code == 422
            assert post_code(client, code_now(secret, step)).status_code == 302

    def test_the_wait_ends_after_ten_minutes(self, client: FlaskClient, user: StaffUser) -> None:
        add_app(user)
        post_password(client)
        with time_machine.travel(time.time() + 601):
            response = client.get(FACTOR_PAGE)
            assert response.location.startswith("/sign-in?")
            assert "This took too long" in client.get("/sign-in").text

    @pytest.mark.parametrize("change", ["password", "disabled"])
    def test_changes_of_the_user_end_the_wait(
        self, client: FlaskClient, user: StaffUser, make_staff_user: MakeUser, change: str
    ) -> None:
        secret, _ = add_app(user)
        make_staff_user("admin")
        post_password(client)
        if change == "password":
            sign_in_actions.change_own_password(user.id, PASSWORD, "another good password")
        else:
            account_actions.disable_staff_user(user.id, by="tests")
        assert post_code(client, code_now(secret)).location.startswith("/sign-in?")
        assert not is_signed_in(client)

    def test_a_password_that_is_changed_meanwhile_ends_the_wait(
        self, client: FlaskClient, user: StaffUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret, _ = add_app(user)
        post_password(client)
        code = code_now(secret)
        use_totp_code = totp_actions.use_totp_code

        def use_and_change(user_id: int, code: str) -> None:
            use_totp_code(user_id, code)
            with db.engine.begin() as connection:
                connection.execute(update(StaffUser).values(password_hash="another hash"))

        monkeypatch.setattr(totp_actions, "use_totp_code", use_and_change)
        assert post_code(client, code).location.startswith("/sign-in?")
        assert db.session.scalars(select(StaffSession.id)).all() == []

    def test_the_earlier_session_of_the_browser_ends(
        self, app: Flask, client: FlaskClient, user: StaffUser, make_staff_user: MakeUser
    ) -> None:
        add_app(user)
        start_session(client, make_staff_user("viewer"))
        cookie = client.get_cookie("onecode")
        post_password(client)
        copy = app.test_client()
        copy.set_cookie("onecode", cookie.value)  # type: ignore[union-attr]
        assert not is_signed_in(copy)

    @pytest.mark.parametrize("pending", ["x", [1], [1, 2, 3], [1, 2, "x", "y"], {"a": 1}, [True, 0, "", ""]])
    def test_a_forged_wait_is_refused(self, client: FlaskClient, user: StaffUser, pending: object) -> None:
        add_app(user)
        with client.session_transaction() as session:
            session["pending_sign_in"] = pending
        assert client.get(FACTOR_PAGE).location.startswith("/sign-in?")

    def test_a_password_reset_link_does_not_replace_the_factor(self, client: FlaskClient, user: StaffUser) -> None:
        secret, _ = add_app(user)
        link = invitation_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
        new = {"password": "a brand new one", "confirm": "a brand new one"}
        assert client.post(link, data=new).location.startswith(FACTOR_PAGE)
        assert not is_signed_in(client)
        assert post_code(client, code_now(secret)).status_code == 302
        assert is_signed_in(client)


class TestPasskeys:
    def submit(self, client: FlaskClient, response: str) -> TestResponse:
        return client.post("/sign-in/passkey?next=/offers", data={"credential": response})

    def test_a_passkey_signs_in_without_a_password(self, client: FlaskClient, user: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(user, authenticator)
        assert "Sign in with a passkey" in client.get("/sign-in").text
        assert self.submit(client, sign_with_passkey(client, authenticator)).location == "/offers"
        assert is_signed_in(client)
        assert sign_in_method(user) == "passkey"

    def test_a_passkey_is_a_second_factor(self, client: FlaskClient, user: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(user, authenticator)
        page = client.get(post_password(client).location).text
        assert "Use a passkey" in page
        assert "Authentication code" not in page
        assert submit_passkey_form(client, authenticator, page).location == "/offers"
        assert sign_in_method(user) == "password and passkey"

    def test_the_passkey_of_another_user_is_no_second_factor(
        self, client: FlaskClient, user: StaffUser, make_staff_user: MakeUser
    ) -> None:
        add_app(user)
        authenticator = SoftwareAuthenticator()
        add_passkey(make_staff_user("viewer"), authenticator)
        page = client.get(post_password(client).location).text
        add_passkey(user, SoftwareAuthenticator())
        page = client.get(FACTOR_PAGE).text
        response = submit_passkey_form(client, authenticator, page)
        assert response.location.startswith(FACTOR_PAGE)
        assert "not known here" in client.get(response.location).text
        assert not is_signed_in(client)

    def test_a_pending_sign_in_does_not_keep_out_other_users(
        self, client: FlaskClient, user: StaffUser, make_staff_user: MakeUser
    ) -> None:
        """On a shared computer, someone may have entered a password and left."""
        add_passkey(user, SoftwareAuthenticator())
        authenticator = SoftwareAuthenticator()
        add_passkey(make_staff_user("viewer"), authenticator)
        post_password(client)
        assert client.post("/sign-in/passkey/options").json["allowCredentials"] == []  # type: ignore[index]
        assert self.submit(client, sign_with_passkey(client, authenticator)).location == "/offers"
        assert "viewer@example.com" in client.get("/settings/profile").text

    def test_a_response_cannot_be_sent_again(self, app: Flask, client: FlaskClient, user: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(user, authenticator)
        response = sign_with_passkey(client, authenticator)
        cookie = client.get_cookie("onecode")
        self.submit(client, response)
        thief = app.test_client()
        thief.set_cookie("onecode", cookie.value)  # type: ignore[union-attr]
        assert self.submit(thief, response).location.startswith("/sign-in?")
        assert not is_signed_in(thief)

    def test_the_response_of_another_origin_is_refused(self, client: FlaskClient, user: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(user, authenticator)
        phished = replace(authenticator, origin="https://0necode.example")
        assert self.submit(client, sign_with_passkey(client, phished)).location.startswith("/sign-in?")
        assert "could not be verified" in client.get("/sign-in").text
        assert not is_signed_in(client)

    @pytest.mark.parametrize("response", ["", "{}", "\0", "x" * 100_000])
    def test_a_malformed_response_is_refused(self, client: FlaskClient, response: str) -> None:
        client.post("/sign-in/passkey/options")
        assert self.submit(client, response).status_code in (302, 400)
        assert not is_signed_in(client)

    def test_without_a_challenge_nothing_is_accepted(self, client: FlaskClient, user: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(user, authenticator)
        response = sign_with_passkey(client, authenticator)
        client.delete_cookie("onecode")
        assert self.submit(client, response).location.startswith("/sign-in?")
        assert not is_signed_in(client)

    def test_csrf_tokens_are_required(self, csrf_client: FlaskClient) -> None:
        assert csrf_client.post("/sign-in/passkey/options").status_code == 400
        assert csrf_client.post("/sign-in/passkey", data={"credential": "{}"}).status_code == 400

    def test_where_passkeys_do_not_work_none_is_offered(
        self, client: FlaskClient, user: StaffUser, with_settings: Callable[..., object]
    ) -> None:
        add_passkey(user, SoftwareAuthenticator())
        with_settings(public_url="http://127.0.0.1")
        assert "passkey" not in client.get("/sign-in").text
        assert client.post("/sign-in/passkey/options").status_code == 409
        page = client.get(post_password(client).location).text
        assert "were created for another address" in page
        assert "Use a recovery code" in page


class TestDuringAnAttack:
    """Ten wrong passwords from ten addresses use up the limit of the account for unknown browsers."""

    @pytest.fixture
    def attacked(self, app: Flask, client: FlaskClient, user: StaffUser) -> StaffUser:
        for n in range(10):
            assert post_password(app.test_client(), f"203.0.113.{n}", password="a guess").status_code == 422
        return user

    def test_a_code_lets_its_user_in(self, client: FlaskClient, attacked: StaffUser) -> None:
        secret, _ = add_app(attacked)
        page = post_password(client)
        assert page.status_code == 429
        assert 'name="code"' in page.text
        assert int(page.headers["Retry-After"]) > 0
        assert post_password(client, code=code_now(secret)).location == "/offers"
        assert is_signed_in(client)
        assert sign_in_method(attacked) == "password and authenticator app"

    def test_a_passkey_lets_its_user_in(self, client: FlaskClient, attacked: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(attacked, authenticator)
        response = sign_with_passkey(client, authenticator)
        assert client.post("/sign-in/passkey", data={"credential": response}).location == "/"
        assert is_signed_in(client)

    def test_the_page_is_the_same_for_every_account(
        self, app: Flask, attacked: StaffUser, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password("viewer")
        add_app(attacked)
        pages: list[list[str]] = []
        for name in ("manager", "viewer", "unknown"):
            email = f"{name}@example.com"
            for n in range(10 if name != "manager" else 0):
                post_password(app.test_client(), f"203.0.113.{n}", email=email, password="a guess")
            shown = post_password(app.test_client(), email=email)
            refused = post_password(app.test_client(), f"198.51.100.{len(pages)}", email=email, code="000000x")
            assert (shown.status_code, refused.status_code) == (429, 422)
            # The windows of the accounts began at different times.
            varying = rf'"csrf_token" value="[^"]*"|wait [\w ]+ and|{email}'
            pages.append([re.sub(varying, "", page.text) for page in (shown, refused)])
        assert pages[0] == pages[1] == pages[2]

    def test_a_wrong_code_verifies_no_password(
        self, app: Flask, attacked: StaffUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_app(attacked)
        verified: list[str] = []

        def record(_password_hash: str, password: str) -> bool:
            verified.append(password)
            return True

        monkeypatch.setattr(passwords, "verify_password", record)
        for email in (attacked.email, "unknown@example.com"):
            assert post_password(app.test_client(), email=email, code="000000x").status_code == 422
        assert verified == []

    def test_a_code_is_right_for_one_guess_at_the_password(
        self, app: Flask, client: FlaskClient, attacked: StaffUser
    ) -> None:
        secret, _ = add_app(attacked)
        code = code_now(secret)
        assert post_password(client, password="a guess", code=code).status_code == 422
        assert post_password(app.test_client(), code=code).status_code == 422
        assert not is_signed_in(client)

    def test_codes_are_limited_for_each_address_only(self, app: Flask, attacked: StaffUser) -> None:
        secret, _ = add_app(attacked)
        statuses = [post_password(app.test_client(), "203.0.113.9", code="000000x").status_code for _ in range(6)]
        assert statuses == [422] * 5 + [429]
        owner = app.test_client()
        assert post_password(owner, "192.0.2.7", code=code_now(secret)).location == "/offers"


class TestRequiredByRole:
    @pytest.fixture(autouse=True)
    def required(self, with_settings: Callable[..., object]) -> None:
        with_settings(second_factor_roles=("manager",))

    @pytest.mark.parametrize("path", ["/", "/offers", "/settings/profile", "/settings/profile/sessions", "/customers"])
    def test_nothing_else_can_be_used_before_the_setup(self, client: FlaskClient, user: StaffUser, path: str) -> None:
        post_password(client)
        assert client.get(path).location == "/settings/profile/two-step"
        assert client.post("/offers/new", data={}).location == "/settings/profile/two-step"
        assert client.get(path, headers={"HX-Request": "true"}).headers["HX-Redirect"] == "/settings/profile/two-step"
        assert "Your role requires two-step verification" in client.get("/settings/profile/two-step").text

    def test_the_setup_opens_the_other_pages(self, client: FlaskClient, user: StaffUser) -> None:
        post_password(client)
        page = client.post("/settings/profile/two-step/app/start", follow_redirects=True).text
        secret = page.split('class="copy-text" dir="ltr">')[1].split("<")[0]
        codes = client.post("/settings/profile/two-step/app", data={"code": code_now(secret)}).text
        assert "Recovery codes" in codes
        assert client.get("/offers").status_code == 200

    def test_a_passkey_opens_the_other_pages(self, client: FlaskClient, user: StaffUser) -> None:
        authenticator = SoftwareAuthenticator()
        add_passkey(user, authenticator)
        client.post("/sign-in/passkey", data={"credential": sign_with_passkey(client, authenticator)})
        assert client.get("/offers").status_code == 200

    def test_a_session_from_before_is_asked_for_the_factor(self, client: FlaskClient, user: StaffUser) -> None:
        secret, _ = add_app(user)
        start_session(client, user)
        assert client.get("/offers").location == f"{FACTOR_PAGE}?next=/offers"
        assert client.get(FACTOR_PAGE).status_code == 200
        assert post_code(client, code_now(secret)).location == "/offers"
        assert client.get("/offers").status_code == 200

    @pytest.mark.parametrize("path", [f"{PAGE}/app", f"{PAGE}/app/start", f"{PAGE}/passkeys/new", f"{PAGE}/provider"])
    def test_a_session_from_before_cannot_replace_the_factor(
        self, client: FlaskClient, user: StaffUser, path: str
    ) -> None:
        """Its copy and the password would be enough to take over the account."""
        secret, _ = add_app(user)
        start_session(client, user)
        for response in (client.get(PAGE), client.post(path, data={"name": "x", "code": code_now(secret)})):
            assert response.location.startswith(FACTOR_PAGE)

    def test_another_user_can_sign_in(self, client: FlaskClient, user: StaffUser) -> None:
        add_app(user)
        start_session(client, user)
        page = client.get(client.get("/offers").location).text
        action = re.search('action="([^"]*)"[^>]*>(?:(?!</form>).)*Sign in as another user', page, re.DOTALL)
        assert action
        assert client.post(action[1]).location == "/sign-in#signed-out"
        assert client.get("/sign-in").status_code == 200

    def test_other_roles_and_api_keys_are_not_affected(
        self, client: FlaskClient, api: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password("viewer")
        post_password(client, email="viewer@example.com")
        assert client.get("/offers").status_code == 200
        assert api.get("/api/v1/offers").status_code == 200

    def test_signing_out_is_possible(self, client: FlaskClient, user: StaffUser) -> None:
        post_password(client)
        assert client.post("/sign-out").location == "/sign-in#signed-out"

    def test_after_a_reset_the_factor_is_set_up_again(self, client: FlaskClient, user: StaffUser) -> None:
        secret, _ = add_app(user)
        post_password(client)
        post_code(client, code_now(secret))
        factor_actions.reset_second_factor(user.id, by="tests")
        assert client.get("/offers").location.startswith("/sign-in")
        post_password(client)
        assert client.get("/offers").location == "/settings/profile/two-step"
        assert not factor_queries.has_second_factor(user.id)
