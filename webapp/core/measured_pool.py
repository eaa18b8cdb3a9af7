"""A connection pool that measures waits."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from webapp.core import web_metrics

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

# SQLAlchemy names the logger of a pool after its class: without this, its messages would be logged like the program's.
logging.getLogger(f"{__name__}.MeasuredQueuePool").setLevel(logging.WARNING)


class MeasuredQueuePool(QueuePool):
    """A pool that counts how long requests wait for a connection, including the time to test or to open one."""

    def connect(self) -> PoolProxiedConnection:
        """Return a connection of the pool; count the wait for it, and whether that timed out."""
        started_at = time.perf_counter()
        try:
            return super().connect()
        except PoolTimeoutError:
            web_metrics.count_database_error("pool_timeout")
            raise
        finally:
            web_metrics.count_wait(time.perf_counter() - started_at)
