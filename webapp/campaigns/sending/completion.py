"""Finish campaigns, and close the batches of cancelled ones."""

from __future__ import annotations

import logging

from sqlalchemy import text

from webapp.campaigns.sending.batches import take_over_batch
from webapp.core.extensions import db

log = logging.getLogger(__name__)


def finish_campaigns() -> None:
    """Finish campaigns without remaining recipients or retries: set them to `done`."""
    # Locked before the check for remaining recipients: a transaction that schedules retries holds this lock until it
    # has committed. A locked campaign is skipped here and checked the next time.
    ids = db.session.scalars(
        text(
            "select id from campaign where status = 'sending' and prepared_at is not null for no key update skip locked"
        )
    ).all()
    done_ids = db.session.scalars(
        text(
            """
            update campaign c set status = 'done', finished_at = now(), trouble = null,
              sent_in_batches = (select coalesce(sum(b.sent), 0) from batch b where b.campaign_id = c.id)
            where c.id = any(:ids)
              and not exists (select 1 from batch b where b.campaign_id = c.id and b.status in ('pending', 'sending'))
              and not exists (
                select 1 from mail_issue i where i.campaign_id = c.id and i.next_at is not null
                  and (i.state = 'deferred' or c.uncertain_policy = 'resend' or i.next_at > now())
              )
            returning c.id
            """
        ),
        {"ids": ids},
    ).all()
    db.session.commit()
    for campaign_id in done_ids:
        log.info("campaign %s finished", campaign_id, extra={"campaign_id": campaign_id})


def close_cancelled_batches(owner: str) -> None:
    """Close batches of cancelled campaigns whose lease has expired.

    :param owner: the unique id of the calling worker.
    """
    while True:
        row = db.session.execute(
            text(
                "update batch set status = 'cancelled', owner = :owner, epoch = epoch + 1 where id = ("
                "select b.id from batch b join campaign c on c.id = b.campaign_id where c.status = 'cancelled' "
                "and b.status in ('pending', 'sending') and coalesce(b.lease_until < now(), true) "
                "limit 1 for update of b skip locked) "
                "returning id, campaign_id, epoch, gaps, window_start, window_end, sent"
            ),
            {"owner": owner},
        ).one_or_none()
        if row is None:
            db.session.rollback()
            return
        claim = take_over_batch(row, owner)
        db.session.execute(text("delete from batch_cursor where batch_id = :batch"), {"batch": claim.batch_id})
        db.session.commit()
