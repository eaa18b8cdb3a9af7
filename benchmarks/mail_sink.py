"""The relay that mails are measured against: it takes everything, keeps count, and answers as fast as it is told to.

A process of its own, `python -m benchmarks.mail_sink`, which prints its port. It speaks just enough of RFC 5321, and
RFC 2920 unless told not to. `XSEEN` asks what it has seen, `XLAST` for the last mail, `XFORGET` begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Nothing of the program is imported here: the sink is to be small and to start at once.
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Manner:
    """How it answers: so many seconds `after` a mail's final dot, each group of commands by a round trip later, and
    whether it offers `pipelining`."""

    after: float = 0
    round_trip: float = 0
    pipelining: bool = True


@dataclass(frozen=True)
class Seen:
    """What came: mails, different recipients, bytes of mail; when the first and the last were taken, by the clock that
    all processes of a machine share (`time.monotonic`); what the sink has computed so far, in seconds."""

    mails: int
    recipients: int
    size: int
    first: float
    last: float
    cpu: float

    @property
    def rate(self) -> float:
        """Mails in a second, from the first to the last: what came before the first is not in it."""
        return (self.mails - 1) / (self.last - self.first) if self.mails > 1 else 0


@dataclass
class Book:
    """What the sink keeps of everything that it took."""

    manner: Manner
    recipients: list[bytes] = field(default_factory=list)
    mails: int = 0
    size: int = 0
    first: float = 0
    last: float = 0
    mail: bytes = b""

    def keep(self, recipients: list[bytes], mail: bytes) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.recipients += recipients
        self.mails += 1
        self.size += len(mail)
        self.mail = mail

    def forget(self) -> None:
        self.__init__(self.manner)  # type: ignore[misc]

    def seen(self) -> dict[str, float]:
        return {
            "mails": self.mails,
            "recipients": len(set(self.recipients)),
            "size": self.size,
            "first": self.first,
            "last": self.last,
            "cpu": time.process_time(),
        }


class Session(asyncio.Protocol):
    """One connection. Nothing is done twice, and nothing that is not needed: it must not be what is measured."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.manner = book.manner
        self.rest = b""
        self.recipients: list[bytes] = []
        self.in_mail = False
        # While the answer to a mail is held back, what follows waits: answers come in the order of the commands.
        self.waits = False
        self.under_way: deque[bytes] = deque()
        words = b"250-sink\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
        self.hello = words + (b"250 PIPELINING\r\n" if self.manner.pipelining else b"250 HELP\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self.manner.round_trip:
            self.under_way.append(data)
            asyncio.get_running_loop().call_later(self.manner.round_trip, self._arrived)
        else:
            self._take(data)

    def _arrived(self) -> None:
        self._take(self.under_way.popleft())

    def _take(self, data: bytes) -> None:
        self.rest = self.rest + data if self.rest else data
        if not self.waits:
            self._answer()

    def _answer(self) -> None:
        """Everything that is complete by now, in one write."""
        replies = []
        while True:
            if self.in_mail:
                mail = self._mail()
                if mail is None:
                    break
                self.in_mail = False
                self.book.keep(self.recipients, mail)
                if self.manner.after:
                    self.waits = True
                    asyncio.get_running_loop().call_later(self.manner.after, self._taken)
                    break
                replies.append(b"250 taken\r\n")
            else:
                line, end, rest = self.rest.partition(b"\r\n")
                if not end:
                    break
                self.rest = rest
                replies.append(self._reply(line))
        if replies:
            self.transport.write(b"".join(replies))

    def _taken(self) -> None:
        self.waits = False
        self.transport.write(b"250 taken\r\n")
        self._answer()

    def _mail(self) -> bytes | None:
        """The mail up to its final dot, once that is here."""
        if self.rest.startswith(b".\r\n"):
            self.rest = self.rest[3:]
            return b""
        mail, end, rest = self.rest.partition(b"\r\n.\r\n")
        if not end:
            return None
        self.rest = rest
        return mail + b"\r\n"

    def _reply(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self.recipients.append(line[line.find(b"<") + 1 : line.find(b">")])
            return b"250 ok\r\n"
        if verb == b"MAIL" or verb == b"RSET":
            self.recipients = []
            return b"250 ok\r\n"
        if verb == b"DATA":
            self.in_mail = True
            return b"354 go on\r\n"
        if verb in (b"EHLO", b"HELO"):
            return self.hello
        if verb == b"QUIT":
            asyncio.get_running_loop().call_soon(self.transport.close)
            return b"221 bye\r\n"
        return self._about_itself(line)

    def _about_itself(self, line: bytes) -> bytes:
        if line == b"XSEEN":
            return f"250 {json.dumps(self.book.seen())}\r\n".encode()
        if line == b"XLAST":
            return b"250 " + base64.b64encode(self.book.mail) + b"\r\n"
        if line == b"XFORGET":
            self.book.forget()
            return b"250 ok\r\n"
        return b"250 ok\r\n" if line[:4].upper() == b"NOOP" else b"500 what?\r\n"


@dataclass(frozen=True)
class Sink:
    """A running sink, asked over a connection of its own."""

    port: int

    def seen(self) -> Seen:
        return Seen(**json.loads(self._ask(b"XSEEN")))

    def last(self) -> bytes:
        """The mail that was taken last, as it was on the wire."""
        return base64.b64decode(self._ask(b"XLAST"))

    def forget(self) -> None:
        self._ask(b"XFORGET")

    def _ask(self, what: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            answers = connection.makefile("rb")
            answers.readline()
            connection.sendall(what + b"\r\n")
            return answers.readline()[4:]


@contextmanager
def running(manner: Manner) -> Iterator[Sink]:
    """A sink on a free port; ended by its id afterwards."""
    command = [sys.executable, "-m", "benchmarks.mail_sink", str(manner.after), str(manner.round_trip)]
    if not manner.pipelining:
        command.append("--no-pipelining")
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Sink(int(process.stdout.readline()))
        finally:
            process.terminate()


async def _serve(book: Book) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Session(book), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mail_sink")
    parser.add_argument("after", type=float, help="seconds until a mail is answered")
    parser.add_argument("round_trip", type=float, help="seconds that every answer takes")
    parser.add_argument("--no-pipelining", action="store_true")
    given = parser.parse_args()
    gc.disable()
    asyncio.run(_serve(Book(Manner(given.after, given.round_trip, not given.no_pipelining))))


if __name__ == "__main__":
    main()
