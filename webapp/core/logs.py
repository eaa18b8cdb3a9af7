"""Logging: one format for web processes, workers and commands, on standard error.

A line has the time (RFC 3339, UTC), the level, the logger, the message and, if known, the ids of the request, campaign
and batch and the name of the task. Personal data is redacted: anything that looks like an email address, and row
contents that PostgreSQL quotes, are removed from every line, including those of third-party libraries.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flask import Response, g, has_request_context, request
from pythonjsonlogger.json import JsonFormatter

from webapp.core import database_health
from webapp.core.settings import Settings

log = logging.getLogger(__name__)

CONTEXT_FIELDS = ("request_id", "campaign_id", "batch_id", "task")
# Requests that took longer than this, in seconds, are logged.
SLOW_REQUEST_SECONDS = 1.0

# A local part may be quoted and contain spaces (RFC 5321), and may be in any script (RFC 6531).
_EMAIL_PATTERN = re.compile(
    r"""(?:"[^"@\n]{1,64}"|(?:[^\s"'<>()\[\]{},;:]|(?<=\w)'(?=\w)){1,320})(?:@|%40)(?:\[[^\]\n]{1,255}\]|[^\s"'<>()\[\]{},;:]{1,255})"""
)
# Details that PostgreSQL adds to an error (contents of rows and input lines), up to the next known section.
_POSTGRESQL_DETAIL_PATTERN = re.compile(
    r"^(DETAIL|CONTEXT|LINE \d+): .*?(?=^(?:HINT|\[SQL|\(Background|Traceback|The above|During)|\Z)", re.M | re.S
)

_CONTROL_PATTERN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

_context: ContextVar[dict[str, object] | None] = ContextVar("log_context", default=None)


@contextmanager
def log_context(**fields: object) -> Iterator[None]:
    """Add fields to every line that this thread logs inside the block.

    :param fields: some of `CONTEXT_FIELDS`.
    """
    token = _context.set((_context.get() or {}) | fields)
    try:
        yield
    except Exception as error:
        # Read by code outside the block that logs the exception.
        error.__dict__.setdefault("log_context", _context.get())
        raise
    finally:
        _context.reset(token)


def configure_logging(settings: Settings, level: str | None = None) -> None:
    """Configure the logging of this process with the format and level of the settings.

    :param level: the level when LOG_LEVEL is not set.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLineFormatter() if settings.log_format == "json" else _TextFormatter())
    handler.addFilter(_filter_huey_noise)
    handler.addFilter(_add_context)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level or level or "INFO")
    # The logger of the web server has its own handler.
    server = logging.getLogger("_granian")
    server.handlers.clear()
    server.propagate = True
    # At level INFO Huey logs several lines a minute while idle, and every completed task.
    logging.getLogger("huey").setLevel(logging.WARNING)
    # At level INFO Alembic logs its six plugins when it is imported, by a web process at the first request of /metrics.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


def log_slow_or_failed_request(response: Response, started_at: float | None) -> None:
    """Log a request that failed with a server error or took long.

    The line has the URL rule and not the URL, which may contain an email address, and nothing of the request's body.

    :param started_at: when the request started, by `time.perf_counter`; None when it was rejected before the request
        hooks ran.
    """
    seconds = time.perf_counter() - started_at if started_at else 0.0
    if response.status_code < 500 and seconds < SLOW_REQUEST_SECONDS:
        return
    if (
        response.status_code == 503
        and database_health.is_database_unavailable()
        and not database_health.should_log_rejected_request()
    ):
        return
    route = request.url_rule.rule if request.url_rule else "no route"
    fields = {"method": request.method, "route": route, "status": response.status_code, "ms": round(seconds * 1000)}
    kind = "failed" if response.status_code >= 500 else "slow"
    log.warning(f"{kind} request: %(method)s %(route)s: %(status)d after %(ms)d ms", fields, extra=fields)


def redact_personal_data(line: str) -> str:
    """Return a line or a traceback without personal data.

    Email addresses and row contents quoted by PostgreSQL are removed.
    """
    if "@" in line or "%40" in line:
        line = _EMAIL_PATTERN.sub("…", line)
    return _POSTGRESQL_DETAIL_PATTERN.sub(r"\1: …\n", line) if ": " in line else line


def _add_context(record: logging.LogRecord) -> bool:
    fields = _context.get() or {}
    if has_request_context() and "request_id" in g:
        fields = {"request_id": g.request_id} | fields
    for name in CONTEXT_FIELDS:
        if not hasattr(record, name) and name in fields:
            setattr(record, name, fields[name])
    return True


def _filter_huey_noise(record: logging.LogRecord) -> bool:
    if not record.name.startswith("huey"):
        return True
    error = record.exc_info[1] if record.exc_info else None
    # Each thread of the worker keeps polling a database that is unavailable.
    if database_health.report_if_outage(error):
        return False
    # So it does while a server is not promoted yet.
    if database_health.is_read_only(error) and database_health.has_recent_outage():
        return False
    # `task_queue` has logged the failed task already, with its context.
    return not getattr(error, "is_logged", False)


def _format_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _escape_control_characters(text: str) -> str:
    return _CONTROL_PATTERN.sub(lambda match: repr(match[0])[1:-1], text)


class _TextFormatter(logging.Formatter):
    """Text format: `2026-03-01T09:00:00.000Z INFO webapp.worker started … [task=…]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _format_time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = [f"{name}={getattr(record, name)}" for name in CONTEXT_FIELDS if hasattr(record, name)]
        # Escaped, so that a logged value can neither forge a log line nor control the terminal.
        line = _escape_control_characters(redact_personal_data(super().formatMessage(record)))
        return line + (f" [{' '.join(fields)}]" if fields else "")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return an indented traceback: no text of an exception can start a line that looks like one of the log."""
        lines = redact_personal_data(super().formatException(ei)).split("\n")
        return "\n".join(f"  {_escape_control_characters(line)}" for line in lines)

    def format(self, record: logging.LogRecord) -> str:
        return redact_personal_data(super().format(record))


class _JsonLineFormatter(JsonFormatter):
    """JSON format: one object per line, with the message and the context as fields."""

    def __init__(self) -> None:
        names = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "traceback"}
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names, json_ensure_ascii=False)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _format_time(record)

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        return {key: _redact_value(value) for key, value in log_data.items()}


def _redact_value(value: object) -> object:
    if isinstance(value, str):
        return redact_personal_data(value)
    if isinstance(value, dict):
        return {_redact_value(key): _redact_value(inner) for key, inner in value.items()}
    return [_redact_value(inner) for inner in value] if isinstance(value, (list, tuple, set)) else value
