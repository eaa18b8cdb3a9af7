"""Freeze processes of a PostgreSQL server: its kernel still acknowledges packets, but no response comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
