"""The signed address at which a customer ends the mails, and the name of a message. Nothing is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac

from flask import current_app

from webapp import keyring

_PURPOSE = "unsubscribe"


def unsubscribe_url(customer_id: int, campaign_id: int) -> str:
    """The absolute address of `/u/<token>`. It never expires."""
    return f"{current_app.config['SETTINGS'].public_url}/u/{keyring.sign(_PURPOSE, [customer_id, campaign_id])}"


def read(token: str) -> tuple[int, int] | None:
    """(customer, campaign) of a token of ours, else None."""
    payload = keyring.unsign(_PURPOSE, token)
    return (payload[0], payload[1]) if payload is not None and len(payload) == 2 else None


def message_id(campaign_id: int, customer_id: int, domain: str) -> str:
    """The same for every try at one mail, so that a mailbox can know a second copy again; tells nothing."""
    digest = hmac.new(keyring.newest("message_id"), f"{campaign_id}.{customer_id}".encode(), hashlib.sha256).digest()
    return f"<{base64.b32encode(digest[:15]).decode().lower()}@{domain}>"
