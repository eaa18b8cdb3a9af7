"""What staff decide about mails that did not simply go out: try them again, or leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, text, update

from webapp.accounts.actions import record_audit_entry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch.actions import require_usable_offer
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries

# How many are written with one statement; all of them are one transaction.
RETRY_CHUNK_SIZE = 5000
NO_MATCHING_DELIVERIES = "There are no such mails any more: they have been decided, or go out again by themselves."


@dataclass(frozen=True)
class DeliverySelection:
    """Mails of a campaign in one state: one customer's, those of one cause (see `queries.Cause`), or all."""

    state: str
    customer_id: int | None = None
    code: int | None = None
    cause: str | None = None

    def to_sql_condition(self) -> tuple[str, dict[str, Any]]:
        """As a condition on `mail_issue i`, with its values. Of the uncertain ones only those that nobody is at."""
        conditions = ["i.campaign_id = :campaign and i.state = :state"]
        if self.customer_id is not None:
            conditions.append("i.customer_id = :customer")
        if self.cause is not None:
            conditions.append(f"i.cause = :cause and i.smtp_code {'is null' if self.code is None else '= :code'}")
        if self.state == "uncertain":
            conditions.append(campaign_queries.UNRESOLVED_CONDITION)
        values = {"state": self.state, "customer": self.customer_id, "code": self.code, "cause": self.cause}
        return " and ".join(conditions), values


@dataclass(frozen=True)
class RetryResult:
    """How many mails go out again, and how many do not because their addresses must not be mailed any more."""

    retried: int
    suppressed: int


def retry_deliveries(campaign_id: int, which: DeliverySelection, by: str) -> RetryResult:
    """Try mails again that failed, or of which nobody knows. The caller rings the pumps. Commits.

    Whoever must not be mailed any more is left out and stays as it is. Asking twice sends nothing twice.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when there are none (any more), or the campaign was cancelled; `offer_expired` and
        so on when the code would not work.
    """
    campaign = _lock_campaign(campaign_id)
    if which.state not in ("failed", "uncertain") or campaign.status not in ("sending", "paused", "done"):
        db.session.rollback()
        raise DomainError("conflict", "These mails can't be sent again: the mailing is not under way and not done.")
    offer = offer_queries.find_offer(campaign.offer_id)
    if offer is not None:
        require_usable_offer(offer)
    again = _schedule_retries(campaign_id, which)
    if not again.retried:
        db.session.rollback()
        raise DomainError("conflict", _nothing_retried_message(again, which))
    if campaign.status == "done":
        db.session.execute(
            update(Campaign)
            .where(Campaign.id == campaign_id)
            .values(
                status="sending",
                finished_at=None,
                sending_since=func.now(),
                sent_before=campaign_queries.get_campaign_stats(campaign_id).sent,
            )
        )
    record_audit_entry(
        by,
        "campaign.sent_again",
        str(campaign_id),
        mails=again.retried,
        left_out=again.suppressed,
        **_audit_details(which),
    )
    db.session.commit()
    next_tasks.enqueue_senders()
    return again


def dismiss_uncertain_deliveries(campaign_id: int, which: DeliverySelection, by: str) -> int:
    """Let uncertain mails be: nobody will know whether they went out, and they do not go out again. Commits.

    They are counted for themselves, neither as sent nor as failed.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when there are none (any more).
    """
    _lock_campaign(campaign_id)
    if which.state != "uncertain":
        db.session.rollback()
        raise DomainError("conflict", "Only a mail that is uncertain can be left as it is.")
    condition, values = which.to_sql_condition()
    done = db.session.execute(
        text(
            f"update mail_issue i set state = 'left', next_at = null, at = now(), "  # noqa: S608
            f"text = concat_ws('; ', nullif(i.text, ''), cast(:words as text)) where {condition}"
        ),
        {"campaign": campaign_id, "words": f"left as it is by {by}", **values},
    )
    n = int(done.rowcount)  # type: ignore[attr-defined]
    if not n:
        db.session.rollback()
        raise DomainError("conflict", NO_MATCHING_DELIVERIES)
    record_audit_entry(by, "campaign.left_uncertain", str(campaign_id), mails=n, **_audit_details(which))
    db.session.commit()
    return n


def record_recipient_export(campaign_id: int, state: str, by: str) -> None:
    """The trail says who took the recipients of a campaign along. Commits."""
    record_audit_entry(by, "campaign.exported", str(campaign_id), **({"state": state} if state else {}))
    db.session.commit()


def _schedule_retries(campaign_id: int, which: DeliverySelection) -> RetryResult:
    """Make them due, portion by portion: however many there are, only so many ids are in memory."""
    condition, values = which.to_sql_condition()
    some = text(
        f"select i.customer_id from mail_issue i join customer u on u.id = i.customer_id and u.erased_at is null "  # noqa: S608
        f"where {condition} and i.customer_id > :after order by i.customer_id limit :portion"
    )
    due = text(
        "update mail_issue i set state = 'deferred', next_at = now(), at = now(), attempts = 0, "  # noqa: S608
        "doubt = i.doubt or i.state = 'uncertain' "
        f"where {condition} and i.customer_id = any(:ids)"
    )
    mails = left_out = after = 0
    while True:
        ids = db.session.scalars(
            some, {"campaign": campaign_id, "after": after, "portion": RETRY_CHUNK_SIZE, **values}
        ).all()
        if not ids:
            return RetryResult(mails, left_out)
        suppressed = customer_queries.find_suppression_reasons(ids)
        left_out += len(suppressed)
        done = db.session.execute(
            due, {"campaign": campaign_id, "ids": [i for i in ids if i not in suppressed], **values}
        )
        mails += int(done.rowcount)  # type: ignore[attr-defined]
        after = ids[-1]


def _nothing_retried_message(again: RetryResult, which: DeliverySelection) -> str:
    if again.suppressed and which.customer_id is not None:
        return "It does not go out again: the address must not be mailed any more."
    if again.suppressed:
        return "None of them goes out again: their addresses must not be mailed any more."
    return NO_MATCHING_DELIVERIES


def _audit_details(which: DeliverySelection) -> dict[str, Any]:
    """For the trail, which names customers by number only."""
    kept = {"state": which.state, "customer": which.customer_id, "cause": which.cause}
    return {name: value for name, value in kept.items() if value is not None}


def _lock_campaign(campaign_id: int) -> Campaign:
    """The campaign, with nobody else deciding meanwhile."""
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True, with_for_update=True)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign
