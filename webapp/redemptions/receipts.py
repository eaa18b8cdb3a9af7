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

from webapp.core.extensions import db
from webapp.core.rate_limit import TableStorage
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.mail import addresses, smtp
from webapp.mail.headers import address_header, header
from webapp.mail.smtp import Letter, RelayRefuses
from webapp.redemptions import personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import Redeemed
from webapp.shop import queries as shop_queries

log = logging.getLogger(__name__)

HOUR, DAY = 3600, 86400
# With many offers used, many receipts could be asked for by a stranger.
A_DAY = 5
# Seconds until the next attempts while the relay is away; after the last one the customer asks again.
WAITS = (60, 600, 3600)


def take_turn(offer_id: int, customer_id: int) -> bool:
    """Whether the receipt may be mailed now: once an hour for each offer and customer, five times a day in all.

    The counter is the decision, so of two who ask at once one is told yes.
    """
    turns = TableStorage("")
    if turns.incr(f"receipt:{offer_id}:{customer_id}", HOUR) > 1:
        return False
    return turns.incr(f"receipts:{customer_id}", DAY) <= A_DAY


def give_turn_back(offer_id: int, customer_id: int) -> None:
    """Nobody was found to mail it: the next who asks has it mailed."""
    TableStorage("").clear(f"receipt:{offer_id}:{customer_id}")


def mail(offer_id: int, customer_id: int) -> None:
    """Mail the receipt of a live redemption; nothing when it was undone, or the customer erased, since.

    :raises RelayDown: when the relay does not take it now.
    """
    customer = customer_queries.by_id(customer_id)
    done = redemption_queries.of_pair(offer_id, customer_id)
    if done is None or customer is None or customer.erased_at is not None:
        return
    letter = _letter(done, addresses.address(customer))
    # No transaction stays open while the relay is waited for.
    db.session.rollback()
    try:
        with smtp.relay() as relay:
            relay.send(letter)
    except RelayRefuses as error:
        log.warning("a receipt of offer %s was refused by the relay: %s", offer_id, error)


def _letter(done: Redeemed, to: str) -> Letter:
    settings: Settings = current_app.config["SETTINGS"]
    shop, sender = shop_queries.shop(), addresses.sender(settings.mail_default_sender)
    link = personal_links.personal_url(done.offer_id, done.customer_id)
    words = current_app.jinja_env.get_template("email/receipt.txt").render(done=done, link=link, shop_name=shop.name)
    head = (
        address_header("From", shop.sender_name, sender),
        address_header("Reply-To", "", addresses.sender(shop.reply_to)) if shop.reply_to else b"",
        address_header("To", "", to),
        header("Subject", " ".join(f"Your receipt: {done.offer_name}".split())),
        header("Date", format_datetime(datetime.now(UTC))),
        header("Message-ID", make_msgid(domain=sender.rpartition("@")[2])),
        b"Auto-Submitted: auto-generated\r\n",
    )
    return Letter(sender, to, b"".join(head) + MIMEText(words, "plain", "utf-8", policy=policy.SMTP).as_bytes())
