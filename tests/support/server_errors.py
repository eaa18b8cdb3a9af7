"""Errors as PostgreSQL reports them."""

from __future__ import annotations

import psycopg
from psycopg.pq import DiagnosticField


def build_server_error(
    error_class: type[psycopg.Error], message: str = "message", *, severity: str = "ERROR", function: str = ""
) -> psycopg.Error:
    """Build the error of a server with German messages.

    :param severity: what happened: `ERROR`, or `FATAL` or `PANIC`, after which the session has ended.
    :param function: the function in the source of PostgreSQL that reports it.
    """
    info: dict[int, bytes | None] = {
        DiagnosticField.SEVERITY: {"ERROR": "FEHLER", "PANIC": "PANIK"}.get(severity, severity).encode(),
        DiagnosticField.SEVERITY_NONLOCALIZED: severity.encode(),
        DiagnosticField.SOURCE_FUNCTION: function.encode(),
    }
    return error_class(message, info=info)


def build_unlogged_table_error() -> psycopg.Error:
    """Build the error of a standby for a statement that reads an unlogged table."""
    message = "während der Wiederherstellung kann nicht auf ungeloggte Relationen zugegriffen werden"
    return build_server_error(psycopg.errors.FeatureNotSupported, message, function="get_relation_info")
