"""Task for the sessions of staff."""

from __future__ import annotations

from huey import crontab

from webapp.accounts import session_actions
from webapp.core import task_queue


@task_queue.periodic_task("accounts.sweep", crontab(minute="*"))
def delete_expired_sessions() -> None:
    """Delete the sessions that have expired, and the devices that were not used for a year."""
    session_actions.delete_expired_sessions()
