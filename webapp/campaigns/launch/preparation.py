"""Prepare a launched campaign: write its audience as batches."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.models import BATCH_SIZE, encode_gaps
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries

AUDIENCE_BLOCK_SIZE = 20 * BATCH_SIZE


# --- cutting the audience -------------------------------------------------------------------------


def prepare_campaign(campaign_id: int) -> None:
    """Freeze the audience of a launched campaign into batches, block by block; then it is sending.

    Can be killed anywhere and called again, also by two workers at once: a block and how far it reaches are one
    transaction under the lock of the campaign.
    """
    while not task_queue.stop_requested.is_set() and _prepare_block(campaign_id):
        pass


def _prepare_block(campaign_id: int) -> bool:
    """One block; False when there is no more to do here."""
    campaign = db.session.execute(
        text(
            "select id, offer_id, kind, uncertain_policy, mails_again, audience_id, prepared_to from campaign "
            "where id = :id and status = 'preparing' and prepared_at is null for update skip locked"
        ),
        {"id": campaign_id},
    ).one_or_none()
    if campaign is None or launch_audience.is_blocked_by_cancelled_campaign(campaign):
        db.session.rollback()
        return False
    ids = customer_queries.list_customer_ids_after(campaign.audience_id, campaign.prepared_to, AUDIENCE_BLOCK_SIZE)
    if ids:
        _insert_batches(campaign_id, launch_audience.filter_recipients(campaign, ids), ids[-1])
    else:
        db.session.execute(
            text(
                "update campaign set prepared_at = now(), status = 'sending', sending_since = now(), sent_before = 0 "
                "where id = :id"
            ),
            {"id": campaign_id},
        )
    db.session.commit()
    return bool(ids)


def _insert_batches(campaign_id: int, ids: Sequence[int], reached: int) -> None:
    first = db.session.execute(
        text("select coalesce(max(seq) + 1, 0) from batch where campaign_id = :id"), {"id": campaign_id}
    ).scalar_one()
    slices = [ids[at : at + BATCH_SIZE] for at in range(0, len(ids), BATCH_SIZE)]
    if slices:
        db.session.execute(
            text(
                "insert into batch (campaign_id, seq, first_id, last_id, gaps) values (:id, :seq, :first, :last, :gaps)"
            ),
            [
                {"id": campaign_id, "seq": first + n, "first": part[0], "last": part[-1], "gaps": encode_gaps(part)}
                for n, part in enumerate(slices)
            ],
        )
    db.session.execute(
        text("update campaign set prepared_to = :to, total = total + :n where id = :id"),
        {"id": campaign_id, "to": reached, "n": len(ids)},
    )
