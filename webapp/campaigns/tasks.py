"""The bells of the campaigns. What there is to do stands in rows; a bell that rings twice, or never, does no harm."""

from __future__ import annotations

import secrets

from flask import current_app
from huey import crontab

from webapp import bell
from webapp.campaigns import actions, batch_actions, course_actions, delivery, queries
from webapp.campaigns.actions import Launched
from webapp.campaigns.models import Campaign


def _prepare(campaign_id: int) -> None:
    batch_actions.prepare(campaign_id)
    _ring_pumps()


def _pump() -> None:
    if delivery.pump():
        bell.ring(pump)


def _sweep() -> None:
    """Ring again for whatever waits: lost bells, dead owners, mails put off, campaigns that are through."""
    course_actions.settle_cancelled(f"sweep:{secrets.token_hex(4)}")
    course_actions.finish_campaigns()
    for campaign_id in queries.preparing():
        bell.ring(prepare, campaign_id)
    if queries.is_work():
        _ring_pumps()
    wait = queries.next_wake()
    if wait is not None:
        bell.ring(pump, after=wait + 1)


prepare = bell.task(_prepare)
pump = bell.task(_pump)
sweep = bell.every(crontab(minute="*"), _sweep)


def _ring_pumps() -> None:
    for _ in range(current_app.config["SETTINGS"].mail_connections):
        bell.ring(pump)


def launch_offer(offer_id: int, by: str) -> Launched:
    """`actions.launch_offer`, then one bell."""
    launched = actions.launch_offer(offer_id, by)
    if launched.changed:
        _ring_for(launched.campaign)
    return launched


def launch(campaign_id: int, by: str) -> Launched:
    """`actions.launch`, then one bell."""
    launched = actions.launch(campaign_id, by)
    if launched.changed:
        _ring_for(launched.campaign)
    return launched


def resume(campaign_id: int, by: str) -> Campaign:
    """`actions.resume`, then the bells of what is left."""
    campaign = actions.resume(campaign_id, by)
    _ring_for(campaign)
    return campaign


def send_again(campaign_id: int, state: str, by: str) -> int:
    """`actions.send_again`, then the bells."""
    n = actions.send_again(campaign_id, state, by)
    _ring_pumps()
    return n


def _ring_for(campaign: Campaign) -> None:
    if campaign.status == "preparing":
        bell.ring(prepare, campaign.id)
    elif campaign.status == "sending":
        _ring_pumps()
