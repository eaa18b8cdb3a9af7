"""Effects of settings and of a database outage on requests, in separate apps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, request

from webapp import create_app
from webapp.core import settings as app_settings
from webapp.core import task_queue


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


@pytest.mark.parametrize(
    ("public_url", "name"),
    [("https://offers.shop.example", "onecode"), ("http://127.0.0.1:8010", "onecode_8010"), ("", "onecode_8003")],
)
def test_web_processes_behind_one_public_url_share_the_session_cookie(
    make_app: Callable[..., Flask], public_url: str, name: str
) -> None:
    first, other = make_app(PUBLIC_URL=public_url, PORT="8003"), make_app(PUBLIC_URL=public_url, PORT="8004")
    assert first.config["SESSION_COOKIE_NAME"] == name
    assert not public_url or other.config["SESSION_COOKIE_NAME"] == name
