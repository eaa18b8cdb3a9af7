"""The task that applies the retention periods."""

from __future__ import annotations

from huey import crontab

from webapp.core import database_timeouts, task_queue
from webapp.retention import actions as retention_actions


@task_queue.periodic_task(
    "retention.run", crontab(minute="*"), statement_seconds=database_timeouts.LONG_STATEMENT_SECONDS
)
def run() -> None:
    """Apply the retention periods that are due: once an hour, or each minute while data remains."""
    retention_actions.apply_retention_periods()
