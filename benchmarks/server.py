"""A separate PostgreSQL server for benchmarks, without background work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from local import postgresql as embedded_postgresql

# fsync, full_page_writes and synchronous_commit stay on. Checkpoints and vacuums run only when the benchmark requests
# them; otherwise the amount of WAL would differ from run to run.
PARAMETERS = {"autovacuum": "off", "checkpoint_timeout": "1d", "max_wal_size": "16GB", "shared_buffers": "512MB"}


@dataclass(frozen=True)
class DatabaseServer:
    """A running benchmark server."""

    embedded: embedded_postgresql.EmbeddedServer

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://onecode@/{database}?host={quote(str(self.embedded.socket_folder), safe='')}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.url(database), autocommit=True)

    def create(self, database: str, like: str = "template1") -> None:
        """Create a database as a copy of another one, which must have no connections."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("create database {} template {} strategy file_copy").format(
                    sql.Identifier(database), sql.Identifier(like)
                )
            )

    def drop(self, database: str) -> None:
        with self.connect() as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))

    def cpu_seconds(self) -> float:
        """The CPU seconds of the server so far, on Linux also of its processes that have ended.

        :raises RuntimeError: when processes end all the time.
        """
        main = psutil.Process(int((self.embedded.data_folder / "postmaster.pid").read_text().split()[0]))
        for _ in range(1000):
            # A process that ends while the times are read would be missing or counted twice; then they are read again.
            ended = main.cpu_times()[2:4]
            with suppress(psutil.NoSuchProcess):
                running_seconds = sum(sum(child.cpu_times()[:2]) for child in main.children())
                seconds = running_seconds + sum(main.cpu_times()[:4])
                if main.cpu_times()[2:4] == ended:
                    return seconds
        raise RuntimeError("the processes of the server end too fast to be counted")


@contextmanager
def running() -> Iterator[DatabaseServer]:
    """Start a server in a temporary folder; stop and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="onecode-benchmark-"))
    folder.chmod(0o755)
    server = embedded_postgresql.locate_server(folder, folder / "s", PARAMETERS)
    try:
        server.start()
        yield DatabaseServer(server)
    finally:
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
