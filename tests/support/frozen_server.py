"""Freeze a PostgreSQL server: its kernel still acknowledges packets, but no response comes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg.conninfo import make_conninfo

from tests.support.live_server import wait_until
from webapp.core.database_connections import DeadlineConnection

# Seconds that a statement on a frozen connection waits, unless a test says otherwise.
FROZEN_SECONDS = 0.3


@contextmanager
def frozen_process(pid: int) -> Iterator[None]:
    """Stop a process while the block runs.

    :param pid: for example `connection.info.backend_pid`, the server process of one connection.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen_connection(connection: DeadlineConnection, seconds: float = FROZEN_SECONDS) -> Iterator[None]:
    """Freeze the server process of a connection while the block runs.

    :param seconds: the deadline of its statements in the block. Before and after it, they are real ones, which may take
        long on a busy machine.
    """
    before, connection.statement_seconds = connection.statement_seconds, seconds
    try:
        with frozen_process(connection.info.backend_pid):
            yield
    finally:
        connection.statement_seconds = before


class Relay:
    """A relay to the server that can stop to forward, so that a test does not stop the server of all tests.

    :param database_url: as libpq expects it.
    """

    def __init__(self, database_url: str) -> None:
        with psycopg.connect(database_url) as connection:
            self._server = connection.info.host, connection.info.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        # The addresses of the connections that it has accepted, and of those that only mark a moment.
        self._accepted: list[object] = []
        self._markers: set[object] = set()
        # Cleared while connections that exist, or new ones, are frozen.
        self._forwards_old, self._forwards_new = threading.Event(), threading.Event()
        self._forwards_old.set()
        self._forwards_new.set()
        port = self._listener.getsockname()[1]
        self.url = make_conninfo(database_url, host="127.0.0.1", port=str(port))
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, *, accepts_new: bool = False) -> None:
        """Forward nothing more.

        :param accepts_new: whether new connections work, as those to another server behind the same address.
        """
        self._forwards_old.clear()
        if not accepts_new:
            self._forwards_new.clear()

    @property
    def connection_count(self) -> int:
        """How many connections it has accepted."""
        return sum(address not in self._markers for address in list(self._accepted))

    def count_connections(self) -> int:
        """Accept all connections that were opened so far; return how many there were."""
        with socket.create_connection(self._listener.getsockname()) as last:
            address = last.getsockname()
            self._markers.add(address)
            wait_until(lambda: address in self._accepted)
            return self.connection_count

    def close(self) -> None:
        """End all connections."""
        for opened in (self._listener, *self._sockets):
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        self._forwards_old.set()
        self._forwards_new.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, address = self._listener.accept()
                self._accepted.append(address)
                server = self._connect()
                self._sockets += [client, server]
                forwards = self._forwards_old if self._forwards_old.is_set() else self._forwards_new
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target, forwards), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = self._server
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, forwards: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                forwards.wait()
                target.sendall(data)


@contextmanager
def relay_to(database_url: str) -> Iterator[Relay]:
    """Run a relay to a server while the block runs."""
    relay = Relay(database_url)
    try:
        yield relay
    finally:
        relay.close()
