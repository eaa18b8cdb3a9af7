"""The signed addresses at which a customer ends the mails and at which a mail comes back, and the name of a message.
Nothing is stored."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable

from flask import current_app

from webapp.core import signing_keys

_PURPOSE = "unsubscribe"
_RETURN = "return_path"
_MESSAGE = "message_id"
_MAC_BYTES = 10


def unsubscribe_url(customer_id: int, campaign_id: int) -> str:
    """The absolute address of `/u/<token>`. It never expires."""
    return f"{current_app.config['SETTINGS'].public_url}/u/{signing_keys.sign(_PURPOSE, [customer_id, campaign_id])}"


def unsubscribe_urls(campaign_id: int) -> Callable[[int], str]:
    """`unsubscribe_url` of one campaign for many customers, one after the other."""
    start, sign = f"{current_app.config['SETTINGS'].public_url}/u/", signing_keys.signer(_PURPOSE)
    return lambda customer_id: start + sign([customer_id, campaign_id])


def read(token: str) -> tuple[int, int] | None:
    """(customer, campaign) of a token of ours, else None."""
    payload = signing_keys.unsign(_PURPOSE, token)
    return (payload[0], payload[1]) if payload is not None and len(payload) == 2 else None


def message_id(campaign_id: int, customer_id: int, domain: str) -> str:
    """The same for every try at one mail, so that a mailbox can know a second copy again. It tells nobody anything, but
    for us, whose mail it was (`read_message_id`)."""
    return message_ids(campaign_id, domain)(customer_id)


def message_ids(campaign_id: int, domain: str) -> Callable[[int], str]:
    """`message_id` of one campaign for many customers, one after the other."""
    secret = signing_keys.newest(_MESSAGE)
    campaign = campaign_id.to_bytes(8)

    def of(customer_id: int) -> str:
        ids = campaign + customer_id.to_bytes(8)
        # As in SIV (RFC 5297): a MAC of the ids proves them, and hides them under what is derived from it.
        mac = hmac.digest(secret, ids, "sha256")[:_MAC_BYTES]
        return f"<{base64.b32encode(mac + _hidden(secret, mac, ids)).decode().rstrip('=').lower()}@{domain}>"

    return of


def read_message_id(given: str) -> tuple[int, int] | None:
    """(campaign, customer) of a Message-ID that `message_id` made, else None."""
    data = _base32(given.strip().removeprefix("<").rpartition("@")[0])
    mac, hidden = data[:_MAC_BYTES], data[_MAC_BYTES:]
    if len(hidden) != 16:
        return None
    for _, secret in (*signing_keys.keys(_MESSAGE), *signing_keys.newly_known(_MESSAGE)):
        ids = _hidden(secret, mac, hidden)
        if hmac.compare_digest(hmac.digest(secret, ids, "sha256")[:_MAC_BYTES], mac):
            return int.from_bytes(ids[:8]), int.from_bytes(ids[8:])
    return None


def _hidden(secret: bytes, mac: bytes, ids: bytes) -> bytes:
    """Ids made unreadable, or readable again."""
    mask = hmac.digest(secret, mac, "sha256")[:16]
    return (int.from_bytes(ids) ^ int.from_bytes(mask)).to_bytes(16)


def _base32(token: str) -> bytes:
    """What base32 letters of any case stand for; nothing where they are none."""
    try:
        return base64.b32decode(token.upper() + "=" * (-len(token) % 8))
    except ValueError:
        return b""


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
    token = base64.b32encode(ids + _mac(signing_keys.newest(_RETURN), ids)).decode().rstrip("=").lower()
    return f"{local}+{token}@{domain}"


def read_return_path(address: str) -> tuple[int, int] | None:
    """(campaign, customer) of an address that `return_path` made, in whatever capitals, else None."""
    data = _base32(address.strip().rpartition("@")[0].rpartition("+")[2])
    ids, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not ids or len(ids) != 1 + (ids[0] >> 4) + (ids[0] & 15):
        return None
    if not (_proven(ids, mac, signing_keys.keys(_RETURN)) or _proven(ids, mac, signing_keys.newly_known(_RETURN))):
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
    return hmac.digest(secret, ids, "sha256")[:_MAC_BYTES]
