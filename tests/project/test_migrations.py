"""Migrations and models describe the same tables."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask

from webapp.core.extensions import db


def test_the_migrations_make_what_the_models_say(app: Flask) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": not_of_the_queue})

        assert compare_metadata(context, db.metadata) == []


def not_of_the_queue(thing: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Huey's tables are made by a migration and are no models of ours."""
    return not (kind == "table" and (name or "").startswith("huey_"))
