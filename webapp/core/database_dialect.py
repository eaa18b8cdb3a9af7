"""SQLAlchemy's dialect for PostgreSQL, without statements on the first connection.

SQLAlchemy asks the server for its version and parameters on the first connection of an engine, under a lock. Behind a
connection pooler whose server does not respond, logging in works: one thread after another would hold the lock until
its statement times out.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine.interfaces import DBAPIConnection, IsolationLevel

from webapp.core.database_connections import DeadlineConnection


class OnecodeDialect(PGDialect_psycopg):
    """Knows version and parameters of the server from the login; the other values are the same on every server.

    Registered as `postgresql+onecode`, see `database_engines.DRIVER_URL`.
    """

    supports_statement_cache = True

    def __init__(self, **arguments: Any) -> None:
        # Otherwise, it would look for the type hstore of an extension.
        super().__init__(use_native_hstore=False, **arguments)  # type: ignore[no-untyped-call]

    def _get_server_version_info(self, connection: Connection) -> tuple[int, ...]:
        # Since PostgreSQL 10, 180004 is 18.4.
        return divmod(_driver_of(connection).info.server_version, 10000)

    def _get_default_schema_name(self, connection: Connection) -> str:
        # Only used when migrations are compared with the models.
        return "public"

    def get_default_isolation_level(self, dbapi_conn: DBAPIConnection) -> IsolationLevel:
        """Return the level that a connection gets when it is returned to the pool with another one."""
        return "READ COMMITTED"  # no translation

    def _set_backslash_escapes(self, connection: Connection) -> None:
        value = _driver_of(connection).info.parameter_status("standard_conforming_strings")
        self._backslash_escapes = value == "off"


def _driver_of(connection: Connection) -> DeadlineConnection:
    return cast("DeadlineConnection", connection.connection.driver_connection)
