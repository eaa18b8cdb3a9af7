"""Tasks for redemptions: emailing receipts and updating the hourly counts."""

from __future__ import annotations

from huey import crontab

from webapp.core import task_queue
from webapp.mail.smtp import RelayUnavailable
from webapp.redemptions import hourly_counts, receipts


@task_queue.task("redemptions.send_receipt", former_keys=("webapp.redemptions.tasks._mail_receipt",))
def send_receipt(offer_id: int, customer_id: int, attempt: int) -> None:
    """Email a receipt.

    When the relay is unavailable, retry after each of `receipts.RETRY_DELAYS`, then give up.

    :param attempt: number of failed attempts before this one, from 0.
    """
    try:
        receipts.send_receipt_email(offer_id, customer_id)
    except RelayUnavailable:
        if attempt < len(receipts.RETRY_DELAYS):
            task_queue.enqueue(
                "redemptions.send_receipt", offer_id, customer_id, attempt + 1, after=receipts.RETRY_DELAYS[attempt]
            )


@task_queue.periodic_task(
    "redemptions.count_hours", crontab(minute="*"), former_keys=("webapp.redemptions.actions.count_hours",)
)
def update_hourly_counts() -> None:
    """Add the hours that have ended since the last run to the hourly counts."""
    hourly_counts.update_hourly_counts()
