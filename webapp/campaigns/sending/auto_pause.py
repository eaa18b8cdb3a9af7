"""What becomes of a campaign by itself: paused because its mails can't go out, done, accounted for when cancelled."""

from __future__ import annotations

import logging

from sqlalchemy import text

from webapp.campaigns.models import BATCH_SIZE
from webapp.campaigns.sending.batches import BatchClaim, retry_while_database_unavailable
from webapp.core.email_addresses import redact_email_addresses
from webapp.core.extensions import db

log = logging.getLogger(__name__)

# When so many mails, and more than this share of the last 500, were refused for good, a campaign pauses by itself.
MIN_FAILURES_TO_PAUSE = 20
MAX_FAILURE_RATE = 0.05

_RECENT_FAILURES_SQL = text(
    """
    with here as (
      select campaign_id, seq, first_id, gaps from batch where id = :batch
    ), earlier as (
      select (select sum(gap) from unnest(b.gaps[: greatest(0, b.window_start - :rest) + 1]) gap) as first_id,
        least(b.window_start, :rest) as n
      from batch b join here on b.campaign_id = here.campaign_id and b.seq = here.seq - 1
      where b.window_start > 0 and :rest > 0
    )
    select
      (
        select count(*) from mail_issue i, here
        where i.campaign_id = here.campaign_id and i.state = 'failed'
          and i.customer_id >= coalesce((select first_id from earlier), here.first_id)
          and i.customer_id <= (select sum(gap) from unnest(here.gaps[: :at]) gap)
          and i.at >= (select sending_since from campaign where id = here.campaign_id)
      ) as failed,
      :at + coalesce((select n from earlier), 0) as tried
    """
)


@retry_while_database_unavailable
def pause_automatically(campaign_id: int, reason: str) -> None:
    """Pause a campaign because the relay will not have its mails. Staff read the reason and resume it."""
    reason = redact_email_addresses(reason)
    done = db.session.execute(
        text(
            "update campaign set status = 'paused', pause_reason = :reason, trouble = null "
            "where id = :id and status = 'sending'"
        ),
        {"id": campaign_id, "reason": reason},
    )
    db.session.commit()
    if done.rowcount:  # type: ignore[attr-defined]
        _log_pause(campaign_id, reason)


def _log_pause(campaign_id: int, reason: str) -> None:
    log.error("campaign %s is paused: %s", campaign_id, reason, extra={"campaign_id": campaign_id})


@retry_while_database_unavailable
def pause_all_automatically(reason: str) -> None:
    """Pause everything that is sending: the relay refuses us whatever the mail."""
    reason = redact_email_addresses(reason)
    paused = db.session.scalars(
        text(
            "update campaign set status = 'paused', pause_reason = :reason, trouble = null "
            "where status = 'sending' returning id"
        ),
        {"reason": reason},
    ).all()
    db.session.commit()
    for campaign_id in paused:
        _log_pause(campaign_id, reason)


@retry_while_database_unavailable
def pause_if_failing(taken: BatchClaim) -> bool:
    """Pause a campaign too many of whose mails are refused for good: that many wrong addresses harm the name of the
    sender, or it is not the addresses that are wrong. True when that is so.

    The last 500 are those before this one in the batch and, for the rest, in the batch before; failures of the time
    before staff resumed the campaign don't count again.
    """
    where = {"batch": taken.batch_id, "at": taken.position, "rest": BATCH_SIZE - taken.position}
    failed, tried = db.session.execute(_RECENT_FAILURES_SQL, where).one()
    db.session.rollback()
    if failed < MIN_FAILURES_TO_PAUSE or failed <= MAX_FAILURE_RATE * tried:
        return False
    pause_automatically(
        taken.campaign_id, f"{failed} of the last {tried} mails were refused for good; look at what the servers said"
    )
    return True


@retry_while_database_unavailable
def set_delivery_warning(trouble: str | None) -> None:
    """Let staff see what keeps the mails from going out just now; None when they go out again."""
    trouble = redact_email_addresses(trouble) if trouble else None
    db.session.execute(
        text("update campaign set trouble = :trouble where status = 'sending' and trouble is distinct from :trouble"),
        {"trouble": trouble},
    )
    db.session.commit()
