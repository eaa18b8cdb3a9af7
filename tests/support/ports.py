"""Ports for the servers of the tests.

The kernel may give a port that it handed out (`bind` to port 0), and that was closed again, to any other program
before our server listens on it. Ours lie below the range from which the kernel gives, and a lock on a file reserves
each for as long as the test process lives: neither another test process nor an outgoing connection can take it.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

_LOCKS = Path(tempfile.gettempdir()) / "onecode-test-ports"
_FIRST = 10_000
# Open files whose locks say which ports are ours.
_held: list[int] = []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on and that no test gets again while this process lives."""
    return free_ports(1)


def free_ports(number: int) -> int:
    """The first of so many such ports in a row."""
    _LOCKS.mkdir(exist_ok=True)
    if _LOCKS.stat().st_uid == os.geteuid():
        # Whoever runs tests on this machine takes part.
        _LOCKS.chmod(0o777)
    end = _first_of_the_kernel()
    for _ in range(1000):
        first = random.randrange(_FIRST, end - number)
        if _reserve(range(first, first + number)):
            return first
    raise RuntimeError(f"no free port from {_FIRST} to {end}")


def _first_of_the_kernel() -> int:
    """The first port that the kernel gives to whoever asks for any."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32_768
    # Where that is nearly all of them, the locks alone have to do.
    return first if first > _FIRST + 2000 else 32_768


def _reserve(ports: range) -> bool:
    taken: list[int] = []
    for port in ports:
        lock = _lock(port)
        if lock is None or not _is_free(port):
            for one in [*taken, *([lock] if lock is not None else [])]:
                os.close(one)
            return False
        taken.append(lock)
    _held.extend(taken)
    return True


def _lock(port: int) -> int | None:
    try:
        file = os.open(_LOCKS / str(port), os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _is_free(port: int) -> bool:
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
