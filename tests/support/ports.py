"""Ports for the servers of the tests.

A port that the kernel assigned (`bind` to port 0) and that was closed again may go to any other program before our
server listens on it. These ports are below the kernel's ephemeral range, and a file lock reserves each of them while
the test process lives: neither another test process nor an outgoing connection can take it.
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
# Open files whose locks reserve our ports.
_held: list[int] = []


def free_port() -> int:
    """Reserve a free port of 127.0.0.1 for the life of this process."""
    return free_ports(1)


def free_ports(number: int) -> int:
    """Reserve `number` consecutive ports; return the first."""
    _LOCKS.mkdir(exist_ok=True)
    if _LOCKS.stat().st_uid == os.geteuid():
        # All users who run tests on this machine share the locks.
        _LOCKS.chmod(0o777)
    end = _first_ephemeral_port()
    for _ in range(1000):
        first = random.randrange(_FIRST, end - number)
        if _reserve(range(first, first + number)):
            return first
    raise RuntimeError(f"no free port from {_FIRST} to {end}")


def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32_768
    # Where the ephemeral range is nearly all ports, only the locks protect ours.
    return first if first > _FIRST + 2000 else 32_768


def _reserve(ports: range) -> bool:
    taken: list[int] = []
    for port in ports:
        lock = _lock(port)
        if lock is None or not _is_free(port):
            for file in [*taken, *([lock] if lock is not None else [])]:
                os.close(file)
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
