"""What is left to do for a campaign that was cancelled, in portions, so that cancelling costs the same for any size."""

from __future__ import annotations

from sqlalchemy import text

from webapp.core.extensions import db

PORTION = 1000

_BATCHES = text(
    """
    update batch set status = 'cancelled' where id in (
      select b.id from batch b join campaign c on c.id = b.campaign_id
      where c.status = 'cancelled' and b.status = 'pending'
      limit :portion for update of b skip locked
    )
    """
)
_DEFERRED = text(
    """
    update mail_issue i set state = 'skipped', smtp_code = null, text = 'the mailing was cancelled', next_at = null
    from (
      select d.campaign_id, d.customer_id from mail_issue d join campaign c on c.id = d.campaign_id
      where c.status = 'cancelled' and d.state = 'deferred' and d.next_at is not null
      limit :portion for update of d skip locked
    ) x
    where i.campaign_id = x.campaign_id and i.customer_id = x.customer_id
    """
)
# Nobody comes further in a batch that is closed; a worker that gives one back because of the cancellation leaves these.
_CURSORS = text("delete from batch_cursor k using batch b where b.id = k.batch_id and b.status = 'cancelled'")
# Locked before it is summed: whoever takes a mail off those that were sent holds the campaign until that is seen here.
_THROUGH = text(
    """
    select c.id from campaign c
    where c.status = 'cancelled' and c.sent_in_batches is null and not exists (
      select from batch b where b.campaign_id = c.id and b.status in ('pending', 'sending')
    )
    for no key update skip locked
    """
)
_SUMS = text(
    """
    update campaign c set sent_in_batches = (
      select coalesce(sum(b.sent), 0) from batch b where b.campaign_id = c.id
    )
    where c.id = any(:ids)
    """
)


def close_cancelled() -> None:
    """Close the batches of cancelled campaigns that nobody sends, leave out those whose mail was put off, and keep what
    went out of those that are through. Commits each portion; can be killed anywhere and done by two workers at once."""
    for statement in (_BATCHES, _DEFERRED):
        while db.session.execute(statement, {"portion": PORTION}).rowcount:  # type: ignore[attr-defined]
            db.session.commit()
        db.session.rollback()
    db.session.execute(_CURSORS)
    db.session.commit()
    db.session.execute(_SUMS, {"ids": db.session.scalars(_THROUGH).all()})
    db.session.commit()
