"""CSV exports: stream the result of a query.

docs/exports.md describes the format. Cells that a spreadsheet would evaluate as formulas are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from webapp.core import database_connections
from webapp.core.extensions import db

# What a formula starts with. Some spreadsheets accept full-width signs, too (OWASP, "CSV Injection").
FORMULA_SIGNS = "-=+@－＝＋＠"
_FORMULA_STARTS = (*FORMULA_SIGNS, "\t", "\r", "\n")
# A cell that a spreadsheet would evaluate as a formula gets a leading apostrophe; an import removes it again.
FORMULA_SAFE_COLUMN = f"case when {{0}} ~ '^[{''.join(_FORMULA_STARTS)}]' then '''' || {{0}} else {{0}} end as {{1}}"
# A time column in the format of `format_time`.
TIME_COLUMN = """to_char({0} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as {1}"""
_CSV_CHUNK_SIZE = 64 * 1024


def stream_csv(query: str, params: dict[str, Any]) -> Iterator[bytes]:
    """Stream the result of a query as CSV in chunks of about 64 KiB.

    The application context must stay active until the last chunk.
    """
    connection = db.session.connection()
    driver: Any = connection.connection.driver_connection
    with (
        database_connections.long_statements(connection),
        driver.cursor().copy(f"copy ({query}) to stdout (format csv, header)", params) as copy,
    ):
        buffer = bytearray()
        # PostgreSQL sends one message per row and ends it with LF; line breaks inside cells are kept.
        for row in copy:
            buffer += row[:-1]
            buffer += b"\r\n"
            if len(buffer) >= _CSV_CHUNK_SIZE:
                yield bytes(buffer)
                buffer.clear()
    # The query ends before the last chunk is sent, so a client that stops reading there does not keep it open.
    yield bytes(buffer)


def format_time(at: datetime | None) -> str:
    """Return a time as ISO 8601 in UTC, such as 2026-05-01T12:30:00Z; an empty text for None."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def escape_formula(value: object) -> object:
    """Return a cell; text that could be a formula gets a leading apostrophe.

    Names, ids and replies of servers are input from outside.
    """
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
