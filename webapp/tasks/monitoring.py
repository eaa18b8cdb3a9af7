"""Tasks for monitoring."""

from __future__ import annotations

from huey import crontab

from webapp.core import task_queue
from webapp.monitoring import actions as monitoring_actions


@task_queue.periodic_task(
    "monitoring.drop_silent", crontab(minute="*"), former_keys=("webapp.monitoring.actions.drop_silent",)
)
def delete_stale_workers() -> None:
    """Delete the rows of workers whose heartbeat stopped long ago."""
    monitoring_actions.delete_stale_workers()
