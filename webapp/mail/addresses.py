"""The From and To addresses of an email."""

from __future__ import annotations

from email.utils import parseaddr

import idna
from flask import current_app

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.customers.models import Customer
from webapp.mail.headers import reject_line_breaks
from webapp.shop.models import ShopValues


def sender_address(configured: str) -> str:
    """Return the address of the configured sender; the domain as IDNA 2008.

    :raises ValueError: when it has a line break.
    """
    reject_line_breaks(configured)
    local, _, domain = parseaddr(configured)[1].rpartition("@")
    return f"{local}@{domain if domain.isascii() else idna.encode(domain, uts46=True).decode()}"


def recipient_address(customer: Customer) -> str:
    """Return the envelope address of a customer.

    It has the local part in its original case, and the domain as IDNA 2008.

    :raises ValueError: when the address is not valid (RFC 5321).
    """
    local, _, domain = customer.email.rpartition("@")
    original = customer.email_as_given.strip().rpartition("@")[0]
    to = f"{original if original.lower() == local else local}@{domain}"
    try:
        normalise_email(to)
    except InvalidInput as error:
        raise ValueError(f"“{customer.email_as_given}” is not a valid email address") from error
    return to


def format_sender(shop: ShopValues) -> str:
    """Return the From header as shown to recipients: the sender name and address."""
    address = sender_address(current_app.config["SETTINGS"].mail_default_sender)
    name = shop.sender_display_name
    return f"{name} <{address}>" if name else address  # no translation
