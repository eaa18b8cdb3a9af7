"""Send windows: the recipients of a batch whose emails may be sent next."""

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
    """A recipient of a send window.

    :param index: the index in the batch.
    :param is_resend: whether an earlier copy may have been sent.
    """

    index: int
    customer: Customer
    is_resend: bool


@dataclass(frozen=True)
class SendWindow:
    """Recipients whose emails may be sent without a further check.

    :param end: index in the batch of the end of the window.
    :param offer_version: the version of the offer that the email uses.
    """

    end: int
    recipients: list[Recipient]
    offer_version: int


@retry_while_database_unavailable
def open_send_window(claim: BatchClaim) -> SendWindow | None:
    """Open the next send window of a batch and record its skipped recipients.

    This is stored before any of its emails is sent.

    :returns: None when another worker owns the batch, or the campaign was paused or cancelled; then the batch is
        released.
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
    if not _store_window(claim, end, campaign.seconds):
        db.session.rollback()
        return None
    ids = claim.customer_ids[claim.position : end]
    states = find_delivery_states(claim.campaign_id, ids)
    customers, skipped = eligible_recipients(
        campaign.offer_id, [customer_id for customer_id in ids if states.get(customer_id, "uncertain") == "uncertain"]
    )
    record_skipped(claim.campaign_id, skipped)
    db.session.commit()
    claim.lease_renewed_at = started_at
    recipients = [
        Recipient(index, customers[customer_id], customer_id in states)
        for index, customer_id in enumerate(ids, claim.position)
        if customer_id in customers
    ]
    return SendWindow(end, recipients, campaign.version)


def _store_window(claim: BatchClaim, end: int, seconds: int) -> bool:
    """Store the bounds of a send window and move the cursor to its start.

    :param end: index in the batch of the end of the window.
    :param seconds: seconds since the launch of the campaign.
    :returns: False when another worker owns the batch.
    """
    result = db.session.execute(
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
            "seconds": seconds,
            **claim.ownership_params,
        },
    )
    is_owned = bool(result.rowcount)  # type: ignore[attr-defined]
    return is_owned and send_progress.move_cursor(db.session.connection(), claim, claim.position)


def eligible_recipients(offer_id: int, ids: Sequence[int]) -> tuple[dict[int, Customer], dict[int, str]]:
    """Return the customers to send to, and the reasons for skipping the others.

    Both are by customer id. It is called just before a window is sent.
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
    eligible = {customer_id: customer for customer_id, customer in customers.items() if customer_id not in skipped}
    return eligible, skipped


def record_skipped(campaign_id: int, skipped: dict[int, str]) -> None:
    """Record skipped recipients with their reasons. The caller commits.

    An uncertain delivery stays uncertain.
    """
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
            [{"campaign": campaign_id, "id": customer_id, "why": reason} for customer_id, reason in skipped.items()],
        )
