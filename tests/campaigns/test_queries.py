"""Counting the emails of a batch that is being sent, and campaigns that another process has changed."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask
from sqlalchemy import text

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.models import Batch, BatchCursor, Campaign, MailIssue, encode_gaps
from webapp.core.extensions import db
from webapp.offers.models import Offer

IDS = [3, 4, 9, 20, 21, 22, 50, 51, 80, 99]


def test_emails_sent_in_an_open_window_are_counted(app: Flask, make_offer: Callable[..., Offer]) -> None:
    campaign = Campaign(offer_id=make_offer().id, subject="s", text="t", status="sending", total=len(IDS))
    db.session.add(campaign)
    db.session.flush()
    batch = Batch(
        campaign_id=campaign.id,
        seq=0,
        first_id=IDS[0],
        last_id=IDS[-1],
        gaps=encode_gaps(IDS),
        status="sending",
        epoch=1,
        window_start=3,
        window_end=8,
        sent=2,
    )
    db.session.add(batch)
    db.session.flush()
    db.session.add(BatchCursor(batch_id=batch.id, epoch=1, cursor=6))
    # One before the window, its first, the last before the cursor, and the one at the cursor.
    for position in (2, 3, 5, 6):
        db.session.add(MailIssue(campaign_id=campaign.id, customer_id=IDS[position], state="failed"))
    db.session.commit()
    assert stats_queries.get_campaign_stats(campaign.id).sent == 2 + 3 - 2


def test_a_campaign_that_another_process_has_changed_is_read_again(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    offer_id = make_offer().id
    campaign = Campaign(offer_id=offer_id, subject="s", text="t")
    db.session.add(campaign)
    db.session.commit()
    campaign_id = campaign.id
    reads: dict[str, Callable[[], Campaign | None]] = {
        "one": lambda: campaign_queries.get_campaign(campaign_id),
        "two": lambda: campaign_queries.find_announcement(offer_id),
        "three": lambda: campaign_queries.find_current_campaign(offer_id, "announcement"),
    }
    for name, read in reads.items():
        with db.engine.begin() as other:
            other.execute(text("update campaign set subject = :name"), {"name": name})
        found = read()
        assert found is not None
        assert (found.id, found.subject) == (campaign_id, name)
