"""Send windows: record which recipients of a batch may be sent to next, and which are skipped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flask_babel import gettext as _
from sqlalchemy import text

from webapp.campaigns.models import WINDOW_SIZE
from webapp.campaigns.sending import progress as send_progress
from webapp.campaigns.sending.batches import (
    BatchClaim,
    find_delivery_states,
    lease_duration,
    release_batch,
    retry_while_database_unavailable,
)
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.redemptions import queries as redemption_queries


@dataclass(frozen=True)
class Recipient:
    """A recipient of a window: the index in the batch, the customer, and whether an earlier copy may have been sent."""

    index: int
    customer: Customer
    is_resend: bool


@dataclass(frozen=True)
class SendWindow:
    """Recipients who may be sent to without a further check, and the version of the offer that the email uses."""

    end: int
    recipients: list[Recipient]
    offer_version: int


@retry_while_database_unavailable
def open_send_window(claim: BatchClaim) -> SendWindow | None:
    """Record, before anything is sent, that the next recipients may be sent to, and which of them are skipped.

    None when another worker owns the batch by now, or the campaign was paused or cancelled; then the batch is released.
    """
    started_at = time.monotonic()
    campaign = db.session.execute(
        text(
            "select c.status, c.offer_id, o.version, cast(extract(epoch from now() - c.launched_at) as int) as seconds "
            "from campaign c join offer o on o.id = c.offer_id where c.id = :id"
        ),
        {"id": claim.campaign_id},
    ).one()
    if campaign.status != "sending":
        release_batch(claim)
        return None
    end = min(claim.position + WINDOW_SIZE, len(claim.customer_ids))
    opened = db.session.execute(
        text(
            "update batch set window_start = :start, window_end = :end, sent = :sent, lease_until = now() + :lease, "
            "windows = windows || array[cast(:start as int), :seconds] "
            "where id = :batch and owner = :owner and epoch = :epoch"
        ),
        {
            "start": claim.position,
            "end": end,
            "sent": claim.sent,
            "lease": lease_duration(),
            "seconds": campaign.seconds,
            **claim.ownership_params,
        },
    )
    if not opened.rowcount or not send_progress.move_cursor(db.session.connection(), claim, claim.position):  # type: ignore[attr-defined]
        db.session.rollback()
        return None
    ids = claim.customer_ids[claim.position : end]
    states = find_delivery_states(claim.campaign_id, ids)
    customers, skipped = eligible_recipients(
        campaign.offer_id, [i for i in ids if states.get(i, "uncertain") == "uncertain"]
    )
    record_skipped(claim.campaign_id, skipped)
    db.session.commit()
    claim.lease_renewed_at = started_at
    recipients = [
        Recipient(claim.position + n, customers[customer_id], customer_id in states)
        for n, customer_id in enumerate(ids)
        if customer_id in customers
    ]
    return SendWindow(end, recipients, campaign.version)


def eligible_recipients(offer_id: int, ids: Sequence[int]) -> tuple[dict[int, Customer], dict[int, str]]:
    """Return the customers to send to, by id, and the reasons why the others are skipped, by id.

    Called right before a window is sent.
    """
    customers = {customer.id: customer for customer in customer_queries.list_customers_by_ids(ids)}
    for customer in customers.values():
        # Detached, because they are read after the commit, which would otherwise load each of them again.
        db.session.expunge(customer)
    redeemed = redemption_queries.find_redeemed_customer_ids(offer_id, ids)
    suppressed = customer_queries.find_suppression_reasons(ids)
    skipped = {}
    for customer_id in ids:
        if customer_id not in customers:
            skipped[customer_id] = _("no longer a customer")
        elif customer_id in suppressed:
            skipped[customer_id] = suppressed[customer_id]
        elif customer_id in redeemed:
            skipped[customer_id] = _("has already redeemed")
    return {i: customer for i, customer in customers.items() if i not in skipped}, skipped


def record_skipped(campaign_id: int, skipped: dict[int, str]) -> None:
    """Record skipped recipients with their reasons; an uncertain delivery stays uncertain. The caller commits."""
    if skipped:
        db.session.execute(
            text(
                "insert into mail_issue (campaign_id, customer_id, state, text) "
                "values (:campaign, :id, 'skipped', :why) "
                "on conflict (campaign_id, customer_id) do update "
                "set state = case when mail_issue.doubt then 'uncertain' else 'skipped' end, "
                "text = case when mail_issue.doubt "
                "then concat_ws('; ', nullif(mail_issue.text, ''), 'not sent again: ' || excluded.text) "
                "else excluded.text end, smtp_code = null, next_at = null, at = now()"
            ),
            [{"campaign": campaign_id, "id": i, "why": reason} for i, reason in skipped.items()],
        )
