"""Counters that the web processes of one server share.

A scrape is answered by any of the processes and has to return the sum of all. Each process counts in its own slot of a
small file that all of them map into memory, so that counting costs neither a system call nor a lock between processes.
The slot of a process that has ended is used by the next one, which continues to count there.

The multiprocess mode of prometheus_client is not used: its files are sparse and grow, so that a process is killed
(SIGBUS) when it counts while the disk is full.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import socket
import threading
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# The maximum of WEB_WORKERS, and a few processes that have not ended when their successors start.
MAX_PROCESSES = 80
VALUE_BYTES = 8
# Since the last start or scrape. Counting itself does not change the modification time of a file on a tmpfs.
UNUSED_FILE_SECONDS = 30 * 86400


class SharedCounters(Generic[Key]):
    """A fixed set of counters, at first of this process alone.

    :param keys: the key of each counter; the same in all processes that share a file.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._positions = {key: position for position, key in enumerate(keys)}
        self._slot_bytes = VALUE_BYTES * len(keys)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._memory = mmap.mmap(-1, self._slot_bytes)
        self._values = memoryview(self._memory).cast("d")
        self._own_offset = 0

    def add(self, *amounts: tuple[Key, float]) -> None:
        """Increase counters of this process.

        :raises KeyError: when a key is not in the set.
        """
        with self._lock:
            for key, amount in amounts:
                self._values[self._own_offset + self._positions[key]] += amount

    def totals(self) -> dict[Key, float]:
        """Return the sum of all processes for each counter."""
        if self._file is not None:
            with suppress(OSError):
                os.utime(self._file)
        size = len(self._positions)
        slots = range(0, len(self._values), size)
        return {key: sum(self._values[slot + position] for slot in slots) for key, position in self._positions.items()}

    def share(self, folder: Path, server: str) -> None:
        """Count in a file that all processes of a server share; what was counted before is added to it.

        The file is written as a whole first: a page that is missing when the disk is full could not be written later.

        :param folder: a folder of this instance, which is created.
        :param server: the address of the server, unique on this machine.
        :raises OSError: when the file cannot be created or all slots are in use. The counters are unchanged.
        """
        file = _open_file(folder, server, repr(list(self._positions)))
        try:
            os.posix_fallocate(file, 0, MAX_PROCESSES * self._slot_bytes)
            slot = _claim_slot(file, self._slot_bytes)
            memory = mmap.mmap(file, MAX_PROCESSES * self._slot_bytes)
        except OSError:
            os.close(file)
            raise
        with self._lock:
            counted = self._values[self._own_offset : self._own_offset + len(self._positions)]
            # The file stays open, since closing it would release the slot.
            self._file, self._memory = file, memory
            self._values, self._own_offset = memoryview(memory).cast("d"), slot * len(self._positions)
            for position, value in enumerate(counted):
                self._values[self._own_offset + position] += value


def _open_file(folder: Path, server: str, layout: str) -> int:
    """Open or create the file of a server; delete those of versions with other counters, and those unused for long.

    The name contains the host, since instances on several hosts may have the same folder. A container has another host
    name after each update.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    prefix = hashlib.sha256(f"{socket.gethostname()}\n{server}".encode()).hexdigest()[:16]
    name = f"{prefix}-{hashlib.sha256(layout.encode()).hexdigest()[:16]}"
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    # Another user's file, or a folder, cannot be deleted: counting does not depend on it.
    with suppress(OSError):
        os.utime(file)
        for other in folder.iterdir():
            with suppress(OSError):
                is_unused = time.time() - other.stat().st_mtime > UNUSED_FILE_SECONDS
                if is_unused or (other.name.startswith(prefix) and other.name != name):
                    other.unlink()
    return file


def _claim_slot(file: int, slot_bytes: int) -> int:
    """Lock the first free slot of a file; return its number.

    The kernel releases the lock when the process ends, also when it is killed.

    :raises OSError: when all slots are in use.
    """
    for slot in range(MAX_PROCESSES):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, slot_bytes, slot * slot_bytes)
        except (BlockingIOError, PermissionError):
            continue
        return slot
    raise OSError(f"{MAX_PROCESSES} web processes are running")
