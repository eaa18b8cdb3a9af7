"""Email the receipt when a code is entered that the customer has already redeemed.

The page says only that the receipt was emailed; the receipt itself goes to the customer. Nothing is redeemed.
"""

from __future__ import annotations

from datetime import timedelta

from flask import current_app
from flask_babel import gettext as _

from webapp.core import database_clock, task_queue
from webapp.customers import queries as customer_queries
from webapp.mail import addresses, locales
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.plain_email import build_plain_email
from webapp.redemptions import customer_emails, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import RedemptionRecord
from webapp.shop import queries as shop_queries

# The email does not explain the repeated entry as that of another person so soon after the redemption, because the
# customer has probably sent the form twice and has not seen the receipt.
JUST_REDEEMED = timedelta(minutes=5)


def enqueue_receipt(offer_id: int, customer_id: int) -> None:
    """Enqueue the task that emails the receipt, unless the quota is reached."""
    if customer_emails.acquire_email_quota("receipt", offer_id, customer_id) and not task_queue.enqueue(
        "redemptions.send_receipt", offer_id, customer_id, 0
    ):
        customer_emails.release_email_quota("receipt", offer_id, customer_id)


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
    customer_emails.send_customer_email(message, offer_id)


def _build_receipt_email(record: RedemptionRecord, to: str) -> OutgoingMessage:
    shop = shop_queries.get_shop()
    link = personal_links.build_personal_url(record.offer_id, record.customer_id)
    template = current_app.jinja_env.get_template("email/receipt.txt")
    is_recent = database_clock.get_database_time() - record.row.redeemed_at < JUST_REDEEMED
    locale = locales.resolve_locale(record.customer_locale, shop.locale)
    body = template.render(done=record, link=link, shop_name=shop.name, is_recent=is_recent, locale=locale)
    subject = _("Your receipt: %(offer)s", offer=record.offer_name)
    return build_plain_email(shop, to, subject, body)
