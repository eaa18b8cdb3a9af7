"""Tasks for campaigns.

They are idempotent and may be lost, because the database rows are authoritative.
"""

from __future__ import annotations

import secrets

from huey import crontab

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import cancellation, next_tasks, preparation
from webapp.campaigns.sending import completion, sender
from webapp.campaigns.sending.disk_warning import warn_if_disk_full
from webapp.core import database_timeouts, logs, task_queue


@task_queue.task(
    "campaigns.prepare",
    former_keys=("webapp.campaigns.tasks._prepare",),
    statement_seconds=database_timeouts.LONG_STATEMENT_SECONDS,
)
def prepare(campaign_id: int) -> None:
    """Write the audience of a launched campaign as batches, then enqueue senders."""
    with logs.log_context(campaign_id=campaign_id), warn_if_disk_full():
        preparation.prepare_campaign(campaign_id)
    next_tasks.enqueue_senders()


@task_queue.task("campaigns.send", former_keys=("webapp.campaigns.tasks._pump",))
def send() -> None:
    """Send pending emails for one time slice; if emails remain, enqueue the next."""
    with warn_if_disk_full():
        is_unfinished = sender.send_pending_emails()
    if is_unfinished:
        task_queue.enqueue("campaigns.send")


@task_queue.task("campaigns.start", former_keys=("webapp.campaigns.tasks._start",))
def start() -> None:
    """Launch the scheduled campaigns that are due."""
    launch_actions.launch_due_campaigns()


@task_queue.task("campaigns.clean_up_cancelled", former_keys=("webapp.campaigns.closing_actions.close_cancelled",))
def clean_up_cancelled() -> None:
    """Clean up cancelled campaigns."""
    cancellation.clean_up_cancelled_campaigns()


@task_queue.periodic_task("campaigns.sweep", crontab(minute="*"), former_keys=("webapp.campaigns.tasks._sweep",))
def sweep() -> None:
    """Enqueue work that no task or worker is processing.

    It also launches due campaigns, cleans up cancelled ones and finishes completed ones.
    """
    start()
    cancellation.clean_up_cancelled_campaigns()
    completion.close_cancelled_batches(owner=f"sweep:{secrets.token_hex(4)}")
    completion.finish_campaigns()
    for campaign_id in campaign_queries.list_preparing_campaign_ids():
        task_queue.enqueue("campaigns.prepare", campaign_id)
    if campaign_queries.has_pending_sends():
        next_tasks.enqueue_senders()
    delay_seconds = campaign_queries.seconds_until_next_batch()
    if delay_seconds is not None:
        # One second more, so that the batch is due by the clock of the database, too.
        task_queue.enqueue("campaigns.send", after=delay_seconds + 1)
    next_tasks.enqueue_next_launch()
