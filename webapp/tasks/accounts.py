"""Tasks for accounts: emails to users and invited persons."""

from __future__ import annotations

from huey import crontab

from webapp.account_emails import actions as account_email_actions
from webapp.core import task_queue


@task_queue.periodic_task("accounts.send_emails", crontab(minute="*"))
def send_emails() -> None:
    """Send the emails that are due; also enqueued when one is added."""
    account_email_actions.send_due_emails()
