"""Each step of an SMTP session has its own time limit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from flask import Flask

from tests.support.smtp_relay import Relay
from webapp.mail import smtp, smtp_session, timeouts
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayUnavailable

# More than the buffers of both sockets hold.
LARGE = b"Subject: Hello\r\n\r\n" + 500_000 * b"All work and no play makes Jack a dull boy.\r\n"
# A relay goes on after this long; no limit that a test sets comes near it.
RELAY_TIMEOUT = 5.0


def message(raw: bytes = b"Subject: Hello\r\n\r\nHello\r\n") -> OutgoingMessage:
    return OutgoingMessage("shop@example.com", "ada@example.com", raw)


@pytest.fixture
def connection(app: Flask, relay: Relay) -> Iterator[smtp.RelayConnection]:
    with smtp.create_relay_connection() as connection:
        connection.open()
        yield connection


@pytest.fixture
def has_timed_out() -> Iterator[threading.Event]:
    """Set when the client has timed out; the relay waits for it."""
    event = threading.Event()
    yield event
    event.set()


def test_a_relay_that_stops_reading_a_body_times_out(
    relay: Relay, connection: smtp.RelayConnection, has_timed_out: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "BODY_TIMEOUT", 0.3)

    def stop_reading(to: str) -> None:
        has_timed_out.wait(RELAY_TIMEOUT)

    relay.behaviour.on_body = stop_reading
    outcome = connection.deliver(message(LARGE))
    has_timed_out.set()
    assert (outcome.kind, outcome.text, connection.is_open) == ("connection_lost", "timed out", False)
    assert relay.recipients == {}


def test_a_relay_without_a_reply_to_the_envelope_times_out(
    relay: Relay, connection: smtp.RelayConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "REPLY_TIMEOUT", 0.3)
    relay.behaviour.rcpt["*"] = "hang"
    outcome = connection.deliver(message())
    assert (outcome.kind, outcome.text, connection.is_open) == ("connection_lost", "timed out", False)


def test_envelope_and_reply_to_the_body_have_separate_time_limits(connection: smtp.RelayConnection) -> None:
    def use_up_the_time() -> bool:
        assert connection.host is not None
        connection.host.set_deadline(0)
        return True

    use_up_the_time()
    assert connection.deliver(message(), use_up_the_time).kind == "accepted"


def test_a_relay_without_a_reply_to_a_reset_is_disconnected(
    relay: Relay, connection: smtp.RelayConnection, has_timed_out: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowReset(relay.RequestHandlerClass):  # type: ignore[name-defined, misc]
        def do_rset(self, command: str) -> None:
            has_timed_out.wait(RELAY_TIMEOUT)
            super().do_rset(command)

    monkeypatch.setattr(relay, "RequestHandlerClass", SlowReset)
    monkeypatch.setattr(timeouts, "RESET_TIMEOUT", 0.3)
    monkeypatch.setattr(timeouts, "REPLY_TIMEOUT", 2 * RELAY_TIMEOUT)
    relay.behaviour.rcpt["*"] = "550 no"
    connection.close()
    connection.open()
    outcome = connection.deliver(message())
    has_timed_out.set()
    assert (outcome.kind, connection.is_open) == ("failed", False)


# --- endless replies ----------------------------------------------------------------------------------


class EndlessReply:
    """A server that repeats a piece of a reply without end."""

    def __init__(self, piece: bytes, pause: float) -> None:
        self._piece, self._pause = piece, pause
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while not self._closed.is_set():
                client, _ = self._listener.accept()
                with client, suppress(OSError):
                    while not self._closed.wait(self._pause):
                        client.sendall(self._piece)

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # Only then may the number of the socket be used again: the thread may be about to accept.
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    ("piece", "pause", "limit", "reason"),
    [
        (b"220-slowly\r\n", 0.05, 0.5, "timed out"),
        (b"x", 0.05, 0.5, "timed out"),
        (b"220-" + b"x" * 4000 + b"\r\n", 0, 5, "the reply is too long"),
        (b"x" * 4000, 0, 5, "the reply is too long"),
    ],
)
def test_an_endless_reply_times_out_or_is_too_long(
    app: Flask,
    relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
    piece: bytes,
    pause: float,
    limit: float,
    reason: str,
) -> None:
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT", limit)
    server = EndlessReply(piece, pause)
    try:
        monkeypatch.setattr(app.extensions["mail"], "port", server.port)
        with smtp.create_relay_connection() as connection, pytest.raises(RelayUnavailable) as raised:
            connection.open()
    finally:
        server.close()
    assert str(raised.value) == reason


def test_a_reply_may_be_as_long_as_the_limit(
    relay: Relay, connection: smtp.RelayConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.behaviour.body["*"] = "250-taken\r\n250 really"
    for spare, kind in ((0, "accepted"), (-1, "uncertain")):
        # One line break is not counted.
        monkeypatch.setattr(smtp_session, "MAX_REPLY_BYTES", len("250-taken\r250 really\r") + spare)
        assert connection.deliver(message()).kind == kind
