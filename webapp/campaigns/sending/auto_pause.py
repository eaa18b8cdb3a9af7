"""Pause campaigns automatically, and store delivery warnings."""

from __future__ import annotations

import logging

from flask_babel import gettext as _
from sqlalchemy import text

from webapp.campaigns.models import BATCH_SIZE
from webapp.campaigns.sending.batches import BatchClaim, retry_while_database_unavailable
from webapp.core.email_addresses import redact_email_addresses
from webapp.core.extensions import db

log = logging.getLogger(__name__)

# A campaign is paused when this many of its last `BATCH_SIZE` emails, and more than this share, were permanently
# rejected.
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
      ) as failed_count,
      :at + coalesce((select n from earlier), 0) as attempt_count
    """
)


@retry_while_database_unavailable
def pause_automatically(campaign_id: int, reason: str) -> None:
    """Pause a sending campaign whose email the relay rejects.

    Staff see the reason and can resume it.
    """
    reason = redact_email_addresses(reason)
    result = db.session.execute(
        text(
            "update campaign set status = 'paused', pause_reason = :reason, trouble = null "
            "where id = :id and status = 'sending'"
        ),
        {"id": campaign_id, "reason": reason},
    )
    db.session.commit()
    if result.rowcount:  # type: ignore[attr-defined]
        _log_pause(campaign_id, reason)


def _log_pause(campaign_id: int, reason: str) -> None:
    log.error("campaign %s paused: %s", campaign_id, reason, extra={"campaign_id": campaign_id})


@retry_while_database_unavailable
def pause_all_automatically(reason: str) -> None:
    """Pause all sending campaigns: the relay rejects every email from this server."""
    reason = redact_email_addresses(reason)
    paused_ids = db.session.scalars(
        text(
            "update campaign set status = 'paused', pause_reason = :reason, trouble = null "
            "where status = 'sending' returning id"
        ),
        {"reason": reason},
    ).all()
    db.session.commit()
    for campaign_id in paused_ids:
        _log_pause(campaign_id, reason)


@retry_while_database_unavailable
def pause_if_failing(claim: BatchClaim) -> bool:
    """Pause a campaign when too many of its emails are permanently rejected.

    A high share of rejections harms the sender's reputation or indicates a cause other than the addresses. The last
    `BATCH_SIZE` emails are those before the current one in its batch and, for the rest, in the batch before. Failures
    before staff resumed the campaign are not counted again.

    :returns: whether it was paused.
    """
    params = {"batch": claim.batch_id, "at": claim.position, "rest": BATCH_SIZE - claim.position}
    failed_count, attempt_count = db.session.execute(_RECENT_FAILURES_SQL, params).one()
    db.session.rollback()
    if failed_count < MIN_FAILURES_TO_PAUSE or failed_count <= MAX_FAILURE_RATE * attempt_count:
        return False
    pause_automatically(
        claim.campaign_id,
        _(
            "%(failed)s of the last %(total)s emails were permanently rejected; check the servers' replies",
            failed=failed_count,
            total=attempt_count,
        ),
    )
    return True


@retry_while_database_unavailable
def set_delivery_warning(warning: str | None) -> None:
    """Show staff why no email can be sent at the moment; None clears the warning."""
    warning = redact_email_addresses(warning) if warning else None
    db.session.execute(
        text("update campaign set trouble = :trouble where status = 'sending' and trouble is distinct from :trouble"),
        {"trouble": warning},
    )
    db.session.commit()
