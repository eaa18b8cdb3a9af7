"""Single emails to a customer who has just entered a code: the receipt, or the personal link."""

from __future__ import annotations

import logging

from webapp.core.extensions import db
from webapp.mail import smtp
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayRejected

log = logging.getLogger(__name__)

# Seconds until the next attempts while the relay is unavailable; after the last one the customer has to request the
# email again.
RETRY_DELAYS = (60, 600, 3600)


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
