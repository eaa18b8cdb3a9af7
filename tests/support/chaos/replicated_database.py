"""A durable database with a synchronous standby, whose primary can crash or freeze.

No manager such as Patroni decides: the test promotes the standby, as an administrator would.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psutil
import psycopg

from local import postgresql as embedded_postgresql
from local.postgresql import EmbeddedServer
from tests.support import watchdog
from tests.support.chaos import durable_database
from tests.support.chaos.durable_database import DurableDatabase
from tests.support.live_server import wait_until
from webapp import create_app

STANDBY_NAME = "standby"


@dataclass
class ReplicatedDatabase:
    """A primary and its standby, without which nothing is committed.

    :ivar database: the settings name both servers; `server` is the primary, and after `promote` the former standby.
    """

    database: DurableDatabase
    primary: EmbeddedServer
    standby: EmbeddedServer

    def crash_primary(self) -> None:
        """Stop the primary without a checkpoint."""
        self.database.crash()

    def freeze_primary(self) -> None:
        """Stop all processes of the primary by SIGSTOP. The kernel still accepts connections to it."""
        for process in self._primary_processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def kill_primary(self) -> None:
        """Make sure that no process of the primary runs or is frozen."""
        processes = list(self._primary_processes())
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)

    def promote(self) -> None:
        """Make the standby the primary. Returns when it accepts writes."""
        with psycopg.connect(self.standby.conninfo(), autocommit=True) as connection:
            assert connection.execute("select pg_promote(true, 60)").fetchone() == (True,)
        self.database.server = self.standby

    def _primary_processes(self) -> Iterator[psutil.Process]:
        """Yield the postmaster and, after it was stopped and can start no more, its children."""
        postmaster = self.primary._find_postmaster()
        if postmaster is not None:
            yield postmaster
            yield from postmaster.children(recursive=True)


@contextmanager
def start_replicated_database(customers: int) -> Iterator[ReplicatedDatabase]:
    """Run a server with many customers and its synchronous standby."""
    with durable_database.start_durable_database(customers) as database:
        standby = _create_standby(database)
        replicated = ReplicatedDatabase(database, database.server, standby)
        try:
            standby.start()
            _require_standby(database)
            hosts = f"{database.server.socket_folder},{standby.socket_folder}"
            database.settings = replace(database.settings, database_url=f"postgresql://onecode@/onecode?host={hosts}")
            database.app = create_app(database.settings)
            yield replicated
        finally:
            replicated.kill_primary()
            standby.stop()
            shutil.rmtree(standby.home, ignore_errors=True)


def _create_standby(database: DurableDatabase) -> EmbeddedServer:
    primary = database.server
    instance = database.folder / "standby"
    instance.mkdir()
    standby = embedded_postgresql.locate_server(
        instance,
        database.folder / "t",
        {"primary_conninfo": f"host={primary.socket_folder} user=onecode application_name={STANDBY_NAME}"},
    )
    watchdog.add_folder(standby.home)
    standby._make_folders()
    standby._run_program(
        "pg_basebackup", "--host", primary.socket_folder, "--username", "onecode", "--pgdata", standby.data_folder,
        "--wal-method=stream", "--checkpoint=fast", "--no-sync", "--write-recovery-conf",
    )  # fmt: skip
    return standby


def _require_standby(database: DurableDatabase) -> None:
    """Let each commit wait for the standby from now on."""
    with database.connect() as connection:
        connection.execute(f"alter system set synchronous_standby_names = '{STANDBY_NAME}'")
        connection.execute("select pg_reload_conf()")
        wait_until(
            lambda: (
                connection.execute("select from pg_stat_replication where sync_state = 'sync'").fetchone() is not None
            )
        )
