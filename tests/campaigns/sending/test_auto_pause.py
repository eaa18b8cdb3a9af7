"""Which failures pause a campaign, and which campaigns are paused."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, campaign_status, create_customers, refresh
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import auto_pause, batches
from webapp.campaigns.sending.batches import BatchClaim
from webapp.core.extensions import db


def claim() -> BatchClaim:
    found = batches.claim_batch("us")
    assert found is not None
    return found


def record(campaign: Campaign, ids: list[int], state: str = "failed") -> None:
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state) "
            "select :campaign, id, :state from unnest(cast(:ids as bigint[])) id"
        ),
        {"campaign": campaign.id, "ids": ids, "state": state},
    )
    db.session.commit()


# --- the share of failures --------------------------------------------------------------------------


@pytest.mark.parametrize(("position", "is_paused"), [(400, False), (399, True)])
def test_a_share_of_exactly_five_percent_does_not_pause_a_campaign(
    launch_campaign: LaunchCampaign, position: int, is_paused: bool
) -> None:
    ids = create_customers(500)
    campaign = launch_campaign()
    held = claim()
    record(campaign, ids[:20])
    held.position = position
    assert auto_pause.pause_if_failing(held) is is_paused
    assert campaign_status(campaign)[0] == ("paused" if is_paused else "sending")


def test_only_failures_of_the_last_emails_of_this_campaign_count(
    launch_campaign: LaunchCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (auto_pause, preparation):
        monkeypatch.setattr(module, "BATCH_SIZE", 40)
    ids = create_customers(100)
    other, campaign = launch_campaign("ONE1"), launch_campaign("TWO2")
    previous_of_other, previous, _, held = (claim() for _ in range(4))
    for finished in (previous_of_other, previous):
        batches.finish_batch(finished)
    held.position = 10
    # Of the last 40 emails up to this one, 19 failed and 15 were skipped.
    record(campaign, [*ids[:28], ids[49]])
    record(campaign, ids[28:43], "skipped")
    # Another worker sends the next batch, and the same customers get an email of another campaign.
    record(campaign, ids[80:100])
    record(other, ids)
    assert not auto_pause.pause_if_failing(held)
    record(campaign, ids[48:49])
    assert auto_pause.pause_if_failing(held)
    assert campaign_status(campaign) == (
        "paused",
        "20 of the last 40 emails were permanently rejected; check the servers' replies",
    )


# --- the campaigns that are paused ------------------------------------------------------------------


def test_only_the_campaign_whose_email_is_rejected_is_paused(launch_campaign: LaunchCampaign) -> None:
    create_customers(1)
    rejected, other = launch_campaign("ONE1"), launch_campaign("TWO2")
    auto_pause.set_delivery_warning("The relay is down.")
    auto_pause.pause_automatically(rejected.id, "spam")
    assert (campaign_status(rejected), rejected.delivery_warning) == (("paused", "spam"), None)
    assert (campaign_status(other), other.delivery_warning) == (("sending", None), "The relay is down.")


def test_a_relay_that_rejects_the_server_pauses_the_campaigns_that_are_being_sent(
    launch_campaign: LaunchCampaign,
) -> None:
    create_customers(1)
    campaigns = [launch_campaign(code) for code in ("ONE1", "TWO2", "THREE3")]
    preparing = launch_campaign("FOUR4", prepare=False)
    transitions.pause_campaign(campaigns[0].id, "mia")
    auto_pause.set_delivery_warning("The relay is down.")
    auto_pause.pause_all_automatically("not you")
    assert [campaign_status(campaign) for campaign in (*campaigns, preparing)] == [
        ("paused", "paused by mia"),
        ("paused", "not you"),
        ("paused", "not you"),
        ("preparing", None),
    ]
    assert [refresh(campaign).delivery_warning for campaign in campaigns] == [None, None, None]
