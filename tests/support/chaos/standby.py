"""A primary server and a standby that replicates it, both in the connection string of the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psutil
import psycopg

from local import postgresql as embedded_postgresql
from tests.support import watchdog
from tests.support.chaos.durable_database import DurableDatabase, start_durable_database
from tests.support.live_server import wait_until


@dataclass
class ReplicatedDatabase:
    """A database on two servers; commits wait for the standby.

    `database` is that of the primary server, until `promote`.
    """

    database: DurableDatabase
    standby: embedded_postgresql.EmbeddedServer

    def promote(self) -> None:
        """Make the standby the primary server."""
        with psycopg.connect(self.standby.conninfo(), autocommit=True) as connection:
            connection.execute("select pg_promote(true, 60)")
        self.database.server = self.standby


def freeze(server: embedded_postgresql.EmbeddedServer) -> list[psutil.Process]:
    """Stop all processes of a server, while its kernel still accepts connections; return them."""
    postmaster = psutil.Process(int((server.data_folder / "postmaster.pid").read_text().split("\n", 1)[0]))
    # It can start no other process once it is stopped.
    postmaster.send_signal(signal.SIGSTOP)
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    return processes


def end(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to processes that may have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    if number == signal.SIGKILL:
        psutil.wait_procs(processes, timeout=30)


@contextmanager
def start_replicated_database(customers: int) -> Iterator[ReplicatedDatabase]:
    """Run two servers with many customers in a temporary folder."""
    with start_durable_database(customers) as database:
        primary, folder = database.server, database.folder / "standby"
        folder.mkdir()
        standby = embedded_postgresql.locate_server(
            folder, database.folder / "s2", {"primary_conninfo": primary.conninfo()}
        )
        watchdog.add_folder(standby.home)
        standby._make_folders()
        standby._run_program("pg_basebackup", "-R", "-c", "fast", "-D", standby.data_folder, "-d", primary.conninfo())
        try:
            standby.start()
            with database.connect() as connection:
                connection.execute("alter system set synchronous_standby_names = '*'")
                connection.execute("select pg_reload_conf()")
                state = "select sync_state from pg_stat_replication"
                wait_until(lambda: connection.execute(state).fetchall() == [("sync",)])
            # The standby first: the program must find out which one accepts writes.
            hosts = f"{standby.socket_folder},{primary.socket_folder}"
            url = psycopg.conninfo.make_conninfo(host=hosts, user="onecode", dbname="onecode")
            database.settings = replace(database.settings, database_url=url)
            yield ReplicatedDatabase(database, standby)
        finally:
            standby.stop()
