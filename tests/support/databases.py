"""Databases of the test server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
from psycopg import sql
from sqlalchemy import text

from webapp.core.extensions import db


@contextmanager
def fresh_database() -> Iterator[str]:
    """An address of an empty database, which is dropped afterwards."""
    server = os.environ["TEST_DATABASE_URL"]
    name = f"onecode_test_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    parts = urlsplit(server)
    yield f"postgresql://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def empty_tables() -> None:
    """Empty what earlier tests filled; only tables that hold anything, for a TRUNCATE costs more than a look."""
    names = [t.name for t in db.metadata.sorted_tables if t.name not in ("redemption_tally", "signing_key")]
    names += ["huey_task", "huey_schedule", "huey_kv"]
    probe = " union all ".join(f"select '{name}' where exists (select from {name})" for name in names)
    full = [row[0] for row in db.session.execute(text(probe))]
    if full:
        db.session.execute(text(f"truncate {', '.join(full)} restart identity cascade"))
    db.session.execute(text("update redemption_tally set counted_until = '-infinity'"))
    db.session.commit()
