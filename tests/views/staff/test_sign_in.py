"""Limits of signing in, known browsers, and sessions that end on the server."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, text, update
from werkzeug.test import TestResponse

from tests.support.accounts import PASSWORD
from tests.support.sessions import start_session
from tests.support.sql_statements import recorded_statements
from webapp import create_app
from webapp.accounts import invitation_actions
from webapp.accounts.models import AuditEntry, StaffDevice, StaffSession, StaffUser
from webapp.core.extensions import db
from webapp.core.sessions import MAX_DEVICE_TOKENS
from webapp.core.settings import ROOT, Settings, load_settings

MakeUser = Callable[..., StaffUser]
SignIn = Callable[..., FlaskClient]
DEVICE_COOKIE = "onecode_device"


def post_sign_in(
    client: FlaskClient, email: str = "admin@example.com", password: str = PASSWORD, host: str = "192.0.2.1"
) -> TestResponse:
    data = {"email": email, "password": password}
    return client.post("/sign-in", data=data, environ_base={"REMOTE_ADDR": host})


def is_signed_in(client: FlaskClient) -> bool:
    return client.get("/settings/profile").status_code == 200


def exhaust_account_limit(app: Flask, email: str = "admin@example.com") -> None:
    """Guess from ten addresses, as a stranger can."""
    for n in range(10):
        assert post_sign_in(app.test_client(), email, "a guess", f"203.0.113.{n}").status_code == 422


class UnreadBody(io.BytesIO):
    """A request body that must not be read."""

    def read(self, *_: Any) -> bytes:
        raise AssertionError("the body was read")

    readline = readinto = read  # type: ignore[assignment]


class TestLimits:
    @pytest.mark.parametrize("path", ["/sign-in", "/redeem", "/r/some-token"])
    def test_the_limit_of_an_address_is_checked_before_the_body_is_read(
        self, csrf_client: FlaskClient, path: str
    ) -> None:
        for _ in range(60):
            csrf_client.post(path, data={"email": "ann@example.com"})
        response = csrf_client.post(
            path,
            input_stream=UnreadBody(),
            headers={"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "2000000"},
        )
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) > 0
        assert response.headers["X-Request-Id"]

    def test_reading_a_page_is_not_limited(self, client: FlaskClient) -> None:
        assert {client.get("/sign-in").status_code for _ in range(31)} == {200}

    @pytest.mark.parametrize(
        "spellings",
        [
            ["admin@example.com", "ADMIN@EXAMPLE.COM", " Admin@example.com\t", "admin@example。com"],
            ["josé@example.com", "jose\u0301@example.com", "JOSÉ@example.com", "josé@EXAMPLE.com "],
        ],
        ids=["ascii", "unicode"],
    )
    def test_no_spelling_of_an_address_evades_the_limit(self, client: FlaskClient, spellings: list[str]) -> None:
        statuses = [post_sign_in(client, spelling, "a guess").status_code for spelling in spellings * 3]
        assert statuses == [422] * 10 + [429] * 2

    def test_duplicate_fields_do_not_evade_the_limit(self, app: Flask, make_user_with_password: MakeUser) -> None:
        make_user_with_password()
        app.config["WTF_CSRF_ENABLED"] = False
        statuses = []
        for n in range(11):
            emails = [f"n{n}@example.com", "admin@example.com"]
            for order in (emails, emails[::-1]):
                data = {"email": order, "password": [PASSWORD if n == 10 else "a guess", "x"]}
                host = {"REMOTE_ADDR": f"203.0.113.{n}"}
                statuses.append(app.test_client().post("/sign-in", data=data, environ_base=host).status_code)
        # The first field counts for the form as well as for the limit.
        assert statuses == [422] * 21 + [429]

    def test_json_neither_signs_in_nor_reaches_the_password_check(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password()
        body = {"email": "admin@example.com", "password": PASSWORD}
        assert [client.post("/sign-in", json=body).status_code for _ in range(31)] == [422] * 30 + [429]
        assert not is_signed_in(client)

    def test_an_incomplete_form_is_not_an_attempt(self, client: FlaskClient, make_user_with_password: MakeUser) -> None:
        make_user_with_password()
        assert {post_sign_in(client, password="").status_code for _ in range(11)} == {422}
        assert post_sign_in(client).status_code == 302

    def test_a_limited_attempt_does_not_check_the_password(self, app: Flask, make_user_with_password: MakeUser) -> None:
        make_user_with_password()
        app.config["WTF_CSRF_ENABLED"] = False
        exhaust_account_limit(app)
        response = post_sign_in(app.test_client())
        assert response.status_code == 429
        assert 0 < int(response.headers["Retry-After"]) <= 300


class TestKnownBrowsers:
    def test_strangers_cannot_lock_out_a_user_on_a_known_browser(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password()
        post_sign_in(client)
        client.post("/sign-out")
        exhaust_account_limit(app)
        assert post_sign_in(app.test_client()).status_code == 429
        assert post_sign_in(client).status_code == 302
        # Signing in does not give the strangers more attempts.
        assert post_sign_in(app.test_client(), host="203.0.113.99").status_code == 429

    def test_strangers_with_the_same_address_cannot_lock_out_a_known_browser(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password()
        post_sign_in(client)
        statuses = [post_sign_in(app.test_client(), f"n{n}@example.com", "a guess").status_code for n in range(31)]
        assert (statuses[-1], post_sign_in(client).status_code) == (429, 302)
        guesses = [post_sign_in(client, f"n{n}@example.com", "a guess").status_code for n in range(30)]
        assert guesses[-1] == 429

    def test_guesses_from_a_known_browser_are_limited(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password()
        post_sign_in(client)
        client.post("/sign-out")
        statuses = [post_sign_in(client, password="a guess", host=f"203.0.113.{n}").status_code for n in range(11)]
        assert statuses == [422] * 10 + [429]
        assert post_sign_in(client).status_code == 429
        # The user can still sign in with another browser.
        assert post_sign_in(app.test_client()).status_code == 302

    def test_a_browser_is_known_for_its_own_accounts_only(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password("admin"), make_user_with_password("viewer")
        post_sign_in(client)
        exhaust_account_limit(app, "viewer@example.com")
        assert post_sign_in(client, "viewer@example.com").status_code == 429

    def test_a_browser_knows_several_accounts(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        for n in range(MAX_DEVICE_TOKENS + 1):
            make_user_with_password("viewer", email=f"n{n}@example.com")
            assert post_sign_in(client, f"n{n}@example.com").status_code == 302
        for email, status in (("n1@example.com", 302), ("n10@example.com", 302), ("n0@example.com", 429)):
            exhaust_account_limit(app, email)
            db.session.execute(text("delete from rate_hit where key like '%192.0.2.1/%' or key like '%203.0.113%'"))
            db.session.commit()
            assert post_sign_in(client, email).status_code == status

    @pytest.mark.parametrize("cookie", ["", "forged", "WyJ4Il0.forged", "\0", "x" * 8000, "☕"])
    def test_a_forged_cookie_is_that_of_an_unknown_browser(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser, cookie: str
    ) -> None:
        make_user_with_password()
        exhaust_account_limit(app)
        headers = {"Cookie": f"{DEVICE_COOKIE}={cookie}".encode().decode("latin-1")}
        response = client.post("/sign-in", data={"email": "admin@example.com", "password": PASSWORD}, headers=headers)
        assert response.status_code == 429

    def test_a_reset_password_makes_every_browser_unknown(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        user = make_user_with_password()
        post_sign_in(client)
        link = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        invitation_actions.reset_password(link, "a brand new one")
        exhaust_account_limit(app)
        assert post_sign_in(client, password="a brand new one").status_code == 429

    def test_an_invitation_makes_the_browser_known(
        self, app: Flask, client: FlaskClient, make_invitation_token: Callable[..., str]
    ) -> None:
        values = {"name": "Ann", "email": "ann@example.com", "time_zone": "UTC"}
        passwords = {"password": PASSWORD, "confirm": PASSWORD}
        client.post(f"/invitations/{make_invitation_token('viewer')}", data={**values, **passwords})
        assert is_signed_in(client)
        exhaust_account_limit(app, "ann@example.com")
        assert post_sign_in(client, "ann@example.com").status_code == 302

    @pytest.mark.parametrize(
        ("public_url", "prefix", "is_secure"),
        [("https://offers.shop.example", "__Host-onecode", True), ("http://localhost:8003", "onecode_8003", False)],
    )
    def test_the_cookies_are_hidden_from_scripts_and_other_sites(
        self, app: Flask, test_settings: Settings, make_user_with_password: MakeUser,
        public_url: str, prefix: str, is_secure: bool,
    ) -> None:  # fmt: skip
        make_user_with_password()
        settings = load_settings(
            {
                "DATABASE_URL": test_settings.libpq_url,
                "SECRET_KEY": "other",
                "INSTANCE_PATH": str(test_settings.instance_path),
                "PUBLIC_URL": public_url,
            }
        )
        other = create_app(settings)
        other.config.update(WTF_CSRF_ENABLED=False, ARGON2=app.config["ARGON2"])
        with other.app_context():
            cookies = post_sign_in(other.test_client()).headers.getlist("Set-Cookie")
            db.engine.dispose()
        by_name = {cookie.partition("=")[0]: {part.strip() for part in cookie.split(";")[1:]} for cookie in cookies}
        secure = {"Secure"} if is_secure else set()
        assert by_name[prefix] == {"HttpOnly", "Path=/", "SameSite=Lax"} | secure
        device = {part for part in by_name[f"{prefix}_device"] if not part.startswith("Expires=")}
        assert device == {"HttpOnly", "Path=/", "SameSite=Strict", "Max-Age=31536000"} | secure


def test_cookies_are_signed_with_sha_256(app: Flask, client: FlaskClient, make_user_with_password: MakeUser) -> None:
    make_user_with_password()
    post_sign_in(client)
    for name in ("onecode", DEVICE_COOKIE):
        cookie = client.get_cookie(name)
        assert cookie is not None
        # 32 bytes in Base64; SHA-1 has 20.
        assert len(cookie.value.rpartition(".")[2]) == 43


def test_password_fields_are_masked_and_open_to_password_managers(
    client: FlaskClient, make_user_with_password: MakeUser, make_invitation_token: Callable[..., str]
) -> None:
    user = make_user_with_password()
    reset = invitation_actions.create_password_reset_link(user.id, by="tests").removeprefix("http://localhost")
    pages = [client.get(path).text for path in ("/sign-in", f"/invitations/{make_invitation_token('viewer')}", reset)]
    start_session(client, user)
    db.session.execute(update(StaffSession).values(authenticated_at=func.now() - timedelta(hours=1)))
    db.session.commit()
    pages += [client.get("/settings/profile").text, client.post("/settings/api-keys").text]
    for page in pages:
        fields = [
            field for field in re.findall("<input[^>]*>", page) if re.search('name="[^"]*(password|current)"', field)
        ]
        assert fields
        assert all('type="password"' in field for field in fields)
        assert all(re.search('autocomplete="(current|new)-password"', field) for field in fields)
        assert "onpaste" not in page
    script = (ROOT / "static/accounts.js").read_text()
    assert "paste" not in script


class TestSessionOnTheServer:
    def test_a_copy_of_the_cookie_is_useless_after_signing_out(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password()
        post_sign_in(client)
        cookie = client.get_cookie(app.config["SESSION_COOKIE_NAME"])
        assert cookie is not None
        thief = app.test_client()
        thief.set_cookie(cookie.key, cookie.value)
        assert is_signed_in(thief)
        client.post("/sign-out")
        assert not is_signed_in(thief)
        assert "Your session has ended. Please sign in again." in thief.get("/sign-in").text
        assert not db.session.scalars(select(StaffSession.id)).all()

    def test_the_audit_log_names_the_session_that_was_started_and_ended(
        self, app: Flask, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password("viewer")
        make_user_with_password("admin")
        post_sign_in(client, "viewer@example.com")
        post_sign_in(client)
        [session_id] = db.session.scalars(select(StaffSession.id))
        client.post("/sign-out")
        entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert [(entry.actor, entry.action, entry.staff_session_id == session_id) for entry in entries] == [
            ("viewer@example.com", "staff.signed_in", False),
            ("admin@example.com", "staff.signed_in", True),
            ("admin@example.com", "staff.signed_out", True),
        ]
        assert all(entry.staff_session_id for entry in entries)

    def test_signing_out_in_one_tab_signs_out_the_other(
        self, csrf_client: FlaskClient, make_staff_user: MakeUser
    ) -> None:
        start_session(csrf_client, make_staff_user("manager"))
        page = csrf_client.get("/offers/new").text
        token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
        csrf_client.post("/sign-out", data={"csrf_token": token})
        response = csrf_client.post("/offers/new", data={"name": "Summer", "csrf_token": token})
        assert response.status_code == 400
        assert "Please sign in again" in response.text
        assert ">Summer</textarea>" in response.text

    def test_input_is_kept_when_the_session_was_ended_elsewhere(
        self, csrf_client: FlaskClient, make_staff_user: MakeUser
    ) -> None:
        start_session(csrf_client, make_staff_user("manager"))
        page = csrf_client.get("/offers/new").text
        token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
        db.session.execute(text("delete from staff_session"))
        db.session.commit()
        response = csrf_client.post("/offers/new", data={"name": "Summer", "csrf_token": token})
        assert response.status_code == 400
        assert "Please sign in again" in response.text
        assert ">Summer</textarea>" in response.text

    @pytest.mark.parametrize("column", ["created_at", "last_used_at"])
    @pytest.mark.parametrize("days", [15, -15], ids=["forwards", "backwards"])
    def test_a_clock_that_jumps_leads_to_the_sign_in_page(self, sign_in: SignIn, column: str, days: int) -> None:
        client = sign_in("viewer")
        db.session.execute(update(StaffSession).values({column: func.now() - timedelta(days=days)}))
        db.session.commit()
        response = client.get("/settings/profile")
        assert (response.status_code, response.location) == (302, "/sign-in?next=/settings/profile")
        assert client.get("/").location.startswith("/sign-in")

    def test_a_session_that_is_deleted_during_its_request_ends_afterwards(
        self, app: Flask, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = sign_in("manager")
        view = app.view_functions["staff.home.index"]

        def delete_and_view() -> Any:
            with db.engine.begin() as connection:
                connection.execute(text("delete from staff_session"))
            return view()

        monkeypatch.setitem(app.view_functions, "staff.home.index", delete_and_view)
        assert client.get("/").status_code == 200
        assert client.get("/").status_code == 302

    def test_a_request_loads_session_and_user_by_one_statement(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        with recorded_statements() as statements:
            assert client.get("/offers").status_code == 200
        assert [statement for statement, _ in statements if "staff_" in statement] == [statements[0][0]]

    def test_api_calls_do_not_load_a_session(self, sign_in: SignIn, api: FlaskClient) -> None:
        sign_in("viewer")
        with recorded_statements() as statements:
            assert api.get("/api/v1/offers").status_code == 200
        assert not [statement for statement, _ in statements if "staff_" in statement]

    @pytest.mark.parametrize(
        ("user_agent", "stored"),
        [("x" * 8192, "x" * 300), ("a\x01\x7fb ☕".encode().decode("latin-1"), "a b ☕"), ("", "")],
    )
    def test_any_user_agent_is_stored(
        self, client: FlaskClient, make_user_with_password: MakeUser, user_agent: str, stored: str
    ) -> None:
        make_user_with_password()
        data = {"email": "admin@example.com", "password": PASSWORD}
        assert client.post("/sign-in", data=data, headers={"User-Agent": user_agent}).status_code == 302
        assert db.session.scalars(select(StaffSession.user_agent)).one() == stored
        assert client.get("/settings/profile/sessions").status_code == 200

    def test_the_last_use_is_recorded_with_its_address(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        db.session.execute(update(StaffSession).values(last_used_at=func.now() - timedelta(hours=1)))
        db.session.commit()
        assert client.get("/settings/profile", environ_base={"REMOTE_ADDR": "2001:db8::7"}).status_code == 200
        recent = StaffSession.last_used_at > func.now() - timedelta(minutes=1)
        assert db.session.execute(select(StaffSession.client_address, recent)).all() == [("2001:db8::7", True)]

    def test_a_page_that_refreshes_itself_does_not_count_as_use(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        db.session.execute(update(StaffSession).values(last_used_at=func.now() - timedelta(hours=11)))
        db.session.commit()
        recent = select(StaffSession.last_used_at > func.now() - timedelta(minutes=1))
        here = {"REMOTE_ADDR": "192.0.2.1"}
        assert client.get("/now", headers={"HX-Request": "true"}, environ_base=here).status_code == 200
        assert db.session.scalars(recent).all() == [False]
        client.post("/offers/new", headers={"HX-Request": "true"}, environ_base=here)
        assert db.session.scalars(recent).all() == [True]

    @pytest.mark.parametrize(("path", "address"), [("/customers", "192.0.2.1"), ("/now", "203.0.113.7")])
    def test_the_header_of_a_refresh_hides_no_use(self, sign_in: SignIn, path: str, address: str) -> None:
        client = sign_in("viewer")
        db.session.execute(update(StaffSession).values(last_used_at=func.now() - timedelta(hours=11)))
        db.session.commit()
        client.get(path, headers={"HX-Request": "true"}, environ_base={"REMOTE_ADDR": address})
        recent = StaffSession.last_used_at > func.now() - timedelta(minutes=1)
        assert db.session.execute(select(StaffSession.client_address, recent)).all() == [(address, True)]

    def test_a_refresh_with_a_former_token_keeps_the_cookie(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        db.session.execute(text("delete from staff_session"))
        db.session.commit()
        response = client.get("/offers", headers={"HX-Request": "true"})
        assert (response.status_code, response.headers.getlist("Set-Cookie")) == (401, [])

    def test_signing_in_again_replaces_the_session_of_the_browser(
        self, client: FlaskClient, make_user_with_password: MakeUser
    ) -> None:
        make_user_with_password()
        for _ in range(3):
            post_sign_in(client)
        assert db.session.scalar(select(func.count()).select_from(StaffSession)) == 1
        assert db.session.scalar(select(func.count()).select_from(StaffDevice)) == 1


class TestSessionPage:
    def test_the_page_lists_the_own_sessions(self, app: Flask, client: FlaskClient, make_staff_user: MakeUser) -> None:
        user = make_staff_user("viewer")
        start_session(app.test_client(), make_staff_user("admin"))
        start_session(client, user)
        start_session(app.test_client(), user)
        firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:141.0) Gecko/20100101 Firefox/141.0"
        db.session.execute(update(StaffSession).values(last_used_at=func.now() - timedelta(minutes=2)))
        db.session.commit()
        headers = {"User-Agent": firefox}
        page = client.get("/settings/profile/sessions", headers=headers).text
        assert page.count('data-confirm="Sign out of this session') == 2
        assert page.count("This session") == 1
        assert "Firefox on Linux" in page
        assert "Sign out everywhere else" in page

    def test_markup_in_a_user_agent_is_escaped(self, app: Flask, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        db.session.execute(update(StaffSession).values(user_agent="<script>alert(1)</script>"))
        db.session.commit()
        assert "<script>alert" not in client.get("/settings/profile/sessions").text

    def test_another_session_is_ended(self, app: Flask, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        user = db.session.scalars(select(StaffUser)).one()
        other = app.test_client()
        start_session(other, user)
        row_id = db.session.scalar(select(func.max(StaffSession.id)))
        response = client.post(f"/settings/profile/sessions/{row_id}/end", follow_redirects=True)
        assert "The session was ended." in response.text
        assert (is_signed_in(client), is_signed_in(other)) == (True, False)

    def test_ending_this_session_signs_out(self, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        row_id = db.session.scalars(select(StaffSession.id)).one()
        assert client.post(f"/settings/profile/sessions/{row_id}/end").location == "/sign-in"
        assert not is_signed_in(client)

    def test_the_session_of_another_user_is_not_ended(
        self, app: Flask, sign_in: SignIn, make_staff_user: MakeUser
    ) -> None:
        other = app.test_client()
        start_session(other, make_staff_user("admin"))
        row_id = db.session.scalars(select(StaffSession.id)).one()
        client = sign_in("viewer")
        for path in (str(row_id), "999999999"):
            assert client.post(f"/settings/profile/sessions/{path}/end").status_code == 302
        client.post("/settings/profile/sessions/end-others")
        assert (is_signed_in(client), is_signed_in(other)) == (True, True)

    def test_all_other_sessions_are_ended(self, app: Flask, sign_in: SignIn) -> None:
        client = sign_in("viewer")
        user = db.session.scalars(select(StaffUser)).one()
        others = [app.test_client() for _ in range(2)]
        for other in others:
            start_session(other, user)
        page = client.post("/settings/profile/sessions/end-others", follow_redirects=True).text
        assert "You were signed out everywhere else." in page
        assert "Sign out everywhere else" not in page
        assert [is_signed_in(item) for item in (client, *others)] == [True, False, False]
