"""Effects of settings and of a database outage on requests, in separate apps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from webapp import create_app
from webapp.core import settings as app_settings
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.request_limits import MAX_FIELDS
from webapp.views.security_headers import SECURITY_HEADERS


@pytest.fixture
def make_app(app: Flask, test_settings: app_settings.Settings) -> Iterator[Callable[..., Flask]]:
    """Create apps with other settings than those of the tests."""

    def make(**settings: Any) -> Flask:
        environment = {
            "DATABASE_URL": test_settings.libpq_url,
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(test_settings.instance_path),
        }
        other = create_app(app_settings.load_settings(environment | settings))
        other.config["WTF_CSRF_ENABLED"] = False
        return other

    yield make
    # Reset the queue of this process to the database of the other tests.
    task_queue.init_app(app)


@pytest.mark.parametrize(("proxies", "address"), [("", "127.0.0.1"), ("1", "203.0.113.7")])
def test_a_forwarded_address_is_used_only_behind_trusted_proxies(
    make_app: Callable[..., Flask], proxies: str, address: str
) -> None:
    other = make_app(TRUSTED_PROXIES=proxies)
    addresses = []
    other.before_request(lambda: addresses.append(request.remote_addr))

    other.test_client().get("/healthz", headers={"X-Forwarded-For": "203.0.113.7"})

    assert addresses == [address]


@pytest.mark.parametrize("path", ["/sign-in", "/invitations/some-token", "/settings/profile/password"])
def test_no_password_is_rendered_during_a_database_outage(make_app: Callable[..., Flask], path: str) -> None:
    outage_app = make_app(DATABASE_URL="postgresql://127.0.0.1:1/nowhere")
    client = outage_app.test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1.1"
    secret = "correct horse battery"
    fields = dict.fromkeys(("password", "confirm", "current"), secret)

    response = client.post(path, data={"name": "Ada", "email": "ada@example.com", **fields})

    assert response.status_code == 503
    assert secret not in response.text


def test_typed_input_is_shown_again_during_a_database_outage(make_app: Callable[..., Flask]) -> None:
    client = make_app(DATABASE_URL="postgresql://127.0.0.1:1/nowhere").test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1.1"

    response = client.post("/offers/new", data={"name": "Summer <sale>", "csrf_token": "spent"})

    assert response.status_code == 503
    assert 'value="Summer &lt;sale&gt;"' in response.text
    assert "spent" not in response.text


def test_a_refused_form_is_no_further_error_during_a_database_outage(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_app(DATABASE_URL="postgresql://127.0.0.1:1/nowhere").test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1.1"

    response = client.post("/offers/new", data="&" * MAX_FIELDS, content_type="application/x-www-form-urlencoded")

    assert response.status_code == 503
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("public_url", "name"),
    [
        ("https://offers.shop.example", "__Host-onecode"),
        ("http://127.0.0.1:8010", "onecode_8010"),
        ("", "onecode_8003"),
    ],
)
def test_web_processes_behind_one_public_url_share_the_session_cookie(
    make_app: Callable[..., Flask], public_url: str, name: str
) -> None:
    first, other = make_app(PUBLIC_URL=public_url, PORT="8003"), make_app(PUBLIC_URL=public_url, PORT="8004")
    assert first.config["SESSION_COOKIE_NAME"] == name
    assert not public_url or other.config["SESSION_COOKIE_NAME"] == name


@pytest.mark.parametrize(
    ("public", "secure"), [("https://offers.shop.example", True), ("http://localhost:8003", False)]
)
def test_the_session_cookie_is_hidden_from_scripts_and_other_sites(
    make_app: Callable[..., Flask], public: str, secure: bool
) -> None:
    cookie = make_app(PUBLIC_URL=public).test_client().post("/sign-out").headers["Set-Cookie"]

    flags = {part.strip() for part in cookie.split(";")[1:]}
    assert flags == {"HttpOnly", "Path=/", "SameSite=Lax"} | ({"Secure"} if secure else set())


def test_a_database_error_shows_no_parameters(app: Flask) -> None:
    with pytest.raises(DBAPIError) as raised:
        db.session.execute(text("select 1 / (length(:email) - length(:email))"), {"email": "ada@example.com"})
    db.session.rollback()

    assert "division by zero" in str(raised.value)
    assert "ada@example.com" not in str(raised.value)


@pytest.mark.parametrize("path", ["/sign-in", "/redeem", "/healthz", "/no-such-page", "/api/v1/offers"])
def test_every_response_has_the_security_headers(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers

    assert set(headers["Content-Security-Policy"].split("; ")) == {
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "font-src 'self'",
        "connect-src 'self'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    }  # fmt: skip
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "same-origin")
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/sign-in", "/redeem", "/healthz", "/no-such-page", "/api/v1/offers", "/static/app.js"]
)
def test_with_https_every_response_requires_it_for_a_year(make_app: Callable[..., Flask], path: str) -> None:
    values = [
        make_app(PUBLIC_URL=f"{scheme}://offers.shop.example")
        .test_client()
        .get(path)
        .headers.get("Strict-Transport-Security")
        for scheme in ("https", "http")
    ]

    assert values == ["max-age=31536000; includeSubDomains", None]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/sign-in", "text/html; charset=utf-8"),
        ("/colour/1a73e8.css", "text/css; charset=utf-8"),
        ("/static/app.css", "text/css; charset=utf-8"),
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/logo.svg", "image/svg+xml; charset=utf-8"),
        ("/customers/import/sample.csv", "text/csv; charset=utf-8"),
        ("/healthz", "application/json"),
        ("/api/v1/offers", "application/problem+json"),
    ],
)
def test_every_response_has_its_media_type_and_charset(staff: FlaskClient, path: str, content_type: str) -> None:
    assert staff.get(path).headers["Content-Type"].replace('"', "") == content_type


@pytest.mark.parametrize("path", ["/", "/redeem", "/api/v1/offers", "/healthz", "/static/app.js"])
def test_trace_is_not_supported(client: FlaskClient, path: str) -> None:
    response = client.open(path, method="TRACE", headers={"X-Secret": "echo"})

    assert response.status_code == 405
    assert "echo" not in response.text


@pytest.mark.parametrize("path", ["/static", "/static/", "/static/vendor/", "/static/../webapp/", "/.git/config"])
def test_no_folder_is_listed(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_debug_mode_of_flask_shows_no_internals(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    other = make_app()

    def fail() -> NoReturn:
        raise ValueError("internal detail")

    other.view_functions["healthz"] = fail
    response = other.test_client().get("/healthz")

    assert (other.debug, response.status_code) == (False, 500)
    assert "internal detail" not in response.text


def test_caches_keep_pages_and_fragments_apart(client: FlaskClient) -> None:
    assert client.get("/sign-in").headers["Vary"] == "HX-Request, Cookie"


def test_static_files_may_be_cached(client: FlaskClient) -> None:
    assert client.get("/static/app.js").headers["Cache-Control"] == "max-age=3600, public"


@pytest.mark.parametrize(
    ("method", "request_headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 304),
        ("GET", {"Range": "bytes=99999999-"}, 416),
        ("POST", {}, 405),
    ],
)
def test_static_files_have_the_security_headers_and_are_not_shared_with_other_sites(
    client: FlaskClient, method: str, request_headers: dict[str, str], status: int
) -> None:
    response = client.open("/static/app.js", method=method, headers=request_headers)
    headers = response.headers

    assert response.status_code == status
    assert {name: headers.get(name) for name, _value in SECURITY_HEADERS} == dict(SECURITY_HEADERS)
    assert "Access-Control-Allow-Origin" not in headers


def test_the_redirect_to_the_right_spelling_of_a_path_stays_on_the_host(client: FlaskClient) -> None:
    response = client.get("/static//app.js?v=1&v=%C3%A4", headers={"Host": "evil.example"})

    assert (response.status_code, response.headers["Location"]) == (308, "/static/app.js?v=1&v=%C3%A4")


@pytest.mark.parametrize(
    ("path", "media_type"), [("/healthz", "text/html"), ("/api/v1/validations", "application/problem+json")]
)
def test_a_wrong_method_returns_the_allowed_ones(api: FlaskClient, path: str, media_type: str) -> None:
    response = api.put(path)

    assert (response.status_code, response.mimetype) == (405, media_type)
    assert set(response.headers["Allow"].split(", ")) == (
        {"GET", "HEAD", "OPTIONS"} if path == "/healthz" else {"OPTIONS", "POST"}
    )


@pytest.mark.parametrize("path", ["/api/v1/offers", "/offers/new", "/redeem"])
def test_responses_during_a_database_outage_have_a_retry_after_header(
    make_app: Callable[..., Flask], path: str
) -> None:
    client = make_app(DATABASE_URL="postgresql://127.0.0.1:1/nowhere").test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1.1"

    response = client.post(
        path,
        data=None if path.startswith("/api/") else {"code": "SUMMER25", "email": "ada@example.com"},
        headers={"Authorization": "Bearer onecode_live_abc_secret"},
    )

    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
