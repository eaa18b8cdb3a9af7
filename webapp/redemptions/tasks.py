"""What a worker does for redemptions."""

from __future__ import annotations

from huey import crontab

from webapp.core import task_queue
from webapp.mail.smtp import RelayDown
from webapp.redemptions import hourly_counts, receipts


def _mail_receipt(offer_id: int, customer_id: int, attempt: int) -> None:
    try:
        receipts.mail(offer_id, customer_id)
    except RelayDown:
        if attempt < len(receipts.WAITS):
            task_queue.ring(mail_receipt, offer_id, customer_id, attempt + 1, after=receipts.WAITS[attempt])


count_hours = task_queue.every(crontab(minute="*"), hourly_counts.count_hours)
mail_receipt = task_queue.task(_mail_receipt)


def mail_receipt_again(offer_id: int, customer_id: int) -> None:
    """Have a worker mail the receipt, unless that was done lately."""
    if receipts.take_turn(offer_id, customer_id) and not task_queue.ring(mail_receipt, offer_id, customer_id, 0):
        receipts.give_turn_back(offer_id, customer_id)
