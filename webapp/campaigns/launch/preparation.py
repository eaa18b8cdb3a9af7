"""Prepare a launched campaign: split its audience into batches."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.campaigns.launch import audience as launch_audience
from webapp.campaigns.models import BATCH_SIZE, encode_gaps
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries

AUDIENCE_CHUNK_SIZE = 20 * BATCH_SIZE


def prepare_campaign(campaign_id: int) -> None:
    """Split the audience of a launched campaign into batches; set it to `sending`.

    Safe to interrupt at any point, to repeat and to run concurrently: each chunk and its position are written in one
    transaction under the lock of the campaign.
    """
    while not task_queue.stop_requested.is_set() and _prepare_chunk(campaign_id):
        pass


def _prepare_chunk(campaign_id: int) -> bool:
    """Process one chunk of the audience; return whether there may be more.

    False also when another worker has locked the campaign.
    """
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
    ids = customer_queries.list_customer_ids_after(campaign.audience_id, campaign.prepared_to, AUDIENCE_CHUNK_SIZE)
    if ids:
        _insert_batches(campaign_id, launch_audience.filter_recipients(campaign, ids), ids[-1])
    else:
        db.session.execute(
            text(
                "update campaign set prepared_at = now(), status = 'sending', trouble = null, "
                "sending_since = now(), sent_before = 0 "
                "where id = :id"
            ),
            {"id": campaign_id},
        )
    db.session.commit()
    return bool(ids)


def _insert_batches(campaign_id: int, ids: Sequence[int], last_processed_id: int) -> None:
    first_seq = db.session.execute(
        text("select coalesce(max(seq) + 1, 0) from batch where campaign_id = :id"), {"id": campaign_id}
    ).scalar_one()
    batches = [ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE)]
    if batches:
        db.session.execute(
            text(
                "insert into batch (campaign_id, seq, first_id, last_id, gaps) values (:id, :seq, :first, :last, :gaps)"
            ),
            [
                {
                    "id": campaign_id,
                    "seq": seq,
                    "first": customer_ids[0],
                    "last": customer_ids[-1],
                    "gaps": encode_gaps(customer_ids),
                }
                for seq, customer_ids in enumerate(batches, first_seq)
            ],
        )
    db.session.execute(
        text("update campaign set prepared_to = :to, total = total + :n where id = :id"),
        {"id": campaign_id, "to": last_processed_id, "n": len(ids)},
    )
