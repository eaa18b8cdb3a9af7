"""SQLAlchemy's engines: that of the pool, and one for direct connections.

A connection pooler that pools transactions, such as PgBouncer with `pool_mode = transaction`, gives every transaction
another session of the server. The connections of the pool can lead through one: they use nothing that outlives a
transaction. What needs a session of its own uses a direct connection: LISTEN and the queue, the lock of migrations, the
temporary tables of imports, and send progress.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import psycopg
from flask import Flask, current_app
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus
from sqlalchemy import Connection, Engine, NullPool, PoolProxiedConnection, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.engine.interfaces import DBAPIConnection

from webapp.core import database_connections, database_errors, database_timeouts
from webapp.core.database_connections import DeadlineConnection
from webapp.core.extensions import db
from webapp.core.settings import Settings

# Only the driver: the parameters of a connection are those of libpq, which SQLAlchemy would read differently.
DRIVER_URL = "postgresql+onecode://"
registry.register("postgresql.onecode", "webapp.core.database_dialect", "OnecodeDialect")


def build_creator(settings: Settings) -> Callable[[], database_connections.DeadlineConnection]:
    """Return the function that opens the connections of the pool.

    With DATABASE_DIRECT_URL, statements are not prepared: the next transaction may have a session that lacks them.
    """
    arguments: dict[str, Any] = {"prepare_threshold": None} if settings.database_direct_url else {}
    return functools.partial(
        database_connections.connect, settings.libpq_url, setting=settings.url_setting, **arguments
    )


def init_app(app: Flask) -> None:
    """Prepare the engine of the pool; create the engine for direct connections if they have their own URL."""
    with app.app_context():
        _limit_ping(db.engine)
        db.engine.dialect.do_begin = _begin  # type: ignore[method-assign]
        database_errors.count_errors(db.engine)
    settings: Settings = app.config["SETTINGS"]
    if settings.database_direct_url:
        engine = app.extensions["direct_engine"] = create_engine(
            DRIVER_URL,
            poolclass=NullPool,
            hide_parameters=True,
            creator=functools.partial(
                database_connections.connect, settings.direct_libpq_url, setting=settings.direct_url_setting
            ),
        )
        database_errors.count_errors(engine)


def get_direct_engine() -> Engine:
    """Return the engine for connections that keep their session until they are closed.

    Without DATABASE_DIRECT_URL it is that of the pool; detach a connection whose session is changed.
    """
    engine: Engine | None = current_app.extensions.get("direct_engine")
    return engine or db.engine


def set_transaction_start(connection: Connection, statements: str) -> None:
    """Let transactions of a connection start with SQL that sets their parameters.

    It takes one request to the server. A connection that replaces this one after it was lost starts them as usual.

    :param connection: a detached connection of the pool's engine; the pool would not undo the setting.
    :param statements: for example `begin; set local …`.
    :raises ValueError: when the connection belongs to the pool.
    """
    if not connection.connection.is_detached:
        raise ValueError("the connection belongs to the pool")
    cast("DeadlineConnection", connection.connection.dbapi_connection).transaction_start_sql = statements.encode()


def check_commits(connection: Connection) -> None:
    """Check that commits of a connection are allowed, as `DeadlineConnection.check_commits` does."""
    cast("DeadlineConnection", connection.connection.dbapi_connection).check_commits()


def _begin(dbapi_connection: PoolProxiedConnection) -> None:
    """Start a transaction with the SQL of `set_transaction_start`.

    Without it, psycopg starts the transaction with the first statement.
    """
    driver = cast("DeadlineConnection", dbapi_connection.dbapi_connection)
    if driver.transaction_start_sql:
        with driver.lock:
            driver.wait(_start_transaction(driver))


def _start_transaction(driver: DeadlineConnection) -> PQGen[None]:
    # psycopg has no public function that runs several statements without starting a transaction itself.
    driver.pgconn.send_query(driver.transaction_start_sql)
    for result in (yield from generators.execute(driver.pgconn)):
        if result.status != ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result, encoding=driver.info.encoding)


def _limit_ping(engine: Engine) -> None:
    """Let the pool wait `PING_SECONDS` when it tests a connection (`pool_pre_ping`)."""
    ping = engine.dialect.do_ping

    def ping_with_deadline(connection: DBAPIConnection) -> bool:
        with database_timeouts.ping_deadline():
            return ping(connection)

    # SQLAlchemy has no event for it.
    engine.dialect.do_ping = ping_with_deadline  # type: ignore[method-assign, assignment]
