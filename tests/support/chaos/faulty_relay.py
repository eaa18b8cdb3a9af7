"""A mail relay in a process of its own that writes down what it took, and misbehaves with a few recipients.

Nothing of the program is in it: it outlives the workers that are killed, and the audit reads what it wrote. A mail is
in the log before the relay answers 250 to it; half of the time that a mail takes passes before that and half after.
Which recipients meet a fault follows from the seed and the address alone; all but a 550 are met once. To every other
connection it says that it reads ahead (RFC 2920).

The log is one JSON object a line: `mail` (taken), `fault` (given) and `lost` (taken, but the answer never arrived, as
far as the relay can know).
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

# What is said instead of the plain answer, and at which command. A drop is a mail taken without an answer.
FAULTS = {
    "421": ("RCPT", "421 4.3.2 closing"),
    "450": ("RCPT", "450 4.2.1 busy"),
    "454": ("DATA", "454 4.7.0 not now"),
    "550": ("RCPT", "550 5.7.1 not wanted"),
    "drop": ("body", ""),
}


class Log:
    """Written without a buffer, so that a relay that is ended has written down all it took."""

    def __init__(self, path: Path) -> None:
        self.met = {line["to"] for line in read(path) if line["what"] == "fault"}
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, what: str, connection: str, to: str, **more: str) -> None:
        line = {"what": what, "at": time.time(), "connection": connection, "to": to, **more}
        os.write(self.file, json.dumps(line).encode() + b"\n")
        if what == "fault":
            self.met.add(to)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Relay:
    def __init__(self, log: Log, seed: int, rate: float, seconds: float) -> None:
        self.log = log
        self.seed = seed
        self.rate = rate
        self.seconds = seconds
        self.connections: set[Connection] = set()
        self.number = 0

    def fault(self, to: str) -> str:
        """What this recipient meets now; nothing for nearly all."""
        drawn = hashlib.sha256(f"{self.seed} {to}".encode()).digest()
        if int.from_bytes(drawn[:4]) >= self.rate * 2**32:
            return ""
        kind = list(FAULTS)[drawn[4] % len(FAULTS)]
        return "" if to in self.log.met and kind != "550" else kind

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number += 1
        connection = Connection(self, f"{os.getpid()}.{self.number}", self.number % 2 == 1, reader, writer)
        self.connections.add(connection)
        try:
            await connection.talk()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections.discard(connection)
            writer.close()

    def end(self) -> None:
        """Every answer that the other side has not shown to have heard counts as lost."""
        for connection in self.connections:
            if connection.unheard:
                self.log.write("lost", connection.name, connection.unheard, why="the relay ended")


class Connection:
    def __init__(
        self, relay: Relay, name: str, reads_ahead: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.relay = relay
        self.name = name
        self.reads_ahead = reads_ahead
        self.reader = reader
        self.writer = writer
        # The recipient of the mail that is being handed over, and whether they were taken.
        self.to = ""
        self.has_recipient = False
        # Whose mail was taken without a sign yet that the other side has heard so.
        self.unheard = ""

    async def talk(self) -> None:
        await self.say("220 relay.test ESMTP")
        while line := await self.reader.readline():
            self.unheard = ""
            verb = line[:4].upper()
            if verb == b"QUIT":
                await self.say("221 bye")
                return
            if not await self.answer(verb, line):
                return

    async def answer(self, verb: bytes, line: bytes) -> bool:
        """False when the connection is closed now."""
        if verb == b"EHLO":
            ahead = "250-PIPELINING\r\n" if self.reads_ahead else ""
            await self.say(f"250-relay.test\r\n{ahead}250 8BITMIME")
        elif verb == b"RCPT":
            self.to = (re.search(rb"<([^>]*)>", line) or [b"", b""])[1].decode()
            return await self.recipient()
        elif verb == b"DATA":
            return await self.data()
        else:
            await self.say("250 ok")
        return True

    async def recipient(self) -> bool:
        fault = await self.refuse("RCPT")
        self.has_recipient = not fault
        return fault != "421" if fault else await self.say("250 ok")

    async def data(self) -> bool:
        if not self.has_recipient:
            return await self.say("503 no recipient")
        return bool(await self.refuse("DATA")) or await self.body()

    async def refuse(self, at: str) -> str:
        """The fault that was given instead of the answer, if any."""
        kind = self.relay.fault(self.to)
        if not kind or FAULTS[kind][0] != at:
            return ""
        self.relay.log.write("fault", self.name, self.to, kind=kind)
        await self.say(FAULTS[kind][1])
        return kind

    async def body(self) -> bool:
        await self.say("354 go on")
        raw = await self.reader.readuntil(b"\r\n.\r\n")
        await asyncio.sleep(self.relay.seconds / 2)
        log, to = self.relay.log, self.to
        log.write("mail", self.name, to, id=_header(raw, b"Message-ID"), campaign=_header(raw, b"X-Campaign-Id"))
        self.unheard = to
        if self.relay.fault(to) == "drop":
            log.write("fault", self.name, to, kind="drop")
            log.write("lost", self.name, to, why="dropped")
            self.unheard = ""
            return False
        await asyncio.sleep(self.relay.seconds / 2)
        return await self.say("250 taken")

    async def say(self, reply: str) -> bool:
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
    parser.add_argument("--rate", type=float, default=0.01, help="the share of recipients that meet a fault")
    parser.add_argument("--seconds", type=float, default=0, help="how long each mail takes")
    given = parser.parse_args()
    relay = Relay(Log(given.log), given.seed, given.rate, given.seconds)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await asyncio.start_server(relay.serve, "127.0.0.1", given.port, limit=2**22)
    print("ready", flush=True)
    await over.wait()
    relay.end()
    # At once, with all connections: asyncio would wait for those who talk.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
