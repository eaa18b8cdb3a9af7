"""Check whether the database accepts writes: whether a small transaction is committed in time.

Reading may work while no write does: on a standby, on a full disk of the write-ahead log, or when the synchronous
standby does not confirm commits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

WRITE_TIMEOUT_SECONDS = 2

# The message is written to the write-ahead log and to no table; its commit is flushed to disk and waits for a
# synchronous standby like any other. Nothing reads it, and no privilege is needed.
_WRITE = text(
    "select case when current_setting('transaction_read_only') = 'off'"
    " then pg_logical_emit_message(true, 'onecode', cast('' as text)) end"
)


@dataclass(frozen=True)
class WriteProbe:
    """The result of a check.

    :ivar seconds: duration of the write, or until it failed.
    """

    is_writable: bool
    seconds: float


def probe_write(engine: Engine) -> WriteProbe:
    """Commit a small transaction; return whether it succeeded within `WRITE_TIMEOUT_SECONDS`.

    The server cancels a commit that waits longer for its standby: the transaction then exists on the primary alone,
    which PostgreSQL reports as a warning and not as an error. Only the duration reveals it.
    """
    started_at = time.monotonic()
    try:
        with engine.begin() as connection:
            connection.execute(text(f"set local statement_timeout = '{WRITE_TIMEOUT_SECONDS}s'"))
            is_written = connection.scalar(_WRITE) is not None
    except SQLAlchemyError:
        is_written = False
    seconds = time.monotonic() - started_at
    return WriteProbe(is_written and seconds < WRITE_TIMEOUT_SECONDS, seconds)
