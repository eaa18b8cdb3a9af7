"""What Alembic runs: the app's own engine and models, inside one transaction."""

from __future__ import annotations

from alembic import context
from flask import current_app


def ours(thing: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Huey's tables are made by a migration and are no models of ours."""
    return not (kind == "table" and (name or "").startswith("huey_"))


def run() -> None:
    migrate = current_app.extensions["migrate"]
    if context.is_offline_mode():
        url = migrate.db.engine.url.render_as_string(hide_password=False)
        context.configure(url=url, target_metadata=migrate.db.metadata, literal_binds=True, include_object=ours)
        with context.begin_transaction():
            context.run_migrations()
        return
    with migrate.db.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=migrate.db.metadata,
            include_object=ours,
            **migrate.configure_args,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
