"""Email the receipt when a code is entered that the customer has already redeemed.

The page says only that the receipt was emailed; the receipt itself goes to the customer. Nothing is redeemed.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from email import policy
from email.mime.text import MIMEText
from email.utils import format_datetime, make_msgid

from flask import current_app
from flask_babel import gettext as _

from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.rate_limit import TableStorage
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.mail import addresses, smtp
from webapp.mail.headers import format_address_header, format_header
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayRejected
from webapp.redemptions import personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import RedemptionRecord
from webapp.shop import queries as shop_queries

log = logging.getLogger(__name__)

HOUR_SECONDS, DAY_SECONDS = 3600, 86400
# Anyone who knows an email address could request a receipt for every offer that the customer has redeemed.
MAX_RECEIPTS_PER_DAY = 5
# Seconds until the next attempts while the relay is unavailable; after the last one the customer has to request the
# receipt again.
RETRY_DELAYS = (60, 600, 3600)


def acquire_receipt_quota(offer_id: int, customer_id: int) -> bool:
    """Return whether the receipt may be emailed now.

    The quota is one receipt an hour per offer and customer, and `MAX_RECEIPTS_PER_DAY` receipts a day per customer. The
    counter is incremented atomically, so only one of two concurrent requests gets True.
    """
    counters = TableStorage("")
    if counters.incr(f"receipt:{offer_id}:{customer_id}", HOUR_SECONDS) > 1:
        return False
    return counters.incr(f"receipts:{customer_id}", DAY_SECONDS) <= MAX_RECEIPTS_PER_DAY


def release_receipt_quota(offer_id: int, customer_id: int) -> None:
    """Release the quota, so that the next request can use it."""
    TableStorage("").clear(f"receipt:{offer_id}:{customer_id}")


def enqueue_receipt(offer_id: int, customer_id: int) -> None:
    """Enqueue the task that emails the receipt, unless the quota is reached."""
    if acquire_receipt_quota(offer_id, customer_id) and not task_queue.enqueue(
        "redemptions.send_receipt", offer_id, customer_id, 0
    ):
        release_receipt_quota(offer_id, customer_id)


def send_receipt_email(offer_id: int, customer_id: int) -> None:
    """Email the receipt of a current redemption.

    Does nothing if it was rolled back, or the customer was erased, since.

    :raises RelayUnavailable: when the relay cannot accept it now.
    """
    customer = customer_queries.find_customer(customer_id)
    record = redemption_queries.find_current_redemption(offer_id, customer_id)
    if record is None or customer is None or customer.erased_at is not None:
        return
    message = _build_receipt_email(record, addresses.recipient_address(customer))
    # No transaction stays open while waiting for the relay.
    db.session.rollback()
    try:
        with smtp.create_relay_connection() as relay:
            relay.send(message)
    except RelayRejected as error:
        log.warning("relay rejected a receipt of offer %s: %s", offer_id, error)


def _build_receipt_email(record: RedemptionRecord, to: str) -> OutgoingMessage:
    settings: Settings = current_app.config["SETTINGS"]
    shop, sender = shop_queries.get_shop(), addresses.sender_address(settings.mail_default_sender)
    link = personal_links.build_personal_url(record.offer_id, record.customer_id)
    template = current_app.jinja_env.get_template("email/receipt.txt")
    body = template.render(done=record, link=link, shop_name=shop.name)
    subject = _("Your receipt: %(offer)s", offer=record.offer_name)
    headers = (
        format_address_header("From", shop.sender_name, sender),
        format_address_header("Reply-To", "", addresses.sender_address(shop.reply_to)) if shop.reply_to else b"",
        format_address_header("To", "", to),
        format_header("Subject", " ".join(subject.split())),
        format_header("Date", format_datetime(datetime.now(UTC))),
        format_header("Message-ID", make_msgid(domain=sender.rpartition("@")[2])),
        b"Auto-Submitted: auto-generated\r\n",
    )
    return OutgoingMessage(
        sender, to, b"".join(headers) + MIMEText(body, "plain", "utf-8", policy=policy.SMTP).as_bytes()
    )
