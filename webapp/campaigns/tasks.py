"""The bells of the campaigns. What there is to do stands in rows; a bell that rings twice, or never, does no harm."""

from __future__ import annotations

import secrets
from datetime import datetime

from flask import current_app
from huey import crontab

from webapp import bell, logs
from webapp.campaigns import (
    actions,
    batch_actions,
    closing_actions,
    course_actions,
    delivery,
    issue_actions,
    launch_queries,
    queries,
)
from webapp.campaigns.actions import Launched
from webapp.campaigns.issue_actions import Again, Which
from webapp.campaigns.models import Campaign
from webapp.campaigns.wording import MailText


def _prepare(campaign_id: int) -> None:
    with logs.about(campaign_id=campaign_id):
        batch_actions.prepare(campaign_id)
    _ring_pumps()


def _pump() -> None:
    if delivery.pump():
        bell.ring(pump)


def _sweep() -> None:
    """Ring again for whatever waits: lost bells, dead owners, mails put off, campaigns that are through."""
    _start()
    closing_actions.close_cancelled()
    course_actions.settle_cancelled(f"sweep:{secrets.token_hex(4)}")
    course_actions.finish_campaigns()
    for campaign_id in queries.preparing():
        bell.ring(prepare, campaign_id)
    if queries.is_work():
        _ring_pumps()
    wait = queries.next_wake()
    if wait is not None:
        bell.ring(pump, after=wait + 1)
    _ring_start()


def _start() -> None:
    """Launch what waited for this moment."""
    for campaign_id in actions.start_due():
        bell.ring(prepare, campaign_id)


def _ring_start() -> None:
    """Come back at the second in which the next mailing starts, if it does before the next sweep."""
    wait = launch_queries.next_start()
    if wait is not None:
        bell.ring(start, after=wait)


prepare = bell.task(_prepare)
pump = bell.task(_pump)
start = bell.task(_start)
close = bell.task(closing_actions.close_cancelled)
sweep = bell.every(crontab(minute="*"), _sweep)


def _ring_pumps() -> None:
    for _ in range(current_app.config["SETTINGS"].mail_connections):
        bell.ring(pump)


def launch_offer(offer_id: int, by: str, at: datetime | None = None) -> Launched:
    """`actions.launch_offer`, then one bell."""
    return _rung(actions.launch_offer(offer_id, by, at))


def remind(offer_id: int, mail: MailText, by: str, at: datetime | None = None) -> Launched:
    """`actions.remind`, then one bell."""
    return _rung(actions.remind(offer_id, mail, by, at))


def launch(campaign_id: int, by: str, again: bool | None = None, seen: str | None = None) -> Launched:
    """`actions.launch`, then one bell."""
    return _rung(actions.launch(campaign_id, by, again, seen))


def schedule(campaign_id: int, at: datetime, by: str, again: bool | None = None, seen: str | None = None) -> Launched:
    """`actions.schedule`, then the bell for its time, if that is near."""
    return _rung(actions.schedule(campaign_id, at, by, again, seen))


def cancel(campaign_id: int, by: str) -> Campaign:
    """`actions.cancel`, then the bell to close what is left of it."""
    campaign = actions.cancel(campaign_id, by)
    bell.ring(close)
    return campaign


def _rung(launched: Launched) -> Launched:
    if launched.changed:
        _ring_for(launched.campaign)
    return launched


def resume(campaign_id: int, by: str) -> Campaign:
    """`actions.resume`, then the bells of what is left."""
    campaign = actions.resume(campaign_id, by)
    _ring_for(campaign)
    return campaign


def send_again(campaign_id: int, which: Which, by: str) -> Again:
    """`issue_actions.send_again`, then the bells."""
    again = issue_actions.send_again(campaign_id, which, by)
    _ring_pumps()
    return again


def _ring_for(campaign: Campaign) -> None:
    if campaign.status == "preparing":
        bell.ring(prepare, campaign.id)
    elif campaign.status == "sending":
        _ring_pumps()
    elif campaign.status == "scheduled":
        _ring_start()
