"""A relay for measuring: accepts everything, counts, and replies with a delay.

A separate process, `python -m benchmarks.mail_sink`, which prints its port. It implements the minimum of RFC 5321, and
RFC 2920 unless disabled. `XTOTALS` returns the counts, `XLAST` the last email; `XRESET` resets the counts.
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
class SinkOptions:
    """How the sink replies.

    `acceptance_delay` is the delay in seconds after an email's final dot, `round_trip` that of every reply;
    `pipelining` says whether PIPELINING is offered.
    """

    acceptance_delay: float = 0
    round_trip: float = 0
    pipelining: bool = True


@dataclass(frozen=True)
class SinkTotals:
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
class SinkRecorder:
    """The counts of what the sink has accepted."""

    options: SinkOptions
    recipients: list[bytes] = field(default_factory=list)
    mails: int = 0
    size: int = 0
    first: float = 0
    last: float = 0
    mail: bytes = b""

    def record(self, recipients: list[bytes], mail: bytes) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.recipients += recipients
        self.mails += 1
        self.size += len(mail)
        self.mail = mail

    def reset(self) -> None:
        self.recipients, self.mail = [], b""
        self.mails = self.size = 0
        self.first = self.last = 0

    def totals(self) -> dict[str, float]:
        return {
            "mails": self.mails,
            "recipients": len(set(self.recipients)),
            "size": self.size,
            "first": self.first,
            "last": self.last,
            "cpu": time.process_time(),
        }


class SinkSession(asyncio.Protocol):
    """One connection, which does as little as possible, not to be the bottleneck."""

    def __init__(self, recorder: SinkRecorder) -> None:
        self.recorder = recorder
        self.options = recorder.options
        self.buffer = b""
        self.recipients: list[bytes] = []
        self.in_data = False
        # While the reply to an email is delayed, later commands wait, since replies keep the order of the commands.
        self.is_delayed = False
        self.in_transit: deque[bytes] = deque()
        extensions = b"250-sink\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
        self.hello = extensions + (b"250 PIPELINING\r\n" if self.options.pipelining else b"250 HELP\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self.options.round_trip:
            self.in_transit.append(data)
            asyncio.get_running_loop().call_later(self.options.round_trip, self._receive_delayed)
        else:
            self._receive(data)

    def _receive_delayed(self) -> None:
        self._receive(self.in_transit.popleft())

    def _receive(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if not self.is_delayed:
            self._reply_to_commands()

    def _reply_to_commands(self) -> None:
        """Reply to all complete commands, in one write."""
        replies = []
        while True:
            if self.in_data:
                mail = self._next_email()
                if mail is None:
                    break
                self.in_data = False
                self.recorder.record(self.recipients, mail)
                if self.options.acceptance_delay:
                    self.is_delayed = True
                    asyncio.get_running_loop().call_later(self.options.acceptance_delay, self._reply_after_delay)
                    break
                replies.append(b"250 accepted\r\n")
            else:
                line, end, remaining = self.buffer.partition(b"\r\n")
                if not end:
                    break
                self.buffer = remaining
                replies.append(self._reply(line))
        if replies:
            self.transport.write(b"".join(replies))

    def _reply_after_delay(self) -> None:
        self.is_delayed = False
        self.transport.write(b"250 accepted\r\n")
        self._reply_to_commands()

    def _next_email(self) -> bytes | None:
        """Return the email up to its final dot, or None while it is incomplete."""
        if self.buffer.startswith(b".\r\n"):
            self.buffer = self.buffer[3:]
            return b""
        mail, end, remaining = self.buffer.partition(b"\r\n.\r\n")
        if not end:
            return None
        self.buffer = remaining
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
            self.in_data = True
            return b"354 go on\r\n"
        if verb in (b"EHLO", b"HELO"):
            return self.hello
        if verb == b"QUIT":
            asyncio.get_running_loop().call_soon(self.transport.close)
            return b"221 bye\r\n"
        return self._control_reply(line)

    def _control_reply(self, line: bytes) -> bytes:
        if line == b"XTOTALS":
            return f"250 {json.dumps(self.recorder.totals())}\r\n".encode()
        if line == b"XLAST":
            return b"250 " + base64.b64encode(self.recorder.mail) + b"\r\n"
        if line == b"XRESET":
            self.recorder.reset()
            return b"250 ok\r\n"
        return b"250 ok\r\n" if line[:4].upper() == b"NOOP" else b"500 what?\r\n"


@dataclass(frozen=True)
class Sink:
    """A running sink, queried over a separate connection."""

    port: int

    def totals(self) -> SinkTotals:
        return SinkTotals(**json.loads(self._query(b"XTOTALS")))

    def last_email(self) -> bytes:
        """The last email, as it was on the wire."""
        return base64.b64decode(self._query(b"XLAST"))

    def reset(self) -> None:
        self._query(b"XRESET")

    def _query(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            replies = connection.makefile("rb")
            replies.readline()
            connection.sendall(command + b"\r\n")
            return replies.readline()[4:]


@contextmanager
def running(options: SinkOptions) -> Iterator[Sink]:
    """Run a sink on a free port; terminate it afterwards."""
    command = [sys.executable, "-m", "benchmarks.mail_sink", str(options.acceptance_delay), str(options.round_trip)]
    if not options.pipelining:
        command.append("--no-pipelining")
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Sink(int(process.stdout.readline()))
        finally:
            process.terminate()


async def _serve(recorder: SinkRecorder) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: SinkSession(recorder), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mail_sink")
    parser.add_argument("acceptance_delay", type=float, help="delay of the reply to an email, in seconds")
    parser.add_argument("round_trip", type=float, help="delay of every reply, in seconds")
    parser.add_argument("--no-pipelining", action="store_true")
    arguments = parser.parse_args()
    gc.disable()
    asyncio.run(
        _serve(SinkRecorder(SinkOptions(arguments.acceptance_delay, arguments.round_trip, not arguments.no_pipelining)))
    )


if __name__ == "__main__":
    main()
