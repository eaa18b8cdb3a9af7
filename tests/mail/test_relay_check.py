"""Settings → Shop → Check the relay: in plain words what is wrong. The relay is real, and nothing is ever sent."""

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
def checked(app: Flask, relay: Relay, with_settings: Change) -> Callable[..., RelayCheckResult]:
    """The finding about a relay, with the app's settings changed: `checked(mail_use_tls=True)`."""

    def go(**values: object) -> RelayCheckResult:
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
            assert not [said for said in relay.commands if said.upper().startswith(("RCPT", "DATA"))]

    return go


def test_a_relay_that_takes_our_mail_is_said_so(checked: Callable[..., RelayCheckResult], relay: Relay) -> None:
    finding = checked()
    assert finding.is_ok
    assert f"127.0.0.1, port {relay.port} accepts email from offers@example.com." in finding.message
    assert relay.commands[-2] == "mail FROM:<offers@example.com>"
    assert relay.commands[-1].upper() == "QUIT"


def test_nobody_there(checked: Callable[..., RelayCheckResult]) -> None:
    finding = checked(mail_port=1)
    assert (finding.is_ok, finding.message) == (False, "127.0.0.1, port 1 refused the connection.")
    assert "MAIL_PORT" in finding.hint


def test_no_such_machine(checked: Callable[..., RelayCheckResult], monkeypatch: pytest.MonkeyPatch) -> None:
    finding = checked(mail_server="no-such-machine.invalid")
    assert not finding.is_ok
    assert "The server name can't be resolved: no-such-machine.invalid" in finding.message


def test_a_machine_that_says_nothing(checked: Callable[..., RelayCheckResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = checked(mail_port=silent.getsockname()[1])
    assert not finding.is_ok
    assert "timed out" in finding.message


def test_a_wrong_password(checked: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.auth = "535 5.7.8 wrong"
    finding = checked(mail_username="ada", mail_password="no")
    assert not finding.is_ok
    assert "rejects the sign-in as ada. Its reply: 535 5.7.8 wrong" in finding.message
    assert "MAIL_PASSWORD" in finding.hint


def test_a_right_password_and_no_encryption(checked: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.auth = "235 welcome"
    finding = checked(mail_username="ada", mail_password="yes")
    assert finding.is_ok
    assert "Signed in as ada." in finding.message


def test_a_user_name_without_a_password(checked: Callable[..., RelayCheckResult]) -> None:
    finding = checked(mail_username="ada")
    assert not finding.is_ok
    assert "MAIL_PASSWORD" in finding.hint


def test_a_relay_without_encryption(checked: Callable[..., RelayCheckResult]) -> None:
    finding = checked(mail_use_tls=True)
    assert not finding.is_ok
    assert "does not support encryption" in finding.message


def test_a_relay_that_does_not_begin_with_encryption(checked: Callable[..., RelayCheckResult]) -> None:
    finding = checked(mail_use_ssl=True)
    assert not finding.is_ok
    assert "does not use TLS from the start" in finding.message
    assert "MAIL_USE_TLS" in finding.hint


def test_a_sender_that_the_relay_will_not_have(checked: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.mail = "553 5.7.1 not yours"
    finding = checked()
    assert not finding.is_ok
    assert "does not accept email from offers@example.com. Its reply: 553 5.7.1 not yours" in finding.message


@pytest.mark.parametrize("greeting", ["554 go away", "421 later", "what?", "drop"])
def test_a_relay_that_will_not_talk(checked: Callable[..., RelayCheckResult], relay: Relay, greeting: str) -> None:
    relay.behaviour.greeting = greeting
    finding = checked()
    assert not finding.is_ok
    assert finding.hint


def test_the_page_says_it_with_and_without_scripts(staff: FlaskClient, relay: Relay) -> None:
    piece = staff.post("/settings/shop/relay", headers={"HX-Request": "true"}).text
    assert piece.lstrip().startswith("<section")
    page = staff.post("/settings/shop/relay").text
    assert all("accepts email from" in text for text in (piece, page))
    relay.behaviour.mail = "553 no"
    assert "does not accept email from" in staff.post("/settings/shop/relay").text
