"""Settings → Shop → Check the relay. The relay is real, and no email is sent."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.smtp_relay import Relay
from webapp.core.settings import Settings
from webapp.mail import relay_check, timeouts
from webapp.mail.relay_check import RelayCheckResult

Change = Callable[..., Settings]


@pytest.fixture
def check(app: Flask, relay: Relay, with_settings: Change) -> Callable[..., RelayCheckResult]:
    """Checks the relay with changed settings: `check(mail_use_tls=True)`."""

    def run_check(**values: object) -> RelayCheckResult:
        settings = with_settings(**values)
        state = app.extensions["mail"]
        before = {name: getattr(state, name) for name in ("use_tls", "use_ssl", "username", "password")}
        state.use_tls, state.use_ssl = settings.mail_use_tls, settings.mail_use_ssl
        state.username, state.password = settings.mail_username, settings.mail_password
        try:
            return relay_check.check_relay_connection()
        finally:
            for name, value in before.items():
                setattr(state, name, value)
            assert relay.messages == []
            assert not [command for command in relay.commands if command.upper().startswith(("RCPT", "DATA"))]

    return run_check


def test_a_working_relay_is_ok(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    result = check()
    assert result.is_ok
    assert f"127.0.0.1, port {relay.port} accepts email from offers@example.com." in result.message
    assert relay.commands[-2] == "mail FROM:<offers@example.com>"
    assert relay.commands[-1].upper() == "QUIT"


def test_a_closed_port_is_reported(check: Callable[..., RelayCheckResult]) -> None:
    result = check(mail_port=1)
    assert (result.is_ok, result.message) == (False, "127.0.0.1, port 1 refused the connection.")
    assert "MAIL_PORT" in result.hint


def test_an_unknown_host_is_reported(check: Callable[..., RelayCheckResult]) -> None:
    result = check(mail_server="no-such-machine.invalid")
    assert not result.is_ok
    assert "The server name can't be resolved: no-such-machine.invalid" in result.message


def test_a_silent_host_is_reported(check: Callable[..., RelayCheckResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = check(mail_port=silent.getsockname()[1])
    assert not result.is_ok
    assert "timed out" in result.message


def test_a_wrong_password_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.auth = "535 5.7.8 wrong"
    result = check(mail_username="ada", mail_password="no")
    assert not result.is_ok
    assert "rejects the sign-in as ada. Its reply: 535 5.7.8 wrong" in result.message
    assert "MAIL_PASSWORD" in result.hint


def test_a_sign_in_without_encryption_is_ok(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.auth = "235 welcome"
    result = check(mail_username="ada", mail_password="yes")
    assert result.is_ok
    assert "Signed in as ada." in result.message


def test_a_user_name_without_a_password_is_reported(check: Callable[..., RelayCheckResult]) -> None:
    result = check(mail_username="ada")
    assert not result.is_ok
    assert "MAIL_PASSWORD" in result.hint


def test_a_relay_without_starttls_is_reported(check: Callable[..., RelayCheckResult]) -> None:
    result = check(mail_use_tls=True)
    assert not result.is_ok
    assert "does not support encryption" in result.message


def test_a_relay_without_implicit_tls_is_reported(check: Callable[..., RelayCheckResult]) -> None:
    result = check(mail_use_ssl=True)
    assert not result.is_ok
    assert "does not use TLS from the start" in result.message
    assert "MAIL_USE_TLS" in result.hint


def test_a_rejected_sender_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.mail = "553 5.7.1 not yours"
    result = check()
    assert not result.is_ok
    assert "does not accept email from offers@example.com. Its reply: 553 5.7.1 not yours" in result.message


@pytest.mark.parametrize("greeting", ["554 go away", "421 later", "what?", "drop"])
def test_an_unusable_greeting_is_reported(check: Callable[..., RelayCheckResult], relay: Relay, greeting: str) -> None:
    relay.behaviour.greeting = greeting
    result = check()
    assert not result.is_ok
    assert result.hint


def test_the_page_shows_the_result_with_and_without_scripts(staff: FlaskClient, relay: Relay) -> None:
    fragment = staff.post("/settings/shop/relay", headers={"HX-Request": "true"}).text
    assert fragment.lstrip().startswith("<section")
    page = staff.post("/settings/shop/relay").text
    assert all("accepts email from" in text for text in (fragment, page))
    relay.behaviour.mail = "553 no"
    assert "does not accept email from" in staff.post("/settings/shop/relay").text
