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


class Relay:
    """A relay to the server that can stop to forward, so that a test does not stop the server of all tests.

    :param database_url: as libpq expects it.
    """

    def __init__(self, database_url: str) -> None:
        with psycopg.connect(database_url) as connection:
            self._server = connection.info.host, connection.info.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        # How many connections it has accepted.
        self.connection_count = 0
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
                client, _address = self._listener.accept()
                self.connection_count += 1
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
