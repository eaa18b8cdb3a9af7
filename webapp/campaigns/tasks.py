"""The bells of the campaigns. What there is to do stands in rows; a bell that rings twice, or never, does no harm."""

from __future__ import annotations

import secrets
from datetime import datetime

from flask import current_app
from huey import crontab

from webapp.campaigns import actions as campaign_actions
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import MailText
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import Again, Which
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import cancellation, preparation
from webapp.campaigns.launch import queries as launch_queries
from webapp.campaigns.launch.actions import Launched
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import completion, sender
from webapp.core import logs, task_queue


def _prepare(campaign_id: int) -> None:
    with logs.about(campaign_id=campaign_id):
        preparation.prepare(campaign_id)
    _ring_pumps()


def _pump() -> None:
    if sender.pump():
        task_queue.ring(pump)


def _sweep() -> None:
    """Ring again for whatever waits: lost bells, dead owners, mails put off, campaigns that are through."""
    _start()
    cancellation.close_cancelled()
    completion.settle_cancelled(f"sweep:{secrets.token_hex(4)}")
    completion.finish_campaigns()
    for campaign_id in campaign_queries.preparing():
        task_queue.ring(prepare, campaign_id)
    if campaign_queries.is_work():
        _ring_pumps()
    wait = campaign_queries.next_wake()
    if wait is not None:
        task_queue.ring(pump, after=wait + 1)
    _ring_start()


def _start() -> None:
    """Launch what waited for this moment."""
    for campaign_id in launch_actions.start_due():
        task_queue.ring(prepare, campaign_id)


def _ring_start() -> None:
    """Come back at the second in which the next mailing starts, if it does before the next sweep."""
    wait = launch_queries.next_start()
    if wait is not None:
        task_queue.ring(start, after=wait)


prepare = task_queue.task(_prepare)
pump = task_queue.task(_pump)
start = task_queue.task(_start)
close = task_queue.task(cancellation.close_cancelled)
sweep = task_queue.every(crontab(minute="*"), _sweep)


def _ring_pumps() -> None:
    for _ in range(current_app.config["SETTINGS"].mail_connections):
        task_queue.ring(pump)


def launch_offer(offer_id: int, by: str, at: datetime | None = None) -> Launched:
    """`actions.launch_offer`, then one bell."""
    return _rung(campaign_actions.launch_offer(offer_id, by, at))


def remind(offer_id: int, mail: MailText, by: str, at: datetime | None = None) -> Launched:
    """`actions.remind`, then one bell."""
    return _rung(campaign_actions.remind(offer_id, mail, by, at))


def launch(campaign_id: int, by: str, again: bool | None = None, seen: str | None = None) -> Launched:
    """`actions.launch`, then one bell."""
    return _rung(launch_actions.launch(campaign_id, by, again, seen))


def schedule(campaign_id: int, at: datetime, by: str, again: bool | None = None, seen: str | None = None) -> Launched:
    """`actions.schedule`, then the bell for its time, if that is near."""
    return _rung(launch_actions.schedule(campaign_id, at, by, again, seen))


def cancel(campaign_id: int, by: str) -> Campaign:
    """`actions.cancel`, then the bell to close what is left of it."""
    campaign = campaign_actions.cancel(campaign_id, by)
    task_queue.ring(close)
    return campaign


def _rung(launched: Launched) -> Launched:
    if launched.changed:
        _ring_for(launched.campaign)
    return launched


def resume(campaign_id: int, by: str) -> Campaign:
    """`actions.resume`, then the bells of what is left."""
    campaign = campaign_actions.resume(campaign_id, by)
    _ring_for(campaign)
    return campaign


def send_again(campaign_id: int, which: Which, by: str) -> Again:
    """`issue_actions.send_again`, then the bells."""
    again = delivery_actions.send_again(campaign_id, which, by)
    _ring_pumps()
    return again


def _ring_for(campaign: Campaign) -> None:
    if campaign.status == "preparing":
        task_queue.ring(prepare, campaign.id)
    elif campaign.status == "sending":
        _ring_pumps()
    elif campaign.status == "scheduled":
        _ring_start()
