"""Connections to the database: those of the pool, and direct ones.

A connection pooler that pools transactions, such as PgBouncer with `pool_mode = transaction`, gives every transaction
another session of the server. The connections of the pool can lead through one: they use nothing that outlives a
transaction. What needs a session of its own uses a direct connection: LISTEN and the queue, the lock of migrations, the
temporary tables of imports, and send progress.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app
from sqlalchemy import Engine, NullPool, create_engine

from webapp.core.extensions import db
from webapp.core.settings import Settings

DRIVER_URL = "postgresql+psycopg://"


def build_pool_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments of `psycopg.connect` for the pool.

    With DATABASE_DIRECT_URL, statements are not prepared: the next transaction may have a session that lacks them.
    """
    arguments: dict[str, Any] = dict(settings.connection_parameters)
    return arguments | {"prepare_threshold": None} if settings.database_direct_url else arguments


def init_app(app: Flask) -> None:
    """Create the engine for direct connections, if they have their own connection string."""
    settings: Settings = app.config["SETTINGS"]
    if settings.database_direct_url:
        app.extensions["direct_engine"] = create_engine(
            DRIVER_URL,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args=dict(settings.direct_connection_parameters),
        )


def get_direct_engine() -> Engine:
    """Return the engine for connections that keep their session until they are closed.

    Without DATABASE_DIRECT_URL it is that of the pool; detach a connection whose session is changed.
    """
    engine: Engine | None = current_app.extensions.get("direct_engine")
    return engine or db.engine
