"""Shorten the replies of mail servers about the emails of campaigns that ended before the retention period.

Replies often contain the email address. Their enhanced status code (RFC 3463) stays, by which failures are grouped, and
so do the states and counts of deliveries.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import text

from webapp.core.database_clock import get_database_time
from webapp.core.extensions import db

ROWS_PER_STEP = 1000
# Texts without a reply code are sentences of Onecode, except those of bounces and of dismissals, which name the user.
_SHORTENED_TEXT = r"""
  case
    when i.state = 'left' then ''
    when i.smtp_code is not null then coalesce(substring(i.text from '^[245]\.\d{1,3}\.\d{1,3}'), '')
    when i.text like 'bounced:%' then concat_ws(' ', 'bounced:', substring(i.text from '[245]\.\d{1,3}\.\d{1,3}'))
    else i.text
  end
"""
# A campaign that was resent and has finished again is due again.
_DUE = """
  status in ('done', 'cancelled') and coalesce(cancelled_at, finished_at) < :cutoff
  and coalesce(replies_cleared_at < coalesce(cancelled_at, finished_at), true)
"""
_SELECT_DUE_CAMPAIGNS = text(f"select id from campaign where {_DUE} order by id")  # noqa: S608
_COUNT_DUE_CAMPAIGNS = text(
    f"select count(*) from (select from campaign where {_DUE} limit :limit) due"  # noqa: S608
)
_SHORTEN_REPLIES = text(
    f"""
    with due as (
      select customer_id from mail_issue where campaign_id = :campaign and customer_id > :after
      order by customer_id limit :rows
    ),
    shortened as (
      update mail_issue i set text = {_SHORTENED_TEXT} from due
      where i.campaign_id = :campaign and i.customer_id = due.customer_id and i.text <> {_SHORTENED_TEXT}
      returning 1
    )
    select count(*) as found, max(customer_id) as last, (select count(*) from shortened) as shortened from due
    """  # noqa: S608
)
_MARK_CLEARED = text(f"update campaign set replies_cleared_at = now() where id = :campaign and {_DUE}")  # noqa: S608


def shorten_old_replies(days: int) -> Iterator[int]:
    """Shorten the replies of campaigns that ended more than `days` days ago.

    Yields the number of shortened replies after each step; the caller commits.
    """
    cutoff = get_database_time() - timedelta(days=days)
    for campaign_id in db.session.scalars(_SELECT_DUE_CAMPAIGNS, {"cutoff": cutoff}).all():
        found, last = ROWS_PER_STEP, 0
        while found >= ROWS_PER_STEP:
            values = {"campaign": campaign_id, "after": last, "rows": ROWS_PER_STEP}
            found, last, shortened = db.session.execute(_SHORTEN_REPLIES, values).one()
            yield shortened
        db.session.execute(_MARK_CLEARED, {"campaign": campaign_id, "cutoff": cutoff})
        yield 0


def count_campaigns_with_old_replies(days: int, limit: int) -> int:
    """Count the campaigns whose replies the next run shortens, at most `limit`."""
    values = {"cutoff": get_database_time() - timedelta(days=days), "limit": limit}
    return int(db.session.execute(_COUNT_DUE_CAMPAIGNS, values).scalar_one())
