"""The From and To addresses of an email."""

from __future__ import annotations

from email.utils import parseaddr

import idna
from flask import current_app

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.customers.models import Customer
from webapp.mail.headers import reject_line_breaks
from webapp.shop import queries as shop_queries


def sender_address(configured: str) -> str:
    """The address of the configured sender, its domain as IDNA 2008."""
    reject_line_breaks(configured)
    local, _, domain = parseaddr(configured)[1].rpartition("@")
    return f"{local}@{domain if domain.isascii() else idna.encode(domain, uts46=True).decode()}"


def recipient_address(customer: Customer) -> str:
    """Where the mail goes: the local part as it was given, the domain as IDNA 2008.

    :raises ValueError: when that is no address (RFC 5321).
    """
    local, _, domain = customer.email.rpartition("@")
    given = customer.email_as_given.strip().rpartition("@")[0]
    to = f"{given if given.lower() == local else local}@{domain}"
    try:
        normalise_email(to)
    except InvalidInput as error:
        raise ValueError(f"“{customer.email_as_given}” is no address that mail can be sent to") from error
    return to


def format_sender() -> str:
    """Whom recipients see as the sender."""
    name, given = (
        shop_queries.get_shop().sender_name,
        sender_address(current_app.config["SETTINGS"].mail_default_sender),
    )
    return f"{name} <{given}>" if name else given
