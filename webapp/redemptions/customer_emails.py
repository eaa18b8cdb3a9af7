"""Single emails to a customer who has just entered a code: the receipt, or the personal link."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from email import policy
from email.mime.text import MIMEText
from email.utils import format_datetime, make_msgid

from flask import current_app

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import addresses, smtp
from webapp.mail.headers import format_address_header, format_header
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayRejected
from webapp.shop.models import ShopValues

log = logging.getLogger(__name__)

# Seconds until the next attempts while the relay is unavailable; after the last one the customer has to request the
# email again.
RETRY_DELAYS = (60, 600, 3600)


def build_customer_email(shop: ShopValues, to: str, subject: str, body: str) -> OutgoingMessage:
    """Return a plain text email from the shop.

    :param to: the envelope address, see `addresses.recipient_address`.
    """
    settings: Settings = current_app.config["SETTINGS"]
    sender = addresses.sender_address(settings.mail_default_sender)
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


def send_customer_email(message: OutgoingMessage, offer_id: int) -> None:
    """Hand an email to the relay. Ends the transaction of the session.

    A rejected email is logged with the id of its offer.

    :raises RelayUnavailable: when the relay cannot accept it now.
    """
    # No transaction stays open while waiting for the relay.
    db.session.rollback()
    try:
        with smtp.create_relay_connection() as relay:
            relay.send(message)
    except RelayRejected as error:
        log.warning("relay rejected an email about offer %s: %s", offer_id, error)
