"""The header lines of a campaign's messages."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from flask import current_app

from webapp.campaigns import tokens as campaign_tokens
from webapp.core.settings import Settings
from webapp.mail.addresses import sender_address
from webapp.mail.headers import format_address_header, format_header, reject_line_breaks, to_single_line
from webapp.shop.models import ShopValues


class CampaignHeaders:
    """Builds the headers of the messages of one campaign.

    Those that are the same for all recipients are built once.

    :param token: identifies a test email; None for the campaign itself.
    """

    def __init__(self, shop: ShopValues, offer_id: int, campaign_id: int, token: str | None) -> None:
        settings: Settings = current_app.config["SETTINGS"]
        self._campaign_id = campaign_id
        self._is_test = token is not None
        self._sender = sender_address(settings.mail_default_sender)
        self._supports_one_click = settings.public_url.startswith("https://")
        domain = self._sender.rpartition("@")[2]
        self._message_id_for = (
            (lambda _: f"<{token}@{domain}>")
            if token
            else campaign_tokens.create_message_id_builder(campaign_id, domain)
        )
        self._common_headers = b"".join(
            (
                format_address_header("From", to_single_line(shop.sender_display_name), self._sender),
                format_address_header("Reply-To", "", sender_address(shop.reply_to)) if shop.reply_to else b"",
                format_address_header("List-Id", to_single_line(shop.name), f"offers.{domain}"),
                format_header("Feedback-ID", f"{campaign_id}:{offer_id}:mailing:onecode"),
                b"Precedence: bulk\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n",
                format_header("X-Campaign-Id", str(campaign_id)),
            )
        )

    def build(self, subject_header: bytes, name: str, address: str, customer_id: int, unsubscribe_url: str) -> bytes:
        """Return the headers of the message to one recipient, without those of its body.

        :param customer_id: the customer in its links and return path.
        :raises ValueError: for a line break in a value.
        """
        return b"".join(
            (
                self._common_headers,
                subject_header,
                format_address_header("To", name, address),
                _date_header(int(time.time())),
                f"Message-ID: {self._message_id_for(customer_id)}\r\n".encode(),
                self._unsubscribe_headers(unsubscribe_url, self.return_path(customer_id)),
            )
        )

    def return_path(self, customer_id: int) -> str:
        """Return the envelope sender of the message to one recipient."""
        if self._is_test:
            return self._sender
        return campaign_tokens.build_return_path(self._campaign_id, customer_id, self._sender)

    def _unsubscribe_headers(self, url: str, mailbox: str) -> bytes:
        """Build the headers of RFC 2369 and, with HTTPS, those of RFC 8058.

        URLs and addresses are folded, never encoded.
        """
        reject_line_breaks(url)
        lines = f"List-Unsubscribe: <{url}>,\r\n <mailto:{mailbox}?subject=unsubscribe>\r\n"
        if self._supports_one_click:
            lines += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        return lines.encode("ascii")


@lru_cache(2)
def _date_header(second: int) -> bytes:
    return f"Date: {format_datetime(datetime.fromtimestamp(second, UTC))}\r\n".encode()
