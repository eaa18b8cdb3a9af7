"""Single emails to a customer who has just entered a code: the receipt, or the personal link."""

from __future__ import annotations

import logging
from typing import Literal

from webapp.core.extensions import db
from webapp.core.rate_limit import TableStorage
from webapp.mail import smtp
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayRejected

log = logging.getLogger(__name__)

# Seconds until the next attempts while the relay is unavailable; after the last one the customer has to request the
# email again.
RETRY_DELAYS = (60, 600, 3600)
HOUR_SECONDS, DAY_SECONDS = 3600, 86400
# Anyone who knows a code and an email address could request emails, also for every offer of a customer.
MAX_EMAILS_PER_DAY = 5

CustomerEmailKind = Literal["receipt", "personal_link"]


def acquire_email_quota(kind: CustomerEmailKind, offer_id: int, customer_id: int) -> bool:
    """Return whether an email of this kind may be sent now. Commits on its own.

    The quota of each kind is one email an hour per offer and customer, and `MAX_EMAILS_PER_DAY` a day per customer. The
    counter is incremented atomically, so only one of two concurrent requests gets True.
    """
    counters = TableStorage("")
    if counters.incr(_quota_key(kind, offer_id, customer_id), HOUR_SECONDS) > 1:
        return False
    return counters.incr(f"{kind}s:{customer_id}", DAY_SECONDS) <= MAX_EMAILS_PER_DAY


def release_email_quota(kind: CustomerEmailKind, offer_id: int, customer_id: int) -> None:
    """Release the quota of an email that was not sent, so that the next request can use it. Commits on its own."""
    TableStorage("").clear(_quota_key(kind, offer_id, customer_id))


def _quota_key(kind: CustomerEmailKind, offer_id: int, customer_id: int) -> str:
    return f"{kind}:{offer_id}:{customer_id}"


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
