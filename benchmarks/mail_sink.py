"""A relay for measuring: accepts everything, counts, and replies with a delay.

A separate process, `python -m benchmarks.mail_sink`, which prints its port. It implements the minimum of RFC 5321, and
RFC 2920 unless disabled. `XSEEN` returns the counts, `XLAST` the last email; `XFORGET` resets the counts.
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

# The application is not imported here, so that the sink is small and starts at once.
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Manner:
    """How the sink replies.

    `after` is the delay in seconds after an email's final dot, `round_trip` that of every reply; `pipelining` says
    whether PIPELINING is offered.
    """

    after: float = 0
    round_trip: float = 0
    pipelining: bool = True


@dataclass(frozen=True)
class Seen:
    """The numbers of emails, distinct recipients and bytes that the sink has accepted.

    `first` and `last` are the times of acceptance (`time.monotonic`, shared by all processes); `cpu` is in seconds.
    """

    mails: int
    recipients: int
    size: int
    first: float
    last: float
    cpu: float

    @property
    def rate(self) -> float:
        """Emails per second from the first to the last, not counting the first."""
        return (self.mails - 1) / (self.last - self.first) if self.mails > 1 else 0


@dataclass
class Counts:
    """The counts of what the sink has accepted."""

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
    """One connection, which does as little as possible, not to be the bottleneck."""

    def __init__(self, book: Counts) -> None:
        self.book = book
        self.manner = book.manner
        self.rest = b""
        self.recipients: list[bytes] = []
        self.in_mail = False
        # While the reply to an email is delayed, later commands wait, since replies keep the order of the commands.
        self.is_delayed = False
        self.in_transit: deque[bytes] = deque()
        extensions = b"250-sink\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
        self.hello = extensions + (b"250 PIPELINING\r\n" if self.manner.pipelining else b"250 HELP\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self.manner.round_trip:
            self.in_transit.append(data)
            asyncio.get_running_loop().call_later(self.manner.round_trip, self._arrived)
        else:
            self._take(data)

    def _arrived(self) -> None:
        self._take(self.in_transit.popleft())

    def _take(self, data: bytes) -> None:
        self.rest = self.rest + data if self.rest else data
        if not self.is_delayed:
            self._answer()

    def _answer(self) -> None:
        """Reply to all complete commands, in one write."""
        replies = []
        while True:
            if self.in_mail:
                mail = self._mail()
                if mail is None:
                    break
                self.in_mail = False
                self.book.keep(self.recipients, mail)
                if self.manner.after:
                    self.is_delayed = True
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
        self.is_delayed = False
        self.transport.write(b"250 taken\r\n")
        self._answer()

    def _mail(self) -> bytes | None:
        """Return the email up to its final dot, or None while it is incomplete."""
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
        return self._control_reply(line)

    def _control_reply(self, line: bytes) -> bytes:
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
    """A running sink, queried over a separate connection."""

    port: int

    def seen(self) -> Seen:
        return Seen(**json.loads(self._ask(b"XSEEN")))

    def last(self) -> bytes:
        """The last email, as it was on the wire."""
        return base64.b64decode(self._ask(b"XLAST"))

    def forget(self) -> None:
        self._ask(b"XFORGET")

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            replies = connection.makefile("rb")
            replies.readline()
            connection.sendall(command + b"\r\n")
            return replies.readline()[4:]


@contextmanager
def running(manner: Manner) -> Iterator[Sink]:
    """Run a sink on a free port; terminate it afterwards."""
    command = [sys.executable, "-m", "benchmarks.mail_sink", str(manner.after), str(manner.round_trip)]
    if not manner.pipelining:
        command.append("--no-pipelining")
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Sink(int(process.stdout.readline()))
        finally:
            process.terminate()


async def _serve(book: Counts) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Session(book), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mail_sink")
    parser.add_argument("after", type=float, help="delay of the reply to an email, in seconds")
    parser.add_argument("round_trip", type=float, help="delay of every reply, in seconds")
    parser.add_argument("--no-pipelining", action="store_true")
    arguments = parser.parse_args()
    gc.disable()
    asyncio.run(_serve(Counts(Manner(arguments.after, arguments.round_trip, not arguments.no_pipelining))))


if __name__ == "__main__":
    main()
