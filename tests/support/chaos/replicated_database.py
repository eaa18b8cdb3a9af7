"""A durable database with a synchronous standby, whose primary can crash or freeze.

No manager such as Patroni decides: the test promotes the standby, as an administrator would.
"""

from __future__ import annotations

import shutil
import signal
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
    """A primary and its synchronous standby, without which nothing is confirmed.

    :ivar database: its settings name both servers; its `server` is the primary, and after `promote` the former standby.
    """

    database: DurableDatabase
    primary: EmbeddedServer
    standby: EmbeddedServer

    def promote(self) -> None:
        """Make the standby the primary. Returns when it accepts writes."""
        with psycopg.connect(self.standby.conninfo(), autocommit=True) as connection:
            assert connection.execute("select pg_promote(true, 60)").fetchone() == (True,)
        self.database.server = self.standby


def freeze(server: EmbeddedServer) -> None:
    """Stop all processes of a server by SIGSTOP. The kernel still accepts connections to it."""
    _send_signal(server, signal.SIGSTOP)


def resume(server: EmbeddedServer) -> None:
    """Let a frozen server continue."""
    _send_signal(server, signal.SIGCONT)


def kill(server: EmbeddedServer) -> None:
    """End all processes of a server, also of a frozen one, by SIGKILL."""
    psutil.wait_procs(_send_signal(server, signal.SIGKILL), timeout=30)


def _send_signal(server: EmbeddedServer, number: signal.Signals) -> list[psutil.Process]:
    postmaster = server._find_postmaster()
    if postmaster is None:
        return []
    children = postmaster.children(recursive=True)
    if number == signal.SIGSTOP:
        # It can start no other process once it is stopped.
        postmaster.suspend()
        children = postmaster.children(recursive=True)
    processes = [postmaster, *children]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return processes


@contextmanager
def start_replicated_database(customers: int, *, standby_first: bool = False) -> Iterator[ReplicatedDatabase]:
    """Run a server with many customers and its synchronous standby.

    :param standby_first: whether the connection string names the standby before the primary.
    """
    with durable_database.start_durable_database(customers) as database:
        standby = _create_standby(database)
        replicated = ReplicatedDatabase(database, database.server, standby)
        try:
            standby.start()
            _require_standby(database)
            hosts = [str(server.socket_folder) for server in (database.server, standby)]
            url = f"postgresql://onecode@/onecode?host={','.join(reversed(hosts) if standby_first else hosts)}"
            database.settings = replace(database.settings, database_url=url)
            database.app = create_app(database.settings)
            yield replicated
        finally:
            kill(replicated.primary)
            resume(standby)
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
