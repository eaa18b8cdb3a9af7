"""What the program says about itself while it runs: one form for web, worker and commands, on standard error.

A line carries the time (RFC 3339, UTC), the level, who says it, what it says and, where there is one, the request, the
campaign, the batch and the task it is about. It names no customer: addresses, and what PostgreSQL quotes of rows, are
taken out of every line, whoever wrote it, as far as they look like such.
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

from flask import Response, g, has_request_context, request
from pythonjsonlogger.json import JsonFormatter

from webapp.core import database_health
from webapp.core.settings import Settings

log = logging.getLogger(__name__)

CONTEXT_FIELDS = ("request_id", "campaign_id", "batch_id", "task")
# A request that took longer, in seconds, is worth a line.
SLOW_REQUEST_SECONDS = 1.0

# A local part may be quoted, with blanks in it (RFC 5321), and may be in any script (RFC 6531).
_EMAIL_PATTERN = re.compile(
    r"""(?:"[^"@\n]{1,64}"|(?:[^\s"'<>()\[\]{},;:]|(?<=\w)'(?=\w)){1,320})(?:@|%40)(?:\[[^\]\n]{1,255}\]|[^\s"'<>()\[\]{},;:]{1,255})"""
)
# What PostgreSQL adds to an error: the rows and the lines of files it was about, up to what others add.
_POSTGRESQL_DETAIL_PATTERN = re.compile(
    r"^(DETAIL|CONTEXT|LINE \d+): .*?(?=^(?:HINT|\[SQL|\(Background|Traceback|The above|During)|\Z)", re.M | re.S
)

_CONTROL_PATTERN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

_context: ContextVar[dict[str, object] | None] = ContextVar("about", default=None)


@contextmanager
def log_context(**what: object) -> Iterator[None]:
    """Every line of this thread says meanwhile what it is about: some of `ABOUT`."""
    token = _context.set((_context.get() or {}) | what)
    try:
        yield
    except Exception as error:
        # Whoever logs it further out says what it was about.
        error.__dict__.setdefault("about", _context.get())
        raise
    finally:
        _context.reset(token)


def configure_logging(settings: Settings, level: str | None = None) -> None:
    """Have everything that this process logs written in the form and from the level of the settings.

    :param level: what stands in for LOG_LEVEL where that is not set.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLineFormatter() if settings.log_format == "json" else _TextFormatter())
    handler.addFilter(_filter_huey_noise)
    handler.addFilter(_add_context)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level or level or "INFO")
    # The web server's own logger comes with a handler of its own.
    server = logging.getLogger("_granian")
    server.handlers.clear()
    server.propagate = True
    # Four lines a minute that nothing happened, and of each task that it was done.
    logging.getLogger("huey").setLevel(logging.WARNING)


def log_slow_or_failed_request(response: Response, began: float | None) -> None:
    """A line about a request that failed on our side or took long. It has the rule of the address, which may have an
    e-mail in it, and nothing of what was sent.

    :param began: when the request came, by `time.perf_counter`; None when it was refused before anybody looked.
    """
    seconds = time.perf_counter() - began if began else 0.0
    if response.status_code < 500 and seconds < SLOW_REQUEST_SECONDS:
        return
    if (
        response.status_code == 503
        and database_health.is_database_unavailable()
        and not database_health.should_log_rejected_request()
    ):
        return
    route = request.url_rule.rule if request.url_rule else "no route"
    what = {"method": request.method, "route": route, "status": response.status_code, "ms": round(seconds * 1000)}
    log.warning("%(method)s %(route)s: %(status)d after %(ms)d ms", what, extra=what)


def redact_personal_data(line: str) -> str:
    """A line or a traceback without addresses and without what PostgreSQL quotes."""
    if "@" in line or "%40" in line:
        line = _EMAIL_PATTERN.sub("…", line)
    return _POSTGRESQL_DETAIL_PATTERN.sub(r"\1: …\n", line) if ": " in line else line


def _add_context(record: logging.LogRecord) -> bool:
    here = _context.get() or {}
    if has_request_context() and "request_id" in g:
        here = {"request_id": g.request_id} | here
    for name in CONTEXT_FIELDS:
        if not hasattr(record, name) and name in here:
            setattr(record, name, here[name])
    return True


def _filter_huey_noise(record: logging.LogRecord) -> bool:
    if not record.name.startswith("huey"):
        return True
    # Each thread of the worker asks a database that is away again and again.
    if record.exc_info and database_health.detect_outage(record.exc_info[1]):
        return False
    # `bell` has said so, with what it was about.
    return not (record.exc_info and getattr(record.exc_info[1], "told", False))


def _format_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TextFormatter(logging.Formatter):
    """For people: `2026-03-01T09:00:00.000Z INFO webapp.worker started … [task=pump]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _format_time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        found = [f"{name}={getattr(record, name)}" for name in CONTEXT_FIELDS if hasattr(record, name)]
        # Only a traceback has lines of its own: nobody's words look like a line of ours, or move a terminal's cursor.
        line = _CONTROL_PATTERN.sub(
            lambda sign: repr(sign[0])[1:-1], redact_personal_data(super().formatMessage(record))
        )
        return line + (f" [{' '.join(found)}]" if found else "")

    def format(self, record: logging.LogRecord) -> str:
        return redact_personal_data(super().format(record))


class _JsonLineFormatter(JsonFormatter):
    """For programs: an object a line, with the same words and what the line is about as fields."""

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
