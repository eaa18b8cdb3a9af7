"""Send test emails to staff."""

from __future__ import annotations

import secrets

from flask import current_app
from flask_babel import gettext as _

from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import smtp
from webapp.mail.smtp import RelayRejected, RelayUnavailable
from webapp.offers.models import Offer
from webapp.redemptions import personal_links
from webapp.shop.models import ShopValues


def send_test_email(content: EmailContent, offer: Offer, to: str, name: str, shop: ShopValues | None = None) -> None:
    """Send a test email to a staff member now.

    Its links belong to no customer, so opening them has no effect.

    :param to: the address of the staff member.
    :param shop: settings of the shop, by default the stored ones.
    :raises DomainError: `relay_down` or `relay_refuses`, with the relay's reply.
    """
    preview_customer = Customer(id=personal_links.PREVIEW_CUSTOMER_ID, email=to.lower(), email_as_given=to, name=name)
    settings: Settings = current_app.config["SETTINGS"]
    merge = MailMerge(content, offer, 0, token=f"test.{secrets.token_hex(8)}", shop=shop)
    message = merge.build_message(preview_customer)
    # Keep no transaction open while waiting for the relay.
    db.session.rollback()
    try:
        with smtp.create_relay_connection() as relay:
            relay.send(message)
    except RelayUnavailable as error:
        raise DomainError(
            "relay_down",
            _(
                "The mail relay %(server)s did not accept the email: %(error)s. Try again in a moment.",
                server=settings.mail_server,
                error=error,
            ),
            503,
        ) from error
    except RelayRejected as error:
        raise DomainError(
            "relay_refuses", _("The mail relay rejected the email: %(error)s. Check the mail settings.", error=error)
        ) from error
