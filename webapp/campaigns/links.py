"""The signed addresses at which a customer ends the mails and at which a mail comes back, and the name of a message.
Nothing is stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

from flask import current_app

from webapp import keyring

_PURPOSE = "unsubscribe"
_RETURN = "return_path"
_MAC_BYTES = 10


def unsubscribe_url(customer_id: int, campaign_id: int) -> str:
    """The absolute address of `/u/<token>`. It never expires."""
    return f"{current_app.config['SETTINGS'].public_url}/u/{keyring.sign(_PURPOSE, [customer_id, campaign_id])}"


def unsubscribe_urls(campaign_id: int) -> Callable[[int], str]:
    """`unsubscribe_url` of one campaign for many customers, one after the other."""
    start, sign = f"{current_app.config['SETTINGS'].public_url}/u/", keyring.signer(_PURPOSE)
    return lambda customer_id: start + sign([customer_id, campaign_id])


def read(token: str) -> tuple[int, int] | None:
    """(customer, campaign) of a token of ours, else None."""
    payload = keyring.unsign(_PURPOSE, token)
    return (payload[0], payload[1]) if payload is not None and len(payload) == 2 else None


def message_id(campaign_id: int, customer_id: int, domain: str) -> str:
    """The same for every try at one mail, so that a mailbox can know a second copy again; tells nothing."""
    return message_ids(campaign_id, domain)(customer_id)


def message_ids(campaign_id: int, domain: str) -> Callable[[int], str]:
    """`message_id` of one campaign for many customers, one after the other."""
    secret = keyring.newest("message_id")

    def of(customer_id: int) -> str:
        digest = hmac.digest(secret, f"{campaign_id}.{customer_id}".encode(), "sha256")
        return f"<{base64.b32encode(digest[:15]).decode().lower()}@{domain}>"

    return of


def return_path(campaign_id: int, customer_id: int, default: str) -> str:
    """The envelope sender of one mail (RFC 5321): whatever comes back to it tells whose mail it was, and proves it.

    With `MAIL_BOUNCE_ADDRESS=bounces@example.com` it is `bounces+<token>@example.com`. It never expires, reads the
    same in capitals, and its local part has at most 64 octets (RFC 5321, 4.5.3.1.1).

    :param default: what it is without that setting.
    """
    address = current_app.config["SETTINGS"].mail_bounce_address
    if not address:
        return default
    local, _, domain = address.rpartition("@")
    ids = _ids(campaign_id, customer_id)
    token = base64.b32encode(ids + _mac(keyring.newest(_RETURN), ids)).decode().rstrip("=").lower()
    return f"{local}+{token}@{domain}"


def read_return_path(address: str) -> tuple[int, int] | None:
    """(campaign, customer) of an address that `return_path` made, in whatever capitals, else None."""
    token = address.strip().rpartition("@")[0].rpartition("+")[2].upper()
    try:
        data = base64.b32decode(token + "=" * (-len(token) % 8))
    except ValueError:
        return None
    ids, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not ids or len(ids) != 1 + (ids[0] >> 4) + (ids[0] & 15):
        return None
    if not (_proven(ids, mac, keyring.keys(_RETURN)) or _proven(ids, mac, keyring.newly_known(_RETURN))):
        return None
    end = 1 + (ids[0] >> 4)
    return int.from_bytes(ids[1:end]), int.from_bytes(ids[end:])


def _ids(*numbers: int) -> bytes:
    """Two numbers without leading zeros, after one byte that holds both lengths."""
    first, second = (number.to_bytes((number.bit_length() + 7) // 8) for number in numbers)
    return bytes([len(first) << 4 | len(second)]) + first + second


def _proven(ids: bytes, mac: bytes, with_keys: list[tuple[int, bytes]]) -> bool:
    return any(hmac.compare_digest(_mac(secret, ids), mac) for _, secret in with_keys)


def _mac(secret: bytes, ids: bytes) -> bytes:
    return hmac.new(secret, ids, hashlib.sha256).digest()[:_MAC_BYTES]
