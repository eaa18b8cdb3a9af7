"""The environment of Alembic: the application's engine and models, all migrations in one transaction."""

from __future__ import annotations

from alembic import context
from flask import current_app

from webapp.core import database_timeouts
from webapp.core.database_engines import get_direct_engine


def include_object(thing: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Exclude Huey's tables from comparisons: a migration creates them, but they have no models."""
    return not (kind == "table" and (name or "").startswith("huey_"))


def run() -> None:
    migrate = current_app.extensions["migrate"]
    if context.is_offline_mode():
        url = migrate.db.engine.url.render_as_string(hide_password=False)
        context.configure(
            url=url, target_metadata=migrate.db.metadata, literal_binds=True, include_object=include_object
        )
        with context.begin_transaction():
            context.run_migrations()
        return
    with (
        database_timeouts.statement_deadline(database_timeouts.MIGRATION_STATEMENT_SECONDS),
        get_direct_engine().connect() as connection,
    ):
        context.configure(
            connection=connection,
            target_metadata=migrate.db.metadata,
            include_object=include_object,
            **migrate.configure_args,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
