"""The writes of trying again: a mail that was put off and whose time has come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text

from webapp.campaigns import times
from webapp.campaigns.batch_actions import lease, note_skipped, stubborn, suppress_bounced, wait_after, who
from webapp.campaigns.transport import Outcome
from webapp.customers.models import Customer
from webapp.extensions import db


@dataclass(frozen=True)
class Due:
    """A mail that was put off and is tried again now. `attempts` guards it as the epoch guards a batch; `last` says
    that it has been put off for as long as we go on."""

    campaign_id: int
    customer_id: int
    attempts: int
    last: bool
    customer: Customer


_CLAIM_DUE = text(
    """
    update mail_issue i set state = 'uncertain', attempts = i.attempts + 1, next_at = now() + :lease
    from (
      select d.campaign_id, d.customer_id, c.offer_id from mail_issue d join campaign c on c.id = d.campaign_id
      where d.next_at <= now() and c.status = 'sending'
        and (d.state = 'deferred' or d.state = 'uncertain' and c.uncertain_policy = 'resend')
      order by d.next_at
      limit 1 for update of d skip locked
    ) due
    where i.campaign_id = due.campaign_id and i.customer_id = due.customer_id
    returning i.campaign_id, i.customer_id, i.attempts, due.offer_id, i.at < now() - :limit as last
    """
)


def claim_due() -> Due | None:
    """Take one mail whose time has come. Until its outcome is recorded it counts as uncertain."""
    while True:
        limits = {"lease": lease(), "limit": timedelta(seconds=times.GIVE_UP)}
        row = db.session.execute(_CLAIM_DUE, limits).one_or_none()
        if row is None:
            db.session.rollback()
            return None
        people, skipped = who(row.offer_id, [row.customer_id])
        note_skipped(row.campaign_id, skipped)
        db.session.commit()
        if people:
            return Due(row.campaign_id, row.customer_id, row.attempts, row.last, people[row.customer_id])


@stubborn
def note_due(due: Due, outcome: Outcome) -> None:
    """Record what became of a mail that was tried again. What can't go out for two days is given up."""
    state = {"accepted": "sent_later", "failed": "failed", "uncertain": "uncertain"}.get(outcome.kind, "deferred")
    if state == "deferred" and due.last:
        state = "failed"
    later = state == "deferred"
    db.session.execute(
        text(
            "update mail_issue set state = :state, smtp_code = :code, text = :words, "
            "next_at = now() + cast(:next as interval), at = case when :later then at else now() end "
            "where campaign_id = :campaign and customer_id = :id and attempts = :attempts and state = 'uncertain'"
        ),
        {
            "campaign": due.campaign_id,
            "id": due.customer_id,
            "attempts": due.attempts,
            "state": state,
            "code": outcome.code,
            "words": "" if state == "sent_later" else outcome.text,
            "later": later,
            "next": wait_after(due.attempts - 1) if later else None,
        },
    )
    suppress_bounced(due.customer, due.campaign_id, outcome)
    db.session.commit()
