"""Enqueue the tasks that follow a change of a campaign's status."""

from __future__ import annotations

from flask import current_app

from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.models import Campaign
from webapp.core import task_queue


def enqueue_next_task(campaign: Campaign) -> None:
    """Enqueue the task that does the next step of a campaign in its status."""
    if campaign.status == "preparing":
        task_queue.enqueue("campaigns.prepare", campaign.id)
    elif campaign.status == "sending":
        enqueue_senders()
    elif campaign.status == "scheduled":
        enqueue_next_launch()


def enqueue_senders() -> None:
    """Enqueue as many senders as a worker has connections to the relay."""
    for _ in range(current_app.config["SETTINGS"].mail_connections):
        task_queue.enqueue("campaigns.send")


def enqueue_next_launch() -> None:
    """Enqueue the launch of the next scheduled campaign for its scheduled time.

    Does nothing if that is after the next sweep.
    """
    delay = launch_queries.seconds_until_next_launch()
    if delay is not None:
        task_queue.enqueue("campaigns.start", after=delay)
