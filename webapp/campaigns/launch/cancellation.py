"""Clean up cancelled campaigns in chunks.

The cost of cancelling a campaign does not depend on its size.
"""

from __future__ import annotations

from sqlalchemy import text

from webapp.core.extensions import db

CLEANUP_CHUNK_SIZE = 1000

_CANCEL_BATCHES_SQL = text(
    """
    update batch set status = 'cancelled' where id in (
      select b.id from batch b join campaign c on c.id = b.campaign_id
      where c.status = 'cancelled' and b.status = 'pending'
      limit :chunk_size for update of b skip locked
    )
    """
)
_SKIP_DEFERRED_SQL = text(
    """
    update mail_issue i set state = 'skipped', smtp_code = null, text = 'the campaign was cancelled', next_at = null
    from (
      select d.campaign_id, d.customer_id from mail_issue d join campaign c on c.id = d.campaign_id
      where c.status = 'cancelled' and d.state = 'deferred' and d.next_at is not null
      limit :chunk_size for update of d skip locked
    ) x
    where i.campaign_id = x.campaign_id and i.customer_id = x.customer_id
    """
)
# The cursor of a cancelled batch is no longer needed; a worker that releases a cancelled batch does not delete it.
_DELETE_CURSORS_SQL = text(
    "delete from batch_cursor k using batch b where b.id = k.batch_id and b.status = 'cancelled'"
)
# Locked before the sum: a transaction that reduces the number of sent emails holds this lock until it has committed.
_LOCK_COMPLETED_SQL = text(
    """
    select c.id from campaign c
    where c.status = 'cancelled' and c.sent_in_batches is null and not exists (
      select from batch b where b.campaign_id = c.id and b.status in ('pending', 'sending')
    )
    for no key update skip locked
    """
)
_STORE_SENT_TOTALS_SQL = text(
    """
    update campaign c set sent_in_batches = (
      select coalesce(sum(b.sent), 0) from batch b where b.campaign_id = c.id
    )
    where c.id = any(:ids)
    """
)


def clean_up_cancelled_campaigns() -> None:
    """Clean up cancelled campaigns.

    Their pending batches are cancelled, their deferred emails skipped, and their sent totals stored. Commits each
    chunk; safe to interrupt at any point and to run concurrently.
    """
    for statement in (_CANCEL_BATCHES_SQL, _SKIP_DEFERRED_SQL):
        while db.session.execute(statement, {"chunk_size": CLEANUP_CHUNK_SIZE}).rowcount:  # type: ignore[attr-defined]
            db.session.commit()
        db.session.rollback()
    db.session.execute(_DELETE_CURSORS_SQL)
    db.session.commit()
    db.session.execute(_STORE_SENT_TOTALS_SQL, {"ids": db.session.scalars(_LOCK_COMPLETED_SQL).all()})
    db.session.commit()
