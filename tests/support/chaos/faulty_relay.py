"""A mail relay that logs the emails it accepts and injects faults.

It runs in a separate process and shares no code with the program: it outlives the workers that are killed, and the
audit reads its log. An email is logged before the relay replies 250; half of the time that an email takes passes before
that and half after. The seed and the address determine which recipients get a fault; every fault except 550 occurs
once. Every other connection is offered PIPELINING (RFC 2920).

The log is one JSON object per line: `mail` (accepted), `fault` (injected) and `lost` (accepted, but the reply did not
arrive, as far as the relay can know).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path

# The reply of each fault and the command that gets it. `drop` accepts an email and closes the connection.
FAULTS = {
    "421": ("RCPT", "421 4.3.2 closing"),
    "450": ("RCPT", "450 4.2.1 busy"),
    "454": ("DATA", "454 4.7.0 not now"),
    "550": ("RCPT", "550 5.7.1 not wanted"),
    "drop": ("body", ""),
}


class Log:
    """An unbuffered log: a relay that is stopped has logged all that it accepted."""

    def __init__(self, path: Path) -> None:
        self.faulted = {line["to"] for line in read(path) if line["event"] == "fault"}
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, connection: str, to: str, **more: str) -> None:
        line = {"event": event, "at": time.time(), "connection": connection, "to": to, **more}
        os.write(self.file, json.dumps(line).encode() + b"\n")
        if event == "fault":
            self.faulted.add(to)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class FaultyRelay:
    def __init__(self, log: Log, seed: int, rate: float, seconds: float) -> None:
        self.log = log
        self.seed = seed
        self.rate = rate
        self.seconds = seconds
        self.connections: set[ClientConnection] = set()
        self.number = 0

    def fault(self, to: str) -> str:
        """Return the kind of fault that is due for a recipient; empty for nearly all."""
        drawn = hashlib.sha256(f"{self.seed} {to}".encode()).digest()
        if int.from_bytes(drawn[:4]) >= self.rate * 2**32:
            return ""
        kind = list(FAULTS)[drawn[4] % len(FAULTS)]
        return "" if to in self.log.faulted and kind != "550" else kind

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number += 1
        connection = ClientConnection(self, f"{os.getpid()}.{self.number}", self.number % 2 == 1, reader, writer)
        self.connections.add(connection)
        try:
            await connection.run()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections.discard(connection)
            writer.close()

    def end(self) -> None:
        """Log as lost every reply that the client has not acknowledged by another command."""
        for connection in self.connections:
            if connection.unacknowledged:
                self.log.write("lost", connection.name, connection.unacknowledged, why="the relay ended")


class ClientConnection:
    def __init__(
        self,
        relay: FaultyRelay,
        name: str,
        offers_pipelining: bool,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.relay = relay
        self.name = name
        self.offers_pipelining = offers_pipelining
        self.reader = reader
        self.writer = writer
        # The recipient of the current email, and whether the relay accepted it.
        self.to = ""
        self.has_recipient = False
        # The recipient whose accepted email the client has not acknowledged yet by another command.
        self.unacknowledged = ""

    async def run(self) -> None:
        await self.reply("220 relay.test ESMTP")
        while line := await self.reader.readline():
            self.unacknowledged = ""
            verb = line[:4].upper()
            if verb == b"QUIT":
                await self.reply("221 bye")
                return
            if not await self.handle(verb, line):
                return

    async def handle(self, verb: bytes, line: bytes) -> bool:
        """Handle a command; return False when the connection is to be closed."""
        if verb == b"EHLO":
            pipelining = "250-PIPELINING\r\n" if self.offers_pipelining else ""
            await self.reply(f"250-relay.test\r\n{pipelining}250 8BITMIME")
        elif verb == b"RCPT":
            self.to = (re.search(rb"<([^>]*)>", line) or [b"", b""])[1].decode()
            return await self.recipient()
        elif verb == b"DATA":
            return await self.data()
        else:
            await self.reply("250 ok")
        return True

    async def recipient(self) -> bool:
        fault = await self.inject_fault("RCPT")
        self.has_recipient = not fault
        return fault != "421" if fault else await self.reply("250 ok")

    async def data(self) -> bool:
        if not self.has_recipient:
            return await self.reply("503 no recipient")
        return bool(await self.inject_fault("DATA")) or await self.body()

    async def inject_fault(self, at: str) -> str:
        """Inject the fault that is due at a command; return its kind, or an empty text."""
        kind = self.relay.fault(self.to)
        if not kind or FAULTS[kind][0] != at:
            return ""
        self.relay.log.write("fault", self.name, self.to, kind=kind)
        await self.reply(FAULTS[kind][1])
        return kind

    async def body(self) -> bool:
        await self.reply("354 go on")
        raw = await self.reader.readuntil(b"\r\n.\r\n")
        await asyncio.sleep(self.relay.seconds / 2)
        log, to = self.relay.log, self.to
        log.write("mail", self.name, to, id=_header(raw, b"Message-ID"), campaign=_header(raw, b"X-Campaign-Id"))
        self.unacknowledged = to
        if self.relay.fault(to) == "drop":
            log.write("fault", self.name, to, kind="drop")
            log.write("lost", self.name, to, why="dropped")
            self.unacknowledged = ""
            return False
        await asyncio.sleep(self.relay.seconds / 2)
        return await self.reply("250 accepted")

    async def reply(self, reply: str) -> bool:
        self.writer.write(f"{reply}\r\n".encode())
        await self.writer.drain()
        return True


def _header(raw: bytes, name: bytes) -> str:
    found = re.search(rb"^" + name + rb": *([^\r\n]*)", raw.partition(b"\r\n\r\n")[0], re.MULTILINE | re.IGNORECASE)
    return found[1].decode() if found else ""


async def main() -> None:
    """Serve on a port until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.01, help="the share of recipients that get a fault")
    parser.add_argument("--seconds", type=float, default=0, help="how long each email takes")
    arguments = parser.parse_args()
    relay = FaultyRelay(Log(arguments.log), arguments.seed, arguments.rate, arguments.seconds)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await asyncio.start_server(relay.serve, "127.0.0.1", arguments.port, limit=2**22)
    print("ready", flush=True)
    await stopping.wait()
    relay.end()
    # Exit immediately; asyncio would wait for open connections.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
