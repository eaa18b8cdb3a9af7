"""Migrations and models describe the same tables."""

from __future__ import annotations

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from sqlalchemy import inspect

from tests.support.databases import migrated_database
from webapp.core.extensions import db


def test_migrations_and_models_define_the_same_schema(app: Flask) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_not_a_queue_table})

        assert compare_metadata(context, db.metadata) == []


def test_migrations_and_models_define_the_same_primary_keys(app: Flask) -> None:
    # Alembic does not compare them.
    found = {
        table.name: inspect(db.engine).get_pk_constraint(table.name)["constrained_columns"]
        for table in db.metadata.sorted_tables
    }

    assert {name: sorted(columns) for name, columns in found.items()} == {
        table.name: sorted(column.name for column in table.primary_key) for table in db.metadata.sorted_tables
    }


def test_a_new_database_has_no_users() -> None:
    with migrated_database() as url, psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from staff_user").fetchall() == [(0,)]
        assert connection.execute("select count(*) from api_key").fetchall() == [(0,)]


def is_not_a_queue_table(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Exclude Huey's tables, which have a migration but no models."""
    return not (kind == "table" and (name or "").startswith("huey_"))
