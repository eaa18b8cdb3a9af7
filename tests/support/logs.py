"""Captured logs."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from webapp.core import logs
from webapp.core.settings import Settings


@contextmanager
def captured_logs(settings: Settings, form: str = "json", level: str | None = None) -> Iterator[io.StringIO]:
    """Capture everything that is logged, in the format of standard error."""
    root, huey = logging.getLogger(), logging.getLogger("huey")
    before = root.handlers[:], root.level, huey.level, huey.filters[:]
    logs.configure_logging(replace(settings, log_format=form, log_level=level))
    stream = io.StringIO()
    root.handlers[0].stream = stream  # type: ignore[attr-defined]
    try:
        yield stream
    finally:
        root.handlers[:], root.level, huey.level, huey.filters[:] = before[0], before[1], before[2], before[3]
        root.setLevel(before[1])
