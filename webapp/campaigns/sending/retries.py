"""Database writes for automatic retries.

A sender claims a due delivery, renews its lease and records the outcome.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text

from webapp.campaigns import timing
from webapp.campaigns.sending.batches import lease_duration, retry_while_database_unavailable
from webapp.campaigns.sending.outcomes import DUPLICATE_REJECTED_PREFIX, compute_retry_delay, suppress_bounced_address
from webapp.campaigns.sending.windows import eligible_recipients, record_skipped
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.mail.smtp import SmtpOutcome


@dataclass
class DueRetry:
    """A delivery that is being retried.

    This worker owns it as long as the epoch is unchanged. `is_last_attempt` is set when it has been deferred for
    `timing.MAX_RETRY_AGE`.
    """

    campaign_id: int
    customer_id: int
    epoch: int
    attempts: int
    is_last_attempt: bool
    customer: Customer
    lease_renewed_at: float

    @property
    def ownership_params(self) -> dict[str, int]:
        """The delivery and its epoch, as parameters of a statement."""
        return {"campaign": self.campaign_id, "id": self.customer_id, "epoch": self.epoch}


_CLAIM_DUE_RETRY_SQL = text(
    """
    update mail_issue i set state = 'uncertain', attempts = i.attempts + 1, epoch = i.epoch + 1,
      next_at = now() + :lease, doubt = i.doubt or due.state = 'uncertain'
    from (
      select d.campaign_id, d.customer_id, d.state, c.offer_id
      from mail_issue d join campaign c on c.id = d.campaign_id
      where d.next_at <= now() and c.status = 'sending'
        and (d.state = 'deferred' or d.state = 'uncertain' and c.uncertain_policy = 'resend')
      order by d.next_at
      limit 1 for update of d skip locked
    ) due
    where i.campaign_id = due.campaign_id and i.customer_id = due.customer_id
    returning i.campaign_id, i.customer_id, i.epoch, i.attempts, due.offer_id, i.at < now() - :limit as last
    """
)
_HAS_DUE_RETRY_SQL = text(
    """
    select exists (
      select from mail_issue d join campaign c on c.id = d.campaign_id
      where d.next_at <= now() and c.status = 'sending'
        and (d.state = 'deferred' or d.state = 'uncertain' and c.uncertain_policy = 'resend')
    )
    """
)
_OWNED_RETRY_CONDITION = "campaign_id = :campaign and customer_id = :id and epoch = :epoch and state = 'uncertain'"


def has_due_retry() -> bool:
    """Return whether `claim_due_retry` would find a delivery now."""
    return bool(db.session.execute(_HAS_DUE_RETRY_SQL).scalar())


def claim_due_retry() -> DueRetry | None:
    """Claim one delivery whose retry is due, if any.

    It stays `uncertain` until its outcome is recorded.
    """
    while True:
        started_at = time.monotonic()
        limits = {"lease": lease_duration(), "limit": timedelta(seconds=timing.MAX_RETRY_AGE)}
        row = db.session.execute(_CLAIM_DUE_RETRY_SQL, limits).one_or_none()
        if row is None:
            db.session.rollback()
            return None
        customers, skipped = eligible_recipients(row.offer_id, [row.customer_id])
        if skipped:
            record_skipped(row.campaign_id, skipped)
            # The claim counted an attempt that is not made.
            db.session.execute(
                text(
                    "update mail_issue set attempts = attempts - 1 where campaign_id = :campaign and customer_id = :id"
                ),
                {"campaign": row.campaign_id, "id": row.customer_id},
            )
        db.session.commit()
        if customers:
            customer = customers[row.customer_id]
            return DueRetry(row.campaign_id, row.customer_id, row.epoch, row.attempts, row.last, customer, started_at)


@retry_while_database_unavailable
def renew_retry_lease(retry: DueRetry) -> bool:
    """Renew the lease of a retry.

    :returns: False when another worker owns it, or its campaign is no longer being sent.
    """
    started_at = time.monotonic()
    result = db.session.execute(
        text(
            f"update mail_issue set next_at = now() + :lease where {_OWNED_RETRY_CONDITION} and exists "  # noqa: S608
            "(select 1 from campaign c where c.id = mail_issue.campaign_id and c.status = 'sending')"
        ),
        {"lease": lease_duration(), **retry.ownership_params},
    )
    db.session.commit()
    retry.lease_renewed_at = started_at
    return bool(result.rowcount)  # type: ignore[attr-defined]


@retry_while_database_unavailable
def record_retry_outcome(retry: DueRetry, outcome: SmtpOutcome) -> None:
    """Record the outcome of a retry, unless another worker owns the delivery.

    A delivery that stays deferred for `timing.MAX_RETRY_AGE` fails.
    """
    state = {"accepted": "sent_later", "failed": "failed", "uncertain": "uncertain"}.get(outcome.kind, "deferred")
    if state == "deferred" and retry.is_last_attempt:
        state = "failed"
    is_deferred = state == "deferred"
    db.session.execute(
        text(
            "update mail_issue set state = case when doubt and :state = 'failed' then 'uncertain' else :state end, "  # noqa: S608
            "text = case when doubt and :state = 'failed' then :copy || :text else :text end, smtp_code = :code, "
            "doubt = doubt or :state = 'uncertain', next_at = now() + cast(:next as interval), "
            f"at = case when :later then at else now() end where {_OWNED_RETRY_CONDITION}"
        ),
        {
            "state": state,
            "code": outcome.code,
            "copy": DUPLICATE_REJECTED_PREFIX,
            "text": "" if state == "sent_later" else outcome.text,
            "later": is_deferred,
            "next": compute_retry_delay(retry.attempts - 1) if is_deferred else None,
            **retry.ownership_params,
        },
    )
    if is_deferred:
        _reopen_campaign(retry.campaign_id)
    suppress_bounced_address(retry.customer, retry.campaign_id, outcome)
    db.session.commit()


@retry_while_database_unavailable
def release_retry(retry: DueRetry) -> None:
    """Release a delivery whose retry was aborted before it had an outcome.

    It does not count as an attempt.
    """
    db.session.execute(
        text(
            "update mail_issue set state = 'deferred', attempts = attempts - 1, "  # noqa: S608
            f"next_at = now() + cast(:soon as interval) where {_OWNED_RETRY_CONDITION}"
        ),
        {"soon": timedelta(seconds=timing.RELEASED_RETRY_DELAY), **retry.ownership_params},
    )
    _reopen_campaign(retry.campaign_id)
    db.session.commit()


def _reopen_campaign(campaign_id: int) -> None:
    """Set a campaign back to `sending` if it has been finished concurrently.

    That happens when a retry takes longer than its lease.
    """
    db.session.execute(
        text("update campaign set status = 'sending', finished_at = null where id = :id and status = 'done'"),
        {"id": campaign_id},
    )
