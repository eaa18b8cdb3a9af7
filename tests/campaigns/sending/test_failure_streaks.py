"""Consecutive failures stop a batch or campaign; a success resets the count."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers, delivery_counts, refresh
from tests.support.smtp_relay import Relay
from webapp.campaigns.sending import sender
from webapp.campaigns.sending.sender import MAX_CONSECUTIVE_CONNECTION_FAILURES, MAX_CONSECUTIVE_REJECTED_BODIES
from webapp.core.extensions import db

pytestmark = pytest.mark.usefixtures("no_retry_delay")


def all_but(n: int, total: int) -> list[str]:
    """The addresses of `total` customers without the n-th."""
    return [f"c{i}@example.com" for i in range(total) if i != n]


def test_an_accepted_email_resets_the_count_of_rejected_bodies(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    failures = MAX_CONSECUTIVE_REJECTED_BODIES - 1
    total = 2 * failures + 1
    create_customers(total)
    relay.behaviour.body.update(dict.fromkeys(all_but(failures, total), "554 5.7.1 spam"))
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert (refresh(campaign).status, campaign.pause_reason) == ("done", None)
    assert delivery_counts(campaign) == {"total": total, "sent": 1, "failed": 2 * failures}


def test_a_rejected_recipient_resets_the_count_of_rejected_bodies(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    failures = MAX_CONSECUTIVE_REJECTED_BODIES - 1
    total = 2 * failures + 1
    create_customers(total)
    relay.behaviour.body.update(dict.fromkeys(all_but(failures, total), "554 5.7.1 spam"))
    relay.behaviour.rcpt[f"c{failures}@example.com"] = "550 5.1.1 unknown"
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert (refresh(campaign).status, campaign.pause_reason) == ("done", None)


def test_an_accepted_email_resets_the_count_of_broken_connections(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    failures = MAX_CONSECUTIVE_CONNECTION_FAILURES - 1
    total = 2 * failures + 1
    create_customers(total)
    relay.behaviour.body.update(dict.fromkeys(all_but(failures, total), "drop"))
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": total, "sent": 1, "uncertain": 2 * failures}
    assert refresh(campaign).status == "done"


def test_consecutive_broken_connections_delay_the_batch(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(2 * MAX_CONSECUTIVE_CONNECTION_FAILURES)
    relay.behaviour.body["*"] = "drop"
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert delivery_counts(campaign)["uncertain"] == MAX_CONSECUTIVE_CONNECTION_FAILURES
    batch = db.session.execute(text("select status, window_start, not_before > now() as is_delayed from batch")).one()
    assert batch == ("pending", MAX_CONSECUTIVE_CONNECTION_FAILURES, True)
    assert refresh(campaign).status == "sending"


def test_broken_connections_of_another_batch_are_counted_from_zero(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(MAX_CONSECUTIVE_CONNECTION_FAILURES + 1)
    relay.behaviour.body.update(dict.fromkeys(all_but(-1, MAX_CONSECUTIVE_CONNECTION_FAILURES), "drop"))
    first, second = launch_campaign("ONE1"), launch_campaign("TWO2")
    sender.send_pending_emails()
    # The failures that delayed the first campaign do not count for the second.
    for campaign in (first, second):
        assert delivery_counts(campaign)["uncertain"] == MAX_CONSECUTIVE_CONNECTION_FAILURES
