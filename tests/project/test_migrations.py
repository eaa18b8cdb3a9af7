"""Migrations and models describe the same tables."""

from __future__ import annotations

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from sqlalchemy import CheckConstraint, inspect

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


def test_migrations_and_models_define_the_same_defaults_and_collations(app: Flask) -> None:
    # Alembic compares neither.
    found = {
        (table.name, column["name"]): (
            any(column.get(kind) for kind in ("default", "identity", "computed")),
            getattr(column["type"], "collation", None),
        )
        for table in db.metadata.sorted_tables
        for column in inspect(db.engine).get_columns(table.name)
    }

    assert found == {
        (table.name, column.name): (column.server_default is not None, getattr(column.type, "collation", None))
        for table in db.metadata.sorted_tables
        for column in table.columns
    }


def test_migrations_and_models_define_the_same_check_constraints(app: Flask) -> None:
    # Alembic does not compare them.
    found = {
        (table.name, constraint["name"])
        for table in db.metadata.sorted_tables
        for constraint in inspect(db.engine).get_check_constraints(table.name)
    }

    assert found == {
        (table.name, constraint.name)
        for table in db.metadata.sorted_tables
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }


def test_migrations_and_models_define_the_same_partial_indexes(app: Flask) -> None:
    # Alembic compares the columns of an index only.
    found = {
        index["name"]
        for table in db.metadata.sorted_tables
        for index in inspect(db.engine).get_indexes(table.name)
        if index.get("dialect_options", {}).get("postgresql_where")
    }

    assert found == {
        index.name
        for table in db.metadata.sorted_tables
        for index in table.indexes
        if index.dialect_options["postgresql"]["where"] is not None
    }


def test_a_new_database_has_no_users() -> None:
    with migrated_database() as url, psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from staff_user").fetchall() == [(0,)]
        assert connection.execute("select count(*) from api_key").fetchall() == [(0,)]


def is_not_a_queue_table(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Exclude Huey's tables, which have a migration but no models."""
    return not (kind == "table" and (name or "").startswith("huey_"))
