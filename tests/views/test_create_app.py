"""What the settings and the state of the database change at the doors, on apps of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, request

from webapp import create_app
from webapp.core import settings as app_settings
from webapp.core import task_queue


@pytest.fixture
def an_app(app: Flask, test_settings: app_settings.Settings) -> Iterator[Callable[..., Flask]]:
    """Makes apps with other settings than the tests'."""

    def make(**given: Any) -> Flask:
        environment = {
            "DATABASE_URL": test_settings.libpq_url,
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(test_settings.instance_path),
        }
        other = create_app(app_settings.load_settings(environment | given))
        other.config["WTF_CSRF_ENABLED"] = False
        return other

    yield make
    # This process's queue goes on with the database of the other tests.
    task_queue.init_app(app)


@pytest.mark.parametrize(("proxies", "seen"), [("", "127.0.0.1"), ("1", "203.0.113.7")])
def test_a_forwarded_address_is_believed_only_when_told_to(
    an_app: Callable[..., Flask], proxies: str, seen: str
) -> None:
    other = an_app(TRUSTED_PROXIES=proxies)
    told = []
    other.before_request(lambda: told.append(request.remote_addr))

    other.test_client().get("/healthz", headers={"X-Forwarded-For": "203.0.113.7"})

    assert told == [seen]


@pytest.mark.parametrize("path", ["/sign-in", "/invitations/some-token", "/settings/profile/password"])
def test_no_password_is_written_into_a_page_when_the_database_is_away(an_app: Callable[..., Flask], path: str) -> None:
    away = an_app(DATABASE_URL="postgresql://127.0.0.1:1/nowhere")
    client = away.test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1.1"
    secret = "correct horse battery"
    fields = dict.fromkeys(("password", "confirm", "current"), secret)

    answer = client.post(path, data={"name": "Ada", "email": "ada@example.com", **fields})

    assert answer.status_code == 503
    assert secret not in answer.text


def test_what_staff_typed_is_offered_again_when_the_database_is_away(an_app: Callable[..., Flask]) -> None:
    client = an_app(DATABASE_URL="postgresql://127.0.0.1:1/nowhere").test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1.1"

    answer = client.post("/offers/new", data={"name": "Summer <sale>", "csrf_token": "spent"})

    assert answer.status_code == 503
    assert 'value="Summer &lt;sale&gt;"' in answer.text
    assert "spent" not in answer.text


@pytest.mark.parametrize(
    ("public", "name"),
    [("https://offers.shop.example", "onecode"), ("http://127.0.0.1:8010", "onecode_8010"), ("", "onecode_8003")],
)
def test_web_processes_on_two_ports_behind_one_address_share_their_sessions(
    an_app: Callable[..., Flask], public: str, name: str
) -> None:
    one, other = an_app(PUBLIC_URL=public, PORT="8003"), an_app(PUBLIC_URL=public, PORT="8004")
    assert one.config["SESSION_COOKIE_NAME"] == name
    assert not public or other.config["SESSION_COOKIE_NAME"] == name
