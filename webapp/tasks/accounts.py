"""Tasks for accounts: emails to users and invited persons, expired sessions."""

from __future__ import annotations

from huey import crontab

from webapp.account_emails import actions as account_email_actions
from webapp.accounts import session_actions
from webapp.core import task_queue


@task_queue.periodic_task("accounts.sweep", crontab(minute="*"))
def delete_expired_sessions() -> None:
    """Delete the sessions that have expired, and the devices that were not used for a year."""
    session_actions.delete_expired_sessions()


@task_queue.periodic_task("accounts.send_emails", crontab(minute="*"))
def send_emails() -> None:
    """Send the emails that are due; also enqueued when one is added."""
    account_email_actions.send_due_emails()
