"""Email the personal link when the public form does not redeem a shared code at once.

That is the case while the client address exceeds the limit of customers (`address_limit`). The page is the same for
every email address; only its owner learns from the email whether it can redeem the offer.
"""

from __future__ import annotations

from flask import current_app
from flask_babel import gettext as _

from webapp.core import task_queue
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import queries as suppression_queries
from webapp.mail import addresses, locales
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.plain_email import build_plain_email
from webapp.redemptions import customer_emails, personal_links, receipts
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions.rules import OfferFacts, RedemptionRequest, evaluate
from webapp.shop import queries as shop_queries

# No customer has this id. The task is enqueued for unknown email addresses too, so that the time of the response does
# not reveal which are known.
UNKNOWN_CUSTOMER_ID = 0
# Customers who unsubscribed get the email, because it was requested with their address. An address that bounced cannot
# receive it. The email contains an offer, and another person may have requested it, so a complaint is respected.
REASONS_WITHOUT_LINK_EMAIL = ("bounced", "complained")


def enqueue_link_email(offer_id: int, customer_id: int | None) -> bool:
    """Enqueue the task that emails the personal link, or the receipt, if the customer may get it.

    :param customer_id: None for an unknown email address.
    :returns: whether it was enqueued.
    """
    return task_queue.enqueue("redemptions.send_personal_link", offer_id, customer_id or UNKNOWN_CUSTOMER_ID, 0)


def send_link_email(offer_id: int, customer_id: int, *, is_retry: bool = False) -> None:
    """Email the personal link to a customer who can redeem the offer now; the receipt to one who has redeemed it.

    Does nothing for other customers, while the quota is reached, and for suppressed addresses that bounced or
    complained. `customer_emails.acquire_email_quota` describes the quota.

    :param is_retry: whether this email has used its quota already.
    :raises RelayUnavailable: when the relay cannot accept it now.
    """
    facts = redemption_facts.load_facts(
        [RedemptionRequest(channel="link", offer_id=offer_id, customer_id=customer_id)]
    )[0]
    customer = customer_queries.find_customer(customer_id)
    if facts.offer is None or facts.customer_id is None or customer is None:
        return
    reason = evaluate(facts).public_reason
    if reason == "already_redeemed":
        receipts.enqueue_receipt(offer_id, customer_id)
    if reason is not None or _is_suppressed(customer):
        return
    message = _build_link_email(facts.offer, customer)
    if is_retry or customer_emails.acquire_email_quota("personal_link", offer_id, customer_id):
        customer_emails.send_customer_email(message, offer_id)


def _is_suppressed(customer: Customer) -> bool:
    suppression = suppression_queries.find_suppression_by_email(customer.email)
    return suppression is not None and suppression.reason in REASONS_WITHOUT_LINK_EMAIL


def _build_link_email(offer: OfferFacts, customer: Customer) -> OutgoingMessage:
    shop = shop_queries.get_shop()
    body = current_app.jinja_env.get_template("email/personal_link.txt").render(
        offer=offer,
        customer_name=customer.name,
        link=personal_links.build_personal_url(offer.id, customer.id),
        locale=locales.resolve_locale(customer.locale, shop.locale),
        shop_name=shop.name,
    )
    subject = _("Your personal link: %(offer)s", offer=offer.name)
    return build_plain_email(shop, addresses.recipient_address(customer), subject, body)
