"""Resolve failed and uncertain deliveries: resend or dismiss them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import func, text, update

from webapp.accounts.audit import record_audit_entry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.launch import next_tasks
from webapp.campaigns.launch.preconditions import require_usable_offer
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries

# Rows per UPDATE statement; all of them are one transaction.
RESEND_CHUNK_SIZE = 5000
NO_MATCHING_DELIVERIES = _l(
    "There are no emails left to resolve: they have been resolved or will be resent automatically."
)


@dataclass(frozen=True)
class DeliverySelection:
    """Deliveries of a campaign in one state: of one customer, of one cause, or all.

    The cause is that of `webapp.campaigns.stats_queries.IssueCause`.
    """

    state: str
    customer_id: int | None = None
    code: int | None = None
    cause: str | None = None

    def to_sql_condition(self) -> tuple[str, dict[str, Any]]:
        """Return a condition on `mail_issue i`, and its values.

        Uncertain deliveries that a worker is processing are excluded.
        """
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
class ResendResult:
    """The numbers of emails that are resent, and of those with suppressed addresses."""

    resent: int
    suppressed: int


def resend_deliveries(campaign_id: int, selection: DeliverySelection, by: str) -> ResendResult:
    """Resend failed or uncertain emails. Commits, then enqueues the senders.

    Deliveries to suppressed addresses do not change. A repeated call resends nothing twice.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when there are no such deliveries (or no longer) or the campaign was cancelled;
        `offer_expired`, `offer_paused` or `offer_exhausted` when the code cannot be redeemed.
    """
    campaign = _lock_campaign(campaign_id)
    if selection.state not in ("failed", "uncertain") or campaign.status not in ("sending", "paused", "done"):
        db.session.rollback()
        raise DomainError(
            "conflict",
            _("These emails can't be resent: the campaign has not been launched, or it has been cancelled."),
        )
    offer = offer_queries.find_offer(campaign.offer_id)
    if offer is not None:
        require_usable_offer(offer)
    result = _schedule_resends(campaign_id, selection)
    if not result.resent:
        db.session.rollback()
        raise DomainError("conflict", _nothing_resent_message(result, selection))
    if campaign.status == "done":
        db.session.execute(
            update(Campaign)
            .where(Campaign.id == campaign_id)
            .values(
                status="sending",
                finished_at=None,
                sending_since=func.now(),
                sent_before=stats_queries.get_campaign_stats(campaign_id).sent,
            )
        )
    record_audit_entry(
        by,
        "campaign.sent_again",
        str(campaign_id),
        mails=result.resent,
        left_out=result.suppressed,
        **_audit_details(selection),
    )
    db.session.commit()
    next_tasks.enqueue_senders()
    return result


def dismiss_uncertain_deliveries(campaign_id: int, selection: DeliverySelection, by: str) -> int:
    """Dismiss uncertain deliveries. Commits.

    Their emails are not resent, and it stays unknown whether they were sent. They are counted separately (`left`),
    neither as sent nor as failed.

    :raises NotFound: when there is no such campaign.
    :raises DomainError: `conflict` when there are no such deliveries (or no longer).
    """
    _lock_campaign(campaign_id)
    if selection.state != "uncertain":
        db.session.rollback()
        raise DomainError("conflict", _("Only uncertain emails can be dismissed."))
    condition, values = selection.to_sql_condition()
    updated = db.session.execute(
        text(
            f"update mail_issue i set state = 'left', next_at = null, at = now(), "  # noqa: S608
            f"text = concat_ws('; ', nullif(i.text, ''), cast(:remark as text)) where {condition}"
        ),
        {"campaign": campaign_id, "remark": _("dismissed by %(name)s", name=by), **values},
    )
    count = int(updated.rowcount)  # type: ignore[attr-defined]
    if not count:
        db.session.rollback()
        raise DomainError("conflict", str(NO_MATCHING_DELIVERIES))
    record_audit_entry(by, "campaign.left_uncertain", str(campaign_id), mails=count, **_audit_details(selection))
    db.session.commit()
    return count


def record_recipient_export(campaign_id: int, state: str, by: str) -> None:
    """Record in the audit log who exported the recipients of a campaign. Commits."""
    record_audit_entry(by, "campaign.exported", str(campaign_id), **({"state": state} if state else {}))
    db.session.commit()


def _schedule_resends(campaign_id: int, selection: DeliverySelection) -> ResendResult:
    """Make the selected deliveries due for the next attempt.

    This is done in chunks, so that few ids are in memory.
    """
    condition, values = selection.to_sql_condition()
    select_chunk = text(
        f"select i.customer_id from mail_issue i join customer u on u.id = i.customer_id and u.erased_at is null "  # noqa: S608
        f"where {condition} and i.customer_id > :after order by i.customer_id limit :chunk_size"
    )
    make_due = text(
        "update mail_issue i set state = 'deferred', next_at = now(), at = now(), attempts = 0, "  # noqa: S608
        "doubt = i.doubt or i.state = 'uncertain' "
        f"where {condition} and i.customer_id = any(:ids)"
    )
    resent = suppressed = after = 0
    while True:
        ids = db.session.scalars(
            select_chunk, {"campaign": campaign_id, "after": after, "chunk_size": RESEND_CHUNK_SIZE, **values}
        ).all()
        if not ids:
            return ResendResult(resent, suppressed)
        suppression_reasons = customer_queries.find_suppression_reasons(ids)
        suppressed += len(suppression_reasons)
        updated = db.session.execute(
            make_due,
            {
                "campaign": campaign_id,
                "ids": [customer_id for customer_id in ids if customer_id not in suppression_reasons],
                **values,
            },
        )
        resent += int(updated.rowcount)  # type: ignore[attr-defined]
        after = ids[-1]


def _nothing_resent_message(result: ResendResult, selection: DeliverySelection) -> str:
    if result.suppressed and selection.customer_id is not None:
        return str(_("This email was not resent, because its address is suppressed."))
    if result.suppressed:
        return str(_("None of these emails was resent, because all their addresses are suppressed."))
    return str(NO_MATCHING_DELIVERIES)


def _audit_details(selection: DeliverySelection) -> dict[str, Any]:
    """Return the selection for the audit log, which refers to customers by id only."""
    details = {"state": selection.state, "customer": selection.customer_id, "cause": selection.cause}
    return {name: value for name, value in details.items() if value is not None}


def _lock_campaign(campaign_id: int) -> Campaign:
    """Load a campaign and lock its row, so that actions on it are serialised."""
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True, with_for_update=True)
    if campaign is None:
        raise NotFound(_("This campaign does not exist."))
    return campaign
