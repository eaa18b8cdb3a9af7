"""Databases of the test server.

The migrations run once per test run, in a template; each test process copies it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import flask_migrate
import psycopg
from psycopg import sql
from sqlalchemy import text

from tests.support import citus
from tests.support.watchdog import RUN_VARIABLE
from webapp import create_app
from webapp.core import migrations
from webapp.core import settings as app_settings
from webapp.core.extensions import db


@contextmanager
def fresh_database(template: str = "template1") -> Iterator[str]:
    """Create an empty database or copy a template; drop it afterwards."""
    name = f"onecode_test_{secrets.token_hex(4)}"
    _execute("create database {} template {}", name, template)
    yield _address(name)
    _execute("drop database {} with (force)", name)


@contextmanager
def migrated_database() -> Iterator[str]:
    """Create a database with the program's tables; drop it afterwards.

    They are distributed if `CITUS_URL` is set. Citus cannot copy a template.
    """
    created = citus.distributed_database(_migrate) if citus.is_used() else fresh_database(_template())
    with created as url:
        yield url


def drop_template() -> None:
    """Drop the template of `migrated_database` after the last test of the run."""
    if (_run() / "template").exists():
        _execute("drop database if exists {}", _template_name())


def _template() -> str:
    name = _template_name()
    with (_run() / "template.lock").open("w") as lock:
        # The first process creates the template. Closing the file releases the lock.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_run() / "template").exists():
            _execute("create database {}", name)
            _migrate(_address(name))
            (_run() / "template").touch()
    return name


def _migrate(url: str) -> None:
    app = create_app(
        app_settings.load_settings({"DATABASE_URL": url, "SECRET_KEY": "only-for-tests", "INSTANCE_PATH": str(_run())})
    )
    migrations.init_app(app)
    with app.app_context():
        flask_migrate.upgrade()
        db.session.remove()
        # A database with connections cannot be copied.
        db.engine.dispose()


def _run() -> Path:
    return Path(os.environ[RUN_VARIABLE])


def _template_name() -> str:
    return f"onecode_template_{_run().name.removeprefix('onecode-test-')}"


def _address(name: str) -> str:
    parts = urlsplit(os.environ["TEST_DATABASE_URL"])
    return f"postgresql://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")


def _execute(statement: str, *names: str) -> None:
    with psycopg.connect(os.environ["TEST_DATABASE_URL"], autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def empty_tables(keep: Collection[str] = ()) -> None:
    """Delete all rows and restart the sequences.

    A table of a few pages is emptied with DELETE, which takes 2 ms for all tables together; TRUNCATE takes 50 ms,
    since it replaces every file of a table and of those that refer to it.
    """
    kept = {"redemption_tally", "signing_key", *keep}
    # A table comes before those that it refers to.
    names = [table.name for table in reversed(db.metadata.sorted_tables) if table.name not in kept]
    names += ["huey_task", "huey_schedule", "huey_kv"]
    # The rows of distributed tables are not looked for: that takes longer than deleting them.
    distributed = citus.list_distributed_tables() if citus.is_used() else []
    if distributed:
        # Otherwise a reference table cannot be emptied after the distributed tables that refer to it.
        db.session.execute(text("set local citus.multi_shard_modify_mode to 'sequential'"))
    probe = " union all ".join(
        f"select '{name}' as name, pg_relation_size('{name}') > 500000 as is_large where exists (select 1 from {name})"
        for name in names
        if name not in distributed
    )
    filled = dict.fromkeys(distributed, False) | {row.name: row.is_large for row in db.session.execute(text(probe))}
    if "audit_entry" in filled:
        # The audit log is append-only; the owner of the table may switch that off, and the lock lasts until the commit.
        db.session.execute(text("alter table audit_entry disable trigger user"))
    if large := [name for name, is_large in filled.items() if is_large]:
        db.session.execute(text(f"truncate {', '.join(large)} cascade"))
    for name in names:
        if name in filled:
            db.session.execute(text(f"delete from {name}"))
    db.session.execute(
        text(
            "select setval(objid::regclass, 1, false) from pg_depend where classid = 'pg_class'::regclass"
            " and deptype in ('a', 'i') and refobjid = any (cast(:tables as regclass[]))"
            " and objid in (select oid from pg_class where relkind = 'S')"
        ),
        {"tables": names},
    )
    if "audit_entry" in filled:
        db.session.execute(text("alter table audit_entry enable trigger user"))
    db.session.execute(text("update redemption_tally set counted_until = '-infinity'"))
    db.session.commit()


def dump_tables() -> str:
    """Return all rows of all tables as text."""
    names = [table.name for table in db.metadata.sorted_tables]
    rows = [db.session.execute(text(f"select t::text from {name} t")).scalars().all() for name in names]
    db.session.rollback()
    return "\n".join(row for table in rows for row in table)
