"""The connection to the relay: delivery outcomes, encryption and timeouts."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask

from tests.support.smtp_relay import Relay
from webapp.core.settings import Settings
from webapp.mail import smtp, timeouts
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayRejected, RelayUnavailable

RAW = b"Subject: Hello\r\nTo: <ada@example.com>\r\n\r\nHello\r\n"


def make_message(to: str = "ada@example.com", raw: bytes = RAW) -> OutgoingMessage:
    return OutgoingMessage("shop@example.com", to, raw)


@pytest.fixture
def connection(app: Flask, relay: Relay) -> Iterator[smtp.RelayConnection]:
    with smtp.create_relay_connection() as open_relay:
        yield open_relay


def test_an_email_is_sent_even_when_testing(app: Flask, relay: Relay, connection: smtp.RelayConnection) -> None:
    assert app.testing
    connection.send(make_message())
    assert relay.message_to("ada@example.com").raw == RAW


def test_message_send_delivers_through_the_connection(
    app: Flask, relay: Relay, connection: smtp.RelayConnection
) -> None:
    make_message().send(connection)
    assert relay.recipients["ada@example.com"] == 1


def test_one_connection_sends_many_emails(relay: Relay, connection: smtp.RelayConnection) -> None:
    for n in range(5):
        connection.send(make_message(f"c{n}@example.com"))
    assert (relay.connections, len(relay.messages)) == (1, 5)


def test_lines_that_start_with_a_dot_arrive_unchanged(relay: Relay, connection: smtp.RelayConnection) -> None:
    raw = RAW + b".\r\n..two\r\n.one\r\n"
    connection.send(make_message(raw=raw))
    assert relay.message_to("ada@example.com").raw == raw


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("550 5.1.1 nobody here", "failed"), ("450 4.2.0 later", "deferred"), ("421 bye", "connection_lost")],
)
def test_a_refused_recipient_has_an_outcome(
    relay: Relay, connection: smtp.RelayConnection, reply: str, kind: str
) -> None:
    relay.behaviour.rcpt["ada@example.com"] = reply
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.code, outcome.text, outcome.stage) == (kind, int(reply[:3]), reply[4:], "RCPT")
    assert connection.is_open is (kind != "connection_lost")


def test_the_connection_is_reused_after_a_refused_recipient(relay: Relay, connection: smtp.RelayConnection) -> None:
    relay.behaviour.rcpt["bad@example.com"] = "550 no"
    connection.open()
    connection.deliver(make_message("bad@example.com"))
    connection.deliver(make_message("ada@example.com"))
    assert (relay.connections, list(relay.recipients)) == (1, ["ada@example.com"])


@pytest.mark.parametrize("step", ["rcpt", "data"])
def test_a_drop_before_the_body_is_a_lost_connection(relay: Relay, connection: smtp.RelayConnection, step: str) -> None:
    getattr(relay.behaviour, step)["*"] = "drop"
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.text) == ("connection_lost", "the relay closed the connection")
    assert (outcome.stage, connection.is_open) == ("envelope", False)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("drop", "no reply after the email was sent: the relay closed the connection"),
        ("what?", "invalid reply after the email was sent"),
        ("199 what?", "invalid reply after the email was sent"),
        ("300 what?", "invalid reply after the email was sent"),
        ("600 what?", "invalid reply after the email was sent"),
    ],
)
def test_without_a_valid_reply_after_the_body_an_email_is_uncertain(
    relay: Relay, connection: smtp.RelayConnection, reply: str, text: str
) -> None:
    relay.behaviour.body["*"] = reply
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.code, outcome.text, outcome.stage) == ("uncertain", None, text, "body")
    assert not connection.is_open


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("500 no", "failed"),
        ("554 spam", "failed"),
        ("400 later", "deferred"),
        ("451 later", "deferred"),
        ("499 later", "deferred"),
        ("421 x", "connection_lost"),
    ],
)
def test_a_refused_body_has_an_outcome(relay: Relay, connection: smtp.RelayConnection, reply: str, kind: str) -> None:
    relay.behaviour.body["*"] = reply
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.code, outcome.text, outcome.stage) == (kind, int(reply[:3]), reply[4:], "body")
    assert connection.is_open is (kind != "connection_lost")


@pytest.mark.parametrize("reply", ["299 accepted", "200 accepted"])
def test_every_2xx_reply_accepts_an_email(relay: Relay, connection: smtp.RelayConnection, reply: str) -> None:
    relay.behaviour.body["*"] = reply
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.code, outcome.text) == ("accepted", int(reply[:3]), "accepted")
    assert connection.is_open


@pytest.mark.parametrize(
    ("reply", "kind", "code", "text"),
    [
        ("553 not from you", "rejected", 553, "not from you"),
        ("500 no", "rejected", 500, "no"),
        ("451 later", "connection_lost", 451, "later"),
        ("400 later", "connection_lost", 400, "later"),
        ("300 what?", "connection_lost", None, "what?"),
        ("600 what?", "connection_lost", None, "what?"),
        ("300", "connection_lost", None, "invalid reply"),
    ],
)
def test_a_refused_sender_has_an_outcome(
    relay: Relay, connection: smtp.RelayConnection, reply: str, kind: str, code: int | None, text: str
) -> None:
    relay.behaviour.mail = reply
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.code, outcome.text, outcome.stage) == (kind, code, text, "MAIL")
    # The relay expects a body: it has accepted the pipelined DATA.
    assert not connection.is_open


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        ("550 no", RelayRejected, "550 no"),
        ("450 later", RelayUnavailable, "450 later"),
        ("drop", RelayUnavailable, "the relay closed the connection"),
    ],
)
def test_sending_a_refused_email_raises_the_reply(
    relay: Relay, connection: smtp.RelayConnection, reply: str, error: type[Exception], text: str
) -> None:
    relay.behaviour.rcpt["*"] = reply
    with pytest.raises(error) as raised:
        connection.send(make_message())
    assert str(raised.value) == text


def test_a_connection_that_was_not_opened_delivers_nothing(connection: smtp.RelayConnection) -> None:
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.text, outcome.stage) == ("connection_lost", "not connected", "connect")


def test_errors_after_acceptance_do_not_change_the_outcome(
    app: Flask, relay: Relay, connection: smtp.RelayConnection
) -> None:
    app.extensions["mail"].max_emails = 1
    relay.behaviour.quit = "drop"
    try:
        connection.open()
        kinds = [connection.deliver(make_message(f"c{n}@example.com")).kind for n in range(2)]
        connection.quit()
    finally:
        app.extensions["mail"].max_emails = None
    assert (kinds, connection.is_open) == (["accepted", "accepted"], False)


def test_a_failed_reset_does_not_change_the_outcome(relay: Relay, connection: smtp.RelayConnection) -> None:
    relay.behaviour.rcpt["*"] = "550 no"
    relay.behaviour.rset = "drop"
    connection.open()
    assert (connection.deliver(make_message()).kind, connection.is_open) == ("failed", False)


def test_a_reply_of_several_lines_is_one_text(relay: Relay, connection: smtp.RelayConnection) -> None:
    relay.behaviour.rcpt["*"] = "550-5.1.1  No\r\n550-such \r\n550 user"
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, outcome.code, outcome.text) == ("failed", 550, "5.1.1 No such user")


def test_a_reply_is_stored_without_nul_and_in_part(relay: Relay, connection: smtp.RelayConnection) -> None:
    relay.behaviour.rcpt["*"] = "550 5.1.1 no\0such " + "user " * 200
    connection.open()
    outcome = connection.deliver(make_message())
    assert outcome.text == ("5.1.1 nosuch " + "user " * 200)[:500]


@pytest.mark.parametrize(
    ("reply", "is_helo_sent", "error"),
    [
        ("500 what?", True, None),
        ("599 what?", True, None),
        ("499 later", False, RelayUnavailable),
        ("600 what?", False, RelayRejected),
        ("350 what?", False, RelayUnavailable),
    ],
)
def test_a_relay_that_does_not_know_ehlo_gets_helo(
    relay: Relay, connection: smtp.RelayConnection, reply: str, is_helo_sent: bool, error: type[Exception] | None
) -> None:
    relay.behaviour.stages["EHLO"] = reply
    relay.behaviour.uses["EHLO"] = 1
    if error is None:
        connection.send(make_message())
    else:
        with pytest.raises(error) as raised:
            connection.open()
        assert str(raised.value) == reply
        assert not connection.is_open
    assert [command.split()[0].upper() for command in relay.commands[:2]] == ["EHLO", "HELO"][: 1 + is_helo_sent]


@pytest.mark.parametrize(
    ("reply", "error"),
    [("450 later", RelayUnavailable), ("499 later", RelayUnavailable), ("500 no", RelayRejected)],
)
def test_a_refused_greeting_is_raised_with_the_reply(
    relay: Relay, connection: smtp.RelayConnection, reply: str, error: type[Exception]
) -> None:
    relay.behaviour.greeting = reply
    with pytest.raises(error) as raised:
        connection.open()
    assert str(raised.value) == reply


def test_connecting_to_a_silent_relay_times_out(app: Flask, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT", 0.2)
    relay.behaviour.greeting = "hang"
    with smtp.create_relay_connection() as connection, pytest.raises(RelayUnavailable, match="timed out"):
        connection.open()


def test_no_reply_after_the_body_is_uncertain(
    relay: Relay, connection: smtp.RelayConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "REPLY_TIMEOUT", 0.2)
    relay.behaviour.body["*"] = "hang"
    connection.open()
    assert connection.deliver(make_message()).kind == "uncertain"


def test_a_refused_connection_means_an_unavailable_relay(app: Flask) -> None:
    with smtp.create_relay_connection() as connection, pytest.raises(RelayUnavailable, match="Connection refused"):
        connection.open()


def test_a_wrong_password_means_a_rejecting_relay(app: Flask, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.extensions["mail"], "username", "shop")
    monkeypatch.setattr(app.extensions["mail"], "password", "wrong")
    relay.behaviour.auth = "535 5.7.8 bad password"
    with smtp.create_relay_connection() as connection, pytest.raises(RelayRejected, match="535"):
        connection.open()


def test_a_relay_without_starttls_is_refused_when_tls_is_required(
    app: Flask, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.extensions["mail"], "use_tls", True)
    with smtp.create_relay_connection() as connection, pytest.raises(RelayRejected, match="STARTTLS"):
        connection.open()


def test_an_untrusted_certificate_is_refused(
    app: Flask, relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app.extensions["mail"], "use_tls", True)
    relay.behaviour.starttls = _certificate(tmp_path)
    with (
        smtp.create_relay_connection() as connection,
        pytest.raises(RelayRejected, match="TLS: self-signed certificate"),
    ):
        connection.open()


def test_a_trusted_certificate_is_accepted(
    app: Flask, relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app.extensions["mail"], "use_tls", True)
    relay.behaviour.starttls = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with smtp.create_relay_connection() as connection:
        connection.send(make_message())
    assert relay.recipients["ada@example.com"] == 1


def test_an_idna_domain_is_not_changed(relay: Relay, connection: smtp.RelayConnection) -> None:
    connection.send(make_message("ada@xn--fa-hia.de"))
    assert "RCPT TO:<ada@xn--fa-hia.de>" in [command.replace("rcpt", "RCPT") for command in relay.commands]


def test_a_non_ascii_local_part_is_sent_with_smtputf8(relay: Relay, connection: smtp.RelayConnection) -> None:
    connection.open()
    assert connection.deliver(make_message("adà@example.com")).kind == "accepted"
    connection.deliver(make_message("ada@example.com"))
    assert list(relay.recipients) == ["adà@example.com", "ada@example.com"]


def test_a_non_ascii_local_part_fails_without_smtputf8(relay: Relay, connection: smtp.RelayConnection) -> None:
    relay.behaviour.smtputf8 = False
    connection.open()
    outcome = connection.deliver(make_message("adà@example.com"))
    text = "the relay does not accept non-ASCII addresses (SMTPUTF8)"
    assert (outcome.kind, outcome.text, outcome.stage) == ("failed", text, "address")


@pytest.mark.parametrize("address", ["ada@example.com\r\nDATA", "ada@example.com> <eve@example.com", "ada@x\nRSET"])
def test_an_address_with_a_line_break_never_reaches_the_relay(
    relay: Relay, connection: smtp.RelayConnection, address: str
) -> None:
    connection.open()
    outcome = connection.deliver(make_message(address))
    assert (outcome.kind, outcome.text) == ("failed", "the address has invalid characters")
    assert (outcome.stage, connection.is_open) == ("address", True)
    assert not [command for command in relay.commands if command.lower().startswith(("mail", "rcpt"))]


def test_an_email_aborted_before_its_body_is_not_sent(relay: Relay, connection: smtp.RelayConnection) -> None:
    connection.open()
    assert connection.deliver(make_message(), may_send=lambda: False).kind == "aborted"
    assert (relay.messages, connection.is_open) == ([], False)


def _certificate(folder: Path) -> ssl.SSLContext:
    """A server context with a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


# --- endless replies --------------------------------------------------------------------------------


def test_a_reply_that_is_too_long_makes_the_outcome_uncertain(relay: Relay, connection: smtp.RelayConnection) -> None:
    relay.behaviour.body["*"] = "250-" + "\r\n250-".join("x" * 900 for _ in range(100))
    connection.open()
    outcome = connection.deliver(make_message())
    assert (outcome.kind, connection.is_open) == ("uncertain", False)
    assert outcome.text == "no reply after the email was sent: the reply is too long"


def test_an_interrupted_handshake_means_an_unavailable_relay(
    app: Flask, with_settings: Callable[..., Settings]
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        client, _ = listener.accept()
        client.recv(100)
        client.close()

    threading.Thread(target=hang_up, daemon=True).start()
    with_settings(mail_port=listener.getsockname()[1])
    app.extensions["mail"].use_ssl = True
    try:
        with smtp.create_relay_connection() as connection, pytest.raises(RelayUnavailable):
            connection.open()
    finally:
        app.extensions["mail"].use_ssl = False
        listener.close()


def test_a_relay_without_implicit_tls_means_a_rejecting_relay(
    app: Flask, relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    app.extensions["mail"].use_ssl = True
    try:
        with smtp.create_relay_connection() as connection, pytest.raises(RelayRejected, match="wrong version number"):
            connection.open()
    finally:
        app.extensions["mail"].use_ssl = False


@pytest.mark.parametrize(("server", "password"), [("127.0.0.1", "pässwort"), ("relay..example.com", "secret")])
def test_settings_with_invalid_characters_are_reported(app: Flask, relay: Relay, server: str, password: str) -> None:
    relay.behaviour.auth = "235 ok"
    state = app.extensions["mail"]
    before = state.server
    state.server, state.username, state.password = server, "shop", password
    try:
        with smtp.create_relay_connection() as connection, pytest.raises(RelayRejected, match="has invalid characters"):
            connection.open()
    finally:
        state.server, state.username, state.password = before, None, None


def test_a_reply_from_before_the_tls_handshake_is_ignored(
    app: Flask, relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CVE-2011-0411: an attacker injects a reply before the handshake."""
    monkeypatch.setattr(app.extensions["mail"], "use_tls", True)
    relay.behaviour.starttls = _certificate(tmp_path)
    relay.behaviour.injected_reply = "250 AUTH PLAIN"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with smtp.create_relay_connection() as connection:
        connection.open()
        assert connection.host is not None
        assert connection.host.has_extn("smtputf8")
        assert connection.deliver(make_message()).kind == "accepted"
