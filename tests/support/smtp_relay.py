"""A mail relay for tests, on loopback, that can misbehave on demand and keeps what it accepted."""

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


@dataclass(frozen=True)
class Kept:
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
    """How the relay answers. A rule is a whole reply, "drop" (close the connection), or "hang"."""

    greeting: str = "220 relay.test ESMTP"
    auth: str = ""
    mail: str = ""
    rcpt: dict[str, str] = field(default_factory=dict)
    # How often a rule of `rcpt` or `body` still holds for an address; without an entry it holds for ever.
    times: Counter[str] = field(default_factory=Counter)
    data: dict[str, str] = field(default_factory=dict)
    # After the whole body: a 4xx or 5xx reply, anything else (kept, then closed without an answer, or
    # answered with nonsense).
    body: dict[str, str] = field(default_factory=dict)
    rset: str = ""
    quit: str = ""
    # What is said instead at a stage (greeting, EHLO, MAIL, RCPT, DATA, body) to whomever; `times` counts these, too.
    stages: dict[str, str] = field(default_factory=dict)
    # Called with the recipient when a body begins to arrive.
    begun: Callable[[str], None] | None = None
    seconds_per_mail: float = 0
    smtputf8: bool = True
    pipelining: bool = True
    # Ask for a body although nobody may get it, as RFC 2920 allows.
    always_354: bool = False
    starttls: ssl.SSLContext | None = None
    # Said in the clear behind the answer to STARTTLS.
    slipped_in: str = ""


class Relay(socketserver.ThreadingTCPServer):
    """Accepts mail on a free port. `kept` has every message it answered 250 to, or dropped after taking it."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Session)
        self.port = int(self.server_address[1])
        self.kept: list[Kept] = []
        self.commands: list[str] = []
        # Of bodies that ended without their dot, what had come of them.
        self.broken_off: list[bytes] = []
        self.connections = 0
        self.behaviour = Behaviour()
        self.lock = threading.Lock()
        self.over = threading.Event()

    def rule(self, rules: dict[str, str], to: str) -> str:
        """The rule for an address, used up once if it holds only so often. "*" is for everybody."""
        with self.lock:
            key = to if to in rules else "*"
            if key not in rules:
                return ""
            if key in self.behaviour.times:
                if self.behaviour.times[key] <= 0:
                    return ""
                self.behaviour.times[key] -= 1
            return rules[key]

    def keep(self, message: Kept) -> None:
        with self.lock:
            self.kept.append(message)

    @property
    def recipients(self) -> Counter[str]:
        """How many messages each address got."""
        with self.lock:
            return Counter(kept.to for kept in self.kept)

    def to(self, address: str) -> Kept:
        """The one message to an address."""
        (found,) = [kept for kept in self.kept if kept.to == address]
        return found

    def wait_for(self, n: int, seconds: float = 60) -> None:
        """Until so many messages are kept."""
        deadline = time.monotonic() + seconds
        while len(self.kept) < n:
            if time.monotonic() > deadline:
                raise AssertionError(f"only {len(self.kept)} of {n} messages came")
            time.sleep(0.02)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed closes its connection anywhere."""


@contextmanager
def running(port: int = 0) -> Iterator[Relay]:
    with Relay(port) as relay:
        thread = threading.Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            relay.over.set()
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
            self.say(self.stage("greeting") or self.server.behaviour.greeting)
            while self.step():
                pass
        except (_Drop, OSError):
            return

    def say(self, reply: str) -> None:
        if reply == "drop":
            raise _Drop
        if reply == "hang":
            self.server.over.wait()
            raise _Drop
        self.wfile.write(f"{reply}\r\n".encode())

    def stage(self, name: str) -> str:
        """What is to be said at a stage, if anything special is."""
        return self.server.rule(self.server.behaviour.stages, name) if name in self.server.behaviour.stages else ""

    def step(self) -> bool:
        line = self.rfile.readline()
        if not line:
            return False
        said = line.decode("utf-8", "replace").strip()
        self.server.commands.append(said)
        verb = said.split(" ")[0].split(":")[0].upper()
        answer = getattr(self, f"do_{verb.lower()}", None)
        if answer is None:
            self.say("500 what?")
        else:
            answer(said)
        return verb != "QUIT"

    def do_ehlo(self, said: str) -> None:
        special = self.stage("EHLO")
        if special:
            self.say(special)
            return
        behaviour = self.server.behaviour
        lines = ["relay.test", "8BITMIME"]
        lines += ["SMTPUTF8"] if behaviour.smtputf8 else []
        lines += ["PIPELINING"] if behaviour.pipelining else []
        lines += ["STARTTLS"] if behaviour.starttls and not isinstance(self.request, ssl.SSLSocket) else []
        lines += ["AUTH PLAIN"] if behaviour.auth else []
        self.say("\r\n".join(f"250{' ' if n == len(lines) - 1 else '-'}{line}" for n, line in enumerate(lines)))

    def do_helo(self, said: str) -> None:
        self.say(self.stage("EHLO") or "250 relay.test")

    def do_starttls(self, said: str) -> None:
        context = self.server.behaviour.starttls
        assert context is not None
        self.say("220 go on" + (f"\r\n{self.server.behaviour.slipped_in}" if self.server.behaviour.slipped_in else ""))
        self.request = context.wrap_socket(self.request, server_side=True)
        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)

    def do_auth(self, said: str) -> None:
        self.say(self.server.behaviour.auth)

    def do_mail(self, said: str) -> None:
        self.sender = _address(said)
        self.is_taken = False
        self.say(self.stage("MAIL") or self.server.behaviour.mail or "250 ok")

    def do_rcpt(self, said: str) -> None:
        self.to = _address(said)
        answer = self.stage("RCPT") or self.server.rule(self.server.behaviour.rcpt, self.to) or "250 ok"
        self.is_taken = answer.startswith("2")
        self.say(answer)

    def do_data(self, said: str) -> None:
        refusal = self.stage("DATA") or self.server.rule(self.server.behaviour.data, self.to)
        if refusal:
            self.say(refusal)
            return
        if not self.is_taken and not self.server.behaviour.always_354:
            self.say("554 no valid recipients")
            return
        self.say("354 go on")
        lines: list[bytes] = []
        while True:
            line = self.rfile.readline()
            if not line:
                self.server.broken_off.append(b"".join(lines))
                raise _Drop
            if not lines and self.server.behaviour.begun is not None:
                self.server.behaviour.begun(self.to)
            if line == b".\r\n":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        if self.server.behaviour.seconds_per_mail:
            time.sleep(self.server.behaviour.seconds_per_mail)
        rule = self.stage("body") or self.server.rule(self.server.behaviour.body, self.to)
        if not rule[:3].isdigit():
            self.server.keep(Kept(self.sender, self.to, b"".join(lines)))
        self.say(rule or "250 taken")

    def do_rset(self, said: str) -> None:
        self.say(self.server.behaviour.rset or "250 ok")

    def do_noop(self, said: str) -> None:
        self.say("250 ok")

    def do_quit(self, said: str) -> None:
        self.say(self.server.behaviour.quit or "221 bye")


def _address(said: str) -> str:
    found = re.search(r"<([^>]*)>", said)
    return found[1] if found else ""
