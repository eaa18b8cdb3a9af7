"""A mail relay on loopback that keeps the messages and misbehaves on demand."""

from __future__ import annotations

import email
import email.policy
import re
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage

from tests.support.live_server import wait_until


@dataclass(frozen=True)
class ReceivedMessage:
    """An accepted message with its envelope."""

    sender: str
    to: str
    raw: bytes

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.raw, policy=email.policy.default)

    @property
    def text(self) -> str:
        part = self.message.get_body(("plain",))
        return part.get_content() if part else ""

    @property
    def html(self) -> str:
        part = self.message.get_body(("html",))
        return part.get_content() if part else ""


@dataclass
class Behaviour:
    """The replies of the relay.

    A rule is a whole reply, "drop" (close the connection) or "hang".
    """

    greeting: str = "220 relay.test ESMTP"
    auth: str = ""
    mail: str = ""
    rcpt: dict[str, str] = field(default_factory=dict)
    # How many more times a rule applies, by its key; a rule without an entry always applies.
    uses: Counter[str] = field(default_factory=Counter)
    data: dict[str, str] = field(default_factory=dict)
    # After the whole body: a 4xx or 5xx reply rejects the message. With any other rule the message is accepted first.
    body: dict[str, str] = field(default_factory=dict)
    rset: str = ""
    quit: str = ""
    # Replies at a stage (greeting, EHLO, MAIL, RCPT, DATA, body), whatever the address; `uses` counts these, too.
    stages: dict[str, str] = field(default_factory=dict)
    # Called with the recipient when the first line of a body arrives.
    on_body: Callable[[str], None] | None = None
    seconds_per_mail: float = 0
    smtputf8: bool = True
    pipelining: bool = True
    # Reply 354 to DATA even when no recipient was accepted, as RFC 2920 allows.
    always_354: bool = False
    starttls: ssl.SSLContext | None = None
    # Sent unencrypted right after the reply to STARTTLS, as an attacker would.
    injected_reply: str = ""


class Relay(socketserver.ThreadingTCPServer):
    """Accepts mail on a free port.

    `messages` holds every accepted message, even if the relay dropped its reply.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Session)
        self.port = int(self.server_address[1])
        self.messages: list[ReceivedMessage] = []
        self.commands: list[str] = []
        # What arrived of bodies that ended without their final dot.
        self.aborted_bodies: list[bytes] = []
        self.connections = 0
        self.behaviour = Behaviour()
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def rule(self, rules: dict[str, str], to: str) -> str:
        """Return the rule for an address or "*" and count its use."""
        with self.lock:
            key = to if to in rules else "*"
            if key not in rules:
                return ""
            if key in self.behaviour.uses:
                if self.behaviour.uses[key] <= 0:
                    return ""
                self.behaviour.uses[key] -= 1
            return rules[key]

    def accept(self, message: ReceivedMessage) -> None:
        with self.lock:
            self.messages.append(message)

    @property
    def recipients(self) -> Counter[str]:
        """The number of accepted messages for each address."""
        with self.lock:
            return Counter(received.to for received in self.messages)

    def message_to(self, address: str) -> ReceivedMessage:
        """Return the only message to an address."""
        (received,) = [received for received in self.messages if received.to == address]
        return received

    def wait_for(self, n: int) -> None:
        """Wait until at least `n` messages were accepted."""
        wait_until(
            lambda: len(self.messages) >= n,
            what=lambda: f"only {len(self.messages)} of {n} messages arrived",
            interval=0.02,
        )

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: a client that is killed closes its connection at any point."""


@contextmanager
def running(port: int = 0) -> Iterator[Relay]:
    with Relay(port) as relay:
        thread = threading.Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            relay.stopping.set()
            relay.shutdown()
            thread.join()


class _Drop(Exception):
    pass


class _Session(socketserver.StreamRequestHandler):
    server: Relay

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.reply(self.stage("greeting") or self.server.behaviour.greeting)
            while self.step():
                pass
        except (_Drop, OSError):
            return

    def reply(self, reply: str) -> None:
        if reply == "drop":
            raise _Drop
        if reply == "hang":
            self.server.stopping.wait()
            raise _Drop
        self.wfile.write(f"{reply}\r\n".encode())

    def stage(self, name: str) -> str:
        """Return the rule for a stage, or an empty text."""
        return self.server.rule(self.server.behaviour.stages, name) if name in self.server.behaviour.stages else ""

    def step(self) -> bool:
        line = self.rfile.readline()
        if not line:
            return False
        command = line.decode("utf-8", "replace").strip()
        self.server.commands.append(command)
        verb = command.split(" ")[0].split(":")[0].upper()
        handler = getattr(self, f"do_{verb.lower()}", None)
        if handler is None:
            self.reply("500 unknown command")
        else:
            handler(command)
        return verb != "QUIT"

    def do_ehlo(self, command: str) -> None:
        rule = self.stage("EHLO")
        if rule:
            self.reply(rule)
            return
        behaviour = self.server.behaviour
        lines = ["relay.test", "8BITMIME"]
        lines += ["SMTPUTF8"] if behaviour.smtputf8 else []
        lines += ["PIPELINING"] if behaviour.pipelining else []
        lines += ["STARTTLS"] if behaviour.starttls and not isinstance(self.request, ssl.SSLSocket) else []
        lines += ["AUTH PLAIN"] if behaviour.auth else []
        self.reply("\r\n".join(f"250{' ' if n == len(lines) - 1 else '-'}{line}" for n, line in enumerate(lines)))

    def do_helo(self, command: str) -> None:
        self.reply(self.stage("EHLO") or "250 relay.test")

    def do_starttls(self, command: str) -> None:
        context = self.server.behaviour.starttls
        assert context is not None
        injected = self.server.behaviour.injected_reply
        self.reply("220 go on" + (f"\r\n{injected}" if injected else ""))
        self.request = context.wrap_socket(self.request, server_side=True)
        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)

    def do_auth(self, command: str) -> None:
        self.reply(self.server.behaviour.auth)

    def do_mail(self, command: str) -> None:
        self.sender = _address(command)
        self.is_recipient_accepted = False
        self.reply(self.stage("MAIL") or self.server.behaviour.mail or "250 ok")

    def do_rcpt(self, command: str) -> None:
        self.to = _address(command)
        reply = self.stage("RCPT") or self.server.rule(self.server.behaviour.rcpt, self.to) or "250 ok"
        self.is_recipient_accepted = reply.startswith("2")
        self.reply(reply)

    def do_data(self, command: str) -> None:
        refusal = self.stage("DATA") or self.server.rule(self.server.behaviour.data, self.to)
        if refusal:
            self.reply(refusal)
            return
        if not self.is_recipient_accepted and not self.server.behaviour.always_354:
            self.reply("554 no valid recipients")
            return
        self.reply("354 go on")
        lines: list[bytes] = []
        while True:
            line = self.rfile.readline()
            if not line:
                self.server.aborted_bodies.append(b"".join(lines))
                raise _Drop
            if not lines and self.server.behaviour.on_body is not None:
                self.server.behaviour.on_body(self.to)
            if line == b".\r\n":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        if self.server.behaviour.seconds_per_mail:
            time.sleep(self.server.behaviour.seconds_per_mail)
        rule = self.stage("body") or self.server.rule(self.server.behaviour.body, self.to)
        if not rule[:3].isdigit():
            self.server.accept(ReceivedMessage(self.sender, self.to, b"".join(lines)))
        self.reply(rule or "250 accepted")

    def do_rset(self, command: str) -> None:
        self.reply(self.server.behaviour.rset or "250 ok")

    def do_noop(self, command: str) -> None:
        self.reply("250 ok")

    def do_quit(self, command: str) -> None:
        self.reply(self.server.behaviour.quit or "221 bye")


def _address(command: str) -> str:
    found = re.search(r"<([^>]*)>", command)
    return found[1] if found else ""
