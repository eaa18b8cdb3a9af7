"""Single emails as plain text, such as those to users."""

from __future__ import annotations

from datetime import UTC, datetime
from email import policy
from email.mime.text import MIMEText
from email.utils import format_datetime, make_msgid

from flask import current_app

from webapp.core.settings import Settings
from webapp.mail import addresses
from webapp.mail.headers import format_address_header, format_header, to_single_line
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.shop.models import ShopValues


def build_plain_email(shop: ShopValues, to: str, subject: str, body: str) -> OutgoingMessage:
    """Return a plain text email from the shop.

    :param to: the envelope address, with the domain as IDNA 2008.
    :param subject: line breaks in it become spaces.
    """
    settings: Settings = current_app.config["SETTINGS"]
    sender = addresses.sender_address(settings.mail_default_sender)
    headers = (
        format_address_header("From", shop.sender_display_name, sender),
        format_address_header("Reply-To", "", addresses.sender_address(shop.reply_to)) if shop.reply_to else b"",
        format_address_header("To", "", to),
        format_header("Subject", to_single_line(subject)),
        format_header("Date", format_datetime(datetime.now(UTC))),
        format_header("Message-ID", make_msgid(domain=sender.rpartition("@")[2])),
        b"Auto-Submitted: auto-generated\r\n",
    )
    mime = MIMEText(body, "plain", "utf-8", policy=policy.SMTP)
    return OutgoingMessage(sender, to, b"".join(headers) + mime.as_bytes())
