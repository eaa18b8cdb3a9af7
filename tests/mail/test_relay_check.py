"""Settings → Shop → Check the relay. The relay is real, and no email is sent."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.smtp_relay import Relay
from webapp.core.settings import Settings
from webapp.mail import relay_check, smtp, timeouts
from webapp.mail.relay_check import RelayCheckResult
from webapp.mail.smtp import RelayRejected

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
    message = f"127.0.0.1, port {relay.port} accepts email from offers@example.com."
    assert check() == RelayCheckResult(True, message)
    assert relay.commands[-2] == "mail FROM:<offers@example.com>"
    assert relay.commands[-1].upper() == "QUIT"


UNENCRYPTED = "Emails are sent unencrypted. Set MAIL_USE_TLS=true, or MAIL_USE_SSL=true if the relay requires it."
PASSWORD_UNENCRYPTED = UNENCRYPTED.replace("Emails are", "Emails and the password are")
MAIL_SINK = (
    "This is the built-in mail sink, which stores emails and does not send them. Set MAIL_SERVER before you email "
    "customers."
)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"mail_server": "localhost"}, ""),
        ({"mail_server": "localhost", "mail_username": "ada", "mail_password": "yes"}, ""),
        # An address of this computer that is not known to be one.
        ({"mail_server": "0.0.0.0"}, UNENCRYPTED),
        ({"mail_server": "0.0.0.0", "mail_username": "ada", "mail_password": "yes"}, PASSWORD_UNENCRYPTED),
        ({"uses_mail_sink": True}, MAIL_SINK),
    ],
)
def test_a_working_relay_has_a_hint_about_its_security(
    check: Callable[..., RelayCheckResult], relay: Relay, values: dict[str, Any], hint: str
) -> None:
    relay.behaviour.auth = "235 welcome"
    server = values.get("mail_server", "127.0.0.1")
    accepted = f"{server}, port {relay.port} accepts email from offers@example.com."
    signed_in = " Signed in as ada." if "mail_username" in values else ""
    assert check(**values) == RelayCheckResult(True, accepted + signed_in, hint)


@pytest.mark.parametrize("setting", ["mail_use_tls", "mail_use_ssl"])
@pytest.mark.parametrize("values", [{}, {"mail_username": "ada"}])
def test_an_encrypted_relay_is_ok(with_settings: Change, setting: str, values: dict[str, str]) -> None:
    settings = with_settings(mail_server="relay.example.com", **{setting: True}, **values)
    sentences = ["The connection is encrypted and the certificate is valid."]
    assert relay_check._describe_security(settings) == sentences + ["Signed in as ada."] * bool(values)
    assert relay_check._suggest_improvement(settings) == ""


@pytest.mark.parametrize(
    ("server", "is_local"),
    [("localhost", True), ("127.0.0.53", True), ("::1", True), ("128.0.0.1", False), ("localhost.example.com", False)],
)
def test_a_relay_on_this_computer_needs_no_encryption(with_settings: Change, server: str, is_local: bool) -> None:
    settings = with_settings(mail_server=server)
    assert (relay_check._suggest_improvement(settings) == "") is is_local


def test_a_closed_port_is_reported(check: Callable[..., RelayCheckResult]) -> None:
    assert check(mail_port=1) == RelayCheckResult(
        False,
        "127.0.0.1, port 1 refused the connection.",
        "Check MAIL_SERVER and MAIL_PORT, and that the relay is running.",
    )


def test_an_unknown_host_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    assert check(mail_server="no-such-machine.invalid") == RelayCheckResult(
        False,
        f"The server name can't be resolved: no-such-machine.invalid, port {relay.port}.",
        "Check MAIL_SERVER for typing errors.",
    )


def test_a_silent_host_is_reported(check: Callable[..., RelayCheckResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = check(mail_port=port)
    assert result == RelayCheckResult(
        False,
        f"127.0.0.1, port {port} timed out.",
        "A firewall may block the connection, or the port may be wrong; usual ports are 25, 587 and 465.",
    )


def test_a_wrong_password_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.auth = "535 5.7.8 wrong"
    assert check(mail_username="ada", mail_password="no") == RelayCheckResult(
        False,
        f"127.0.0.1, port {relay.port} rejects the sign-in as ada. Its reply: 535 5.7.8 wrong",
        "Check MAIL_USERNAME and MAIL_PASSWORD. Some relays require an app password.",
    )


@pytest.mark.parametrize("reply", ["530 5.7.0 sign in", "534 sign in", "535 sign in", "538 sign in", "550 AUTH first"])
def test_a_relay_that_requires_a_sign_in_is_reported(
    check: Callable[..., RelayCheckResult], relay: Relay, reply: str
) -> None:
    relay.behaviour.greeting = reply
    assert check() == RelayCheckResult(
        False,
        f"127.0.0.1, port {relay.port} requires a sign-in. Its reply: {reply}",
        "Check MAIL_USERNAME and MAIL_PASSWORD. Some relays require an app password.",
    )


def test_a_user_name_without_a_password_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    assert check(mail_username="ada") == RelayCheckResult(
        False, "MAIL_USERNAME is set, but MAIL_PASSWORD is not.", "Set MAIL_PASSWORD as well."
    )
    assert relay.connections == 0


def test_a_relay_without_starttls_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    assert check(mail_use_tls=True) == RelayCheckResult(
        False,
        f"127.0.0.1, port {relay.port} does not support encryption (STARTTLS).",
        "Use another port, often 587, or MAIL_USE_SSL with port 465.",
    )


def test_a_relay_without_implicit_tls_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    assert check(mail_use_ssl=True) == RelayCheckResult(
        False,
        f"127.0.0.1, port {relay.port} does not use TLS from the start.",
        "Set MAIL_USE_TLS=true instead of MAIL_USE_SSL, or use the port for TLS, often 465.",
    )


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            RelayRejected("TLS: Hostname mismatch"),
            "The certificate of relay, port 25 can't be verified: Hostname mismatch.",
            "MAIL_SERVER must be a name in the certificate, and the certificate must not have expired.",
        ),
        (
            RelayRejected("TLS: record layer failure"),
            "relay, port 25 does not use TLS from the start.",
            "Set MAIL_USE_TLS=true instead of MAIL_USE_SSL, or use the port for TLS, often 465.",
        ),
    ],
)
def test_tls_errors_are_explained(
    check: Callable[..., RelayCheckResult],
    monkeypatch: pytest.MonkeyPatch,
    error: RelayRejected,
    message: str,
    hint: str,
) -> None:
    def fail(self: smtp.RelayConnection) -> None:
        raise error

    monkeypatch.setattr(smtp.RelayConnection, "open", fail)
    assert check(mail_server="relay", mail_port=25) == RelayCheckResult(False, message, hint)


@pytest.mark.parametrize("reply", ["553 5.7.1 not yours", "251 elsewhere", "421 later"])
def test_a_rejected_sender_is_reported(check: Callable[..., RelayCheckResult], relay: Relay, reply: str) -> None:
    relay.behaviour.mail = reply
    assert check() == RelayCheckResult(
        False,
        f"127.0.0.1, port {relay.port} does not accept email from offers@example.com. Its reply: {reply}",
        "Set MAIL_DEFAULT_SENDER to an address that the relay accepts, or ask the provider of the relay to allow this "
        "address.",
    )


def test_a_relay_that_hangs_up_at_the_sender_is_reported(check: Callable[..., RelayCheckResult], relay: Relay) -> None:
    relay.behaviour.mail = "drop"
    assert check() == RelayCheckResult(
        False,
        f"127.0.0.1, port {relay.port} closed the connection: the relay closed the connection.",
        "Try again in a moment.",
    )


@pytest.mark.parametrize(
    ("greeting", "message", "hint"),
    [
        (
            "554 go away",
            "rejects this server. Its reply: 554 go away",
            "Ask the provider of the relay to allow this server to send.",
        ),
        (
            "421 later",
            "does not accept email at the moment. Its reply: 421 later",
            "Try again in a moment.",
        ),
        (
            "what?",
            "is not usable at the moment: invalid reply: what?.",
            "Try again in a moment, and check MAIL_PORT.",
        ),
        (
            "drop",
            "is not usable at the moment: the relay closed the connection.",
            "Try again in a moment, and check MAIL_PORT.",
        ),
    ],
)
def test_an_unusable_greeting_is_reported(
    check: Callable[..., RelayCheckResult], relay: Relay, greeting: str, message: str, hint: str
) -> None:
    relay.behaviour.greeting = greeting
    assert check() == RelayCheckResult(False, f"127.0.0.1, port {relay.port} {message}", hint)


def test_the_page_shows_the_result_with_and_without_scripts(staff: FlaskClient, relay: Relay) -> None:
    fragment = staff.post("/settings/shop/relay", headers={"HX-Request": "true"}).text
    assert fragment.lstrip().startswith("<section")
    page = staff.post("/settings/shop/relay").text
    assert all("accepts email from" in text for text in (fragment, page))
    relay.behaviour.mail = "553 no"
    assert "does not accept email from" in staff.post("/settings/shop/relay").text
