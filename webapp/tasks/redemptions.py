"""Tasks for redemptions: emailing receipts and personal links, updating counts, deleting expired rows."""

from __future__ import annotations

from huey import crontab

from webapp.core import database_timeouts, task_queue
from webapp.mail.smtp import RelayUnavailable
from webapp.redemptions import address_limit, customer_emails, hourly_counts, link_emails, receipts
from webapp.redemptions.customer_emails import RETRY_DELAYS


@task_queue.task("redemptions.send_receipt", former_keys=("webapp.redemptions.tasks._mail_receipt",))
def send_receipt(offer_id: int, customer_id: int, attempt: int) -> None:
    """Email a receipt.

    When the relay is unavailable, retry after each of `RETRY_DELAYS`, then give up.

    :param attempt: number of failed attempts before this one, from 0.
    """
    try:
        receipts.send_receipt_email(offer_id, customer_id)
    except RelayUnavailable:
        if attempt < len(RETRY_DELAYS):
            task_queue.enqueue(
                "redemptions.send_receipt", offer_id, customer_id, attempt + 1, after=RETRY_DELAYS[attempt]
            )


@task_queue.task("redemptions.send_personal_link")
def send_personal_link(offer_id: int, customer_id: int, attempt: int) -> None:
    """Email a personal link or a receipt to a customer who may get it.

    When the relay is unavailable, retry after each of `RETRY_DELAYS`; after the last one, the customer can request the
    email again.

    :param customer_id: `link_emails.UNKNOWN_CUSTOMER_ID` for an unknown email address.
    :param attempt: number of failed attempts before this one, from 0.
    """
    try:
        link_emails.send_link_email(offer_id, customer_id, is_retry=attempt > 0)
    except RelayUnavailable:
        is_retried = attempt < len(RETRY_DELAYS) and task_queue.enqueue(
            "redemptions.send_personal_link", offer_id, customer_id, attempt + 1, after=RETRY_DELAYS[attempt]
        )
        if not is_retried:
            customer_emails.release_email_quota("personal_link", offer_id, customer_id)


@task_queue.periodic_task(
    "redemptions.count_hours",
    crontab(minute="*"),
    former_keys=("webapp.redemptions.actions.count_hours",),
    statement_seconds=database_timeouts.LONG_STATEMENT_SECONDS,
)
def update_hourly_counts() -> None:
    """Add the hours that have ended since the last run to the hourly counts."""
    hourly_counts.update_hourly_counts()


@task_queue.periodic_task("redemptions.delete_expired_addresses", crontab(minute="*"))
def delete_expired_addresses() -> None:
    """Delete client addresses that the limit of customers per address no longer needs."""
    address_limit.delete_expired_addresses()
