"""Check that the database accepts and commits writes."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg

# One request to the server, and so one transaction, which changes no row:
# - `alembic_version` exists once the schema is installed.
# - The DELETE is rejected by a standby, and by a server or role that only reads.
# - The series does not fit in 64 kB, so the server writes a temporary file, which fails when its disk is full.
# - The message is a record in the write-ahead log, so that the commit has to wait for the disk and, with synchronous
#   replication, for the standby. Without any record, PostgreSQL does not wait.
_CHECK_WRITES_SQL: LiteralString = """
    select from alembic_version;
    delete from huey_task where false;
    set local work_mem = '64kB';
    select count(*) from generate_series(1, 20000);
    select pg_logical_emit_message(true, 'onecode.write_check', '')
"""


def check_writes(connection: psycopg.Connection[Any]) -> None:
    """Check that the database accepts and commits writes. Changes no row.

    :param connection: one of `database_connections` with autocommit: after a timeout, the server is asked to cancel the
        check also while it waits for a standby. Otherwise each check would leave a server process that waits.
    :raises psycopg.Error: `StatementTimeout`, `DiskFull`, `ReadOnlySqlTransaction` or another error when it does not.
    """
    connection.execute(_CHECK_WRITES_SQL)
