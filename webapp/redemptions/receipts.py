"""The receipt by mail, for somebody who types a code that they have used before.

Who typed it sees only that it was mailed; the receipt goes to the customer. Mailing redeems nothing.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from email import policy
from email.mime.text import MIMEText
from email.utils import format_datetime, make_msgid

from flask import current_app

from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.rate_limit import TableStorage
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.mail import addresses, smtp
from webapp.mail.headers import format_address_header, format_header
from webapp.mail.smtp import OutgoingMessage, RelayRejected
from webapp.redemptions import personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import RedemptionRecord
from webapp.shop import queries as shop_queries

log = logging.getLogger(__name__)

HOUR_SECONDS, DAY_SECONDS = 3600, 86400
# With many offers used, many receipts could be asked for by a stranger.
DAILY_LIMIT = 5
# Seconds until the next attempts while the relay is away; after the last one the customer asks again.
RETRY_DELAYS = (60, 600, 3600)


def acquire_receipt_quota(offer_id: int, customer_id: int) -> bool:
    """Whether the receipt may be mailed now: once an hour for each offer and customer, five times a day in all.

    The counter is the decision, so of two who ask at once one is told yes.
    """
    turns = TableStorage("")
    if turns.incr(f"receipt:{offer_id}:{customer_id}", HOUR_SECONDS) > 1:
        return False
    return turns.incr(f"receipts:{customer_id}", DAY_SECONDS) <= DAILY_LIMIT


def release_receipt_quota(offer_id: int, customer_id: int) -> None:
    """Nobody was found to mail it: the next who asks has it mailed."""
    TableStorage("").clear(f"receipt:{offer_id}:{customer_id}")


def enqueue_receipt(offer_id: int, customer_id: int) -> None:
    """Have a worker email the receipt, unless that was done within the last hour."""
    if acquire_receipt_quota(offer_id, customer_id) and not task_queue.enqueue(
        "redemptions.send_receipt", offer_id, customer_id, 0
    ):
        release_receipt_quota(offer_id, customer_id)


def send_receipt_email(offer_id: int, customer_id: int) -> None:
    """Mail the receipt of a live redemption; nothing when it was undone, or the customer erased, since.

    :raises RelayDown: when the relay does not take it now.
    """
    customer = customer_queries.find_customer(customer_id)
    done = redemption_queries.find_live_redemption(offer_id, customer_id)
    if done is None or customer is None or customer.erased_at is not None:
        return
    letter = _build_receipt_email(done, addresses.recipient_address(customer))
    # No transaction stays open while the relay is waited for.
    db.session.rollback()
    try:
        with smtp.create_relay_connection() as relay:
            relay.send(letter)
    except RelayRejected as error:
        log.warning("a receipt of offer %s was refused by the relay: %s", offer_id, error)


def _build_receipt_email(done: RedemptionRecord, to: str) -> OutgoingMessage:
    settings: Settings = current_app.config["SETTINGS"]
    shop, sender = shop_queries.get_shop(), addresses.sender_address(settings.mail_default_sender)
    link = personal_links.build_personal_url(done.offer_id, done.customer_id)
    words = current_app.jinja_env.get_template("email/receipt.txt").render(done=done, link=link, shop_name=shop.name)
    head = (
        format_address_header("From", shop.sender_name, sender),
        format_address_header("Reply-To", "", addresses.sender_address(shop.reply_to)) if shop.reply_to else b"",
        format_address_header("To", "", to),
        format_header("Subject", " ".join(f"Your receipt: {done.offer_name}".split())),
        format_header("Date", format_datetime(datetime.now(UTC))),
        format_header("Message-ID", make_msgid(domain=sender.rpartition("@")[2])),
        b"Auto-Submitted: auto-generated\r\n",
    )
    return OutgoingMessage(
        sender, to, b"".join(head) + MIMEText(words, "plain", "utf-8", policy=policy.SMTP).as_bytes()
    )
