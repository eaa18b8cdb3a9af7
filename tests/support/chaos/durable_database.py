"""Databases with many customers, and a separate PostgreSQL server with durable settings, for tests of crashes."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import flask_migrate
import psutil
import psycopg
from flask import Flask
from sqlalchemy import text

from local import postgresql as embedded_postgresql
from tests.support import live_server, watchdog
from webapp import create_app
from webapp.accounts import api_key_actions
from webapp.core import database_connections, database_timeouts, migrations, task_queue
from webapp.core import settings as app_settings
from webapp.core.extensions import db


@dataclass
class PopulatedDatabase:
    """A database with many customers, c1@example.com and so on, and an API key."""

    settings: app_settings.Settings
    key: str
    app: Flask
    folder: Path

    def connect(self) -> psycopg.Connection:
        """Connect as the program does: to the server that accepts writes, with timeouts."""
        return database_connections.connect(self.settings.libpq_url, autocommit=True)

    def redeemed_emails(self, code: str) -> set[str]:
        """Return the emails with a redemption of an offer."""
        with self.connect() as connection:
            rows = connection.execute(
                "select c.email from redemption r join customer c on c.id = r.customer_id "
                "join offer on offer.id = r.offer_id where offer.code = %s",
                [code],
            ).fetchall()
        return {email for (email,) in rows}

    def redemption_count(self, code: str) -> int:
        """Return the number of redemptions that the offer's counter shows."""
        with self.connect() as connection:
            row = connection.execute(
                "select o.redeemed from offer_counter o join offer on offer.id = o.offer_id where offer.code = %s",
                [code],
            ).fetchone()
        assert row is not None, f"there is no offer {code}"
        return int(row[0])

    @contextmanager
    def context(self) -> Iterator[None]:
        """Push a context of the app with this database and its task queue."""
        task_queue.init_app(self.app)
        with self.app.app_context():
            yield
            db.session.remove()
            # A crash of the server would leave broken connections in the pool.
            db.engine.dispose()


@dataclass
class DurableDatabase(PopulatedDatabase):
    """A populated database of a server that can crash."""

    server: embedded_postgresql.EmbeddedServer

    def crash(self) -> None:
        """Stop the server like `pg_ctl stop -m immediate`, without a checkpoint."""
        pid = int((self.server.data_folder / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        process.send_signal(signal.SIGQUIT)
        psutil.wait_procs([process], timeout=30)

    @contextmanager
    def missing_standby(self) -> Iterator[None]:
        """Let commits wait for a standby that does not exist; afterwards, they complete."""
        with self.connect() as connection:
            connection.execute("alter system set synchronous_standby_names = 'missing'")
            connection.execute("select pg_reload_conf()")
            live_server.wait_until(
                lambda: connection.execute("show synchronous_standby_names").fetchone() == ("missing",)
            )
            try:
                yield
            finally:
                connection.execute("alter system reset synchronous_standby_names")
                connection.execute("select pg_reload_conf()")

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.server.conninfo("onecode"), autocommit=True)


def populate(url: str, folder: Path, customers: int) -> PopulatedDatabase:
    """Migrate an empty database and add customers and an API key.

    :param folder: a folder for files of the program.
    """
    (folder / "i").mkdir()
    settings = app_settings.load_settings(
        {
            "DATABASE_URL": url,
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(folder / "i"),
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": "1",
        }
    )
    app = create_app(settings)
    migrations.init_app(app)
    # A busy machine takes long for many customers.
    with app.app_context(), database_timeouts.statement_deadline(database_timeouts.LONG_STATEMENT_SECONDS):
        flask_migrate.upgrade()
        key = api_key_actions.create_api_key("tests", ["redeem", "manage"], by="tests")
        db.session.execute(
            text(
                "insert into customer (email, email_as_given) "
                "select e, e from (select 'c' || n || '@example.com' as e from generate_series(1, :n) n) t"
            ),
            {"n": customers},
        )
        db.session.commit()
        db.engine.dispose()
    return PopulatedDatabase(settings, key, app, folder)


@contextmanager
def start_durable_database(customers: int) -> Iterator[DurableDatabase]:
    """Run a server with many customers in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="onecode-crash-"))
    folder.chmod(0o755)
    server = embedded_postgresql.locate_server(folder, folder / "s")
    for path in (folder, server.home):
        watchdog.add_folder(path)
    try:
        server.start()
        server.create_database("onecode")
        populated = populate(f"postgresql://onecode@/onecode?host={folder / 's'}", folder, customers)
        yield DurableDatabase(populated.settings, populated.key, populated.app, folder, server)
    finally:
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
