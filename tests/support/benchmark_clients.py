"""Systems under test for tests of concurrent clients.

Each client process imports this module, so it imports little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.concurrent_clients import Work


@dataclass
class FileRecorder:
    """A system whose clients create a file for each item."""

    folder: str

    def open(self, threads: int) -> None:
        """Nothing to open."""

    @contextmanager
    def client(self) -> Iterator[Work]:
        yield self.record

    def record(self, item: int) -> bool:
        if item == 13:
            raise ValueError("thirteen")
        Path(self.folder, f"{item}").open("x").close()
        time.sleep(0.01)
        return item % 2 == 0

    def close(self) -> None:
        Path(self.folder, f"closed by {os.getpid()}").touch()


class CrashingRecorder(FileRecorder):
    def open(self, threads: int) -> None:
        os._exit(1)


CUSTOMERS = 60
