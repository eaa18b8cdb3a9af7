"""Signed identifiers of an email: unsubscribe URL, return path and Message-ID.

They are not stored.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import NamedTuple

from flask import current_app

from webapp.core import signing_keys

_UNSUBSCRIBE_PURPOSE = "unsubscribe"
_RETURN_PATH_PURPOSE = "return_path"
_MESSAGE_ID_PURPOSE = "message_id"
_MAC_BYTES = 10


class DeliveryIds(NamedTuple):
    """The campaign and the customer of an email."""

    campaign_id: int
    customer_id: int


def build_unsubscribe_url(customer_id: int, campaign_id: int) -> str:
    """Build the absolute URL `/u/<token>`. It never expires."""
    token = signing_keys.sign_token(_UNSUBSCRIBE_PURPOSE, [customer_id, campaign_id])
    return f"{current_app.config['SETTINGS'].public_url}/u/{token}"


def create_unsubscribe_url_builder(campaign_id: int) -> Callable[[int], str]:
    """Return a function that builds the unsubscribe URL of a customer.

    It is faster than `build_unsubscribe_url` for many customers of one campaign.
    """
    prefix = f"{current_app.config['SETTINGS'].public_url}/u/"
    sign = signing_keys.create_token_signer(_UNSUBSCRIBE_PURPOSE)
    return lambda customer_id: prefix + sign([customer_id, campaign_id])


def parse_unsubscribe_token(token: str) -> DeliveryIds | None:
    """Return the ids of an unsubscribe token; None if it is not valid."""
    payload = signing_keys.verify_token(_UNSUBSCRIBE_PURPOSE, token)
    if payload is None or len(payload) != 2:
        return None
    customer_id, campaign_id = payload
    return DeliveryIds(campaign_id, customer_id)


def build_message_id(campaign_id: int, customer_id: int, domain: str) -> str:
    """Build the Message-ID of an email.

    It is the same for every attempt, so that mailboxes can detect a duplicate. It reveals no ids; `parse_message_id`
    recovers them.
    """
    return create_message_id_builder(campaign_id, domain)(customer_id)


def create_message_id_builder(campaign_id: int, domain: str) -> Callable[[int], str]:
    """Return a function that builds the Message-ID of an email of one campaign.

    It is faster than `build_message_id` for many customers.
    """
    secret = signing_keys.get_current_secret(_MESSAGE_ID_PURPOSE)
    campaign = campaign_id.to_bytes(8)

    def build(customer_id: int) -> str:
        ids = campaign + customer_id.to_bytes(8)
        # As in SIV mode (RFC 5297): a MAC authenticates the ids, and a mask derived from it encrypts them.
        mac = _compute_mac(secret, ids)
        return f"<{base64.b32encode(mac + _xor_with_mask(secret, mac, ids)).decode().rstrip('=').lower()}@{domain}>"

    return build


def parse_message_id(message_id: str) -> DeliveryIds | None:
    """Return the ids of a Message-ID; None if it is not valid."""
    data = _decode_base32(message_id.strip().removeprefix("<").rpartition("@")[0])
    mac, masked = data[:_MAC_BYTES], data[_MAC_BYTES:]
    if len(masked) != 16:
        return None
    for _, secret in (
        *signing_keys.list_accepted_keys(_MESSAGE_ID_PURPOSE),
        *signing_keys.find_new_keys(_MESSAGE_ID_PURPOSE),
    ):
        ids = _xor_with_mask(secret, mac, masked)
        if hmac.compare_digest(_compute_mac(secret, ids), mac):
            return DeliveryIds(int.from_bytes(ids[:8]), int.from_bytes(ids[8:]))
    return None


def _xor_with_mask(secret: bytes, mac: bytes, data: bytes) -> bytes:
    """Mask or unmask 16 bytes of ids: XOR them with a mask derived from the MAC."""
    mask = hmac.digest(secret, mac, "sha256")[:16]
    return (int.from_bytes(data) ^ int.from_bytes(mask)).to_bytes(16)


def _decode_base32(token: str) -> bytes:
    """Decode Base32 in upper or lower case without padding; empty for invalid input."""
    try:
        return base64.b32decode(token.upper() + "=" * (-len(token) % 8))
    except ValueError:
        return b""


def build_return_path(campaign_id: int, customer_id: int, default: str) -> str:
    """Build the signed envelope sender of one email (RFC 5321).

    It identifies the email that a bounce is about. With `MAIL_BOUNCE_ADDRESS=bounces@example.com` it is
    `bounces+<token>@example.com`. It never expires, is not
    case-sensitive, and its local part has at most 64 octets (RFC 5321, 4.5.3.1.1).

    :param default: the envelope sender when `MAIL_BOUNCE_ADDRESS` is not set.
    """
    address = current_app.config["SETTINGS"].mail_bounce_address
    if not address:
        return default
    local, _, domain = address.rpartition("@")
    ids = _encode_ids(campaign_id, customer_id)
    token = (
        base64.b32encode(ids + _compute_mac(signing_keys.get_current_secret(_RETURN_PATH_PURPOSE), ids))
        .decode()
        .rstrip("=")
        .lower()
    )
    return f"{local}+{token}@{domain}"


def parse_return_path(address: str) -> DeliveryIds | None:
    """Return the ids of a return path; None if it is not valid.

    It may be in upper or lower case.
    """
    data = _decode_base32(address.strip().rpartition("@")[0].rpartition("+")[2])
    ids, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not ids or len(ids) != 1 + (ids[0] >> 4) + (ids[0] & 15):
        return None
    if not (
        _has_valid_mac(ids, mac, signing_keys.list_accepted_keys(_RETURN_PATH_PURPOSE))
        or _has_valid_mac(ids, mac, signing_keys.find_new_keys(_RETURN_PATH_PURPOSE))
    ):
        return None
    return _decode_ids(ids)


def _encode_ids(campaign_id: int, customer_id: int) -> bytes:
    """Encode both ids without leading zeros, after one byte with their lengths."""
    first, second = (number.to_bytes((number.bit_length() + 7) // 8) for number in (campaign_id, customer_id))
    return bytes([len(first) << 4 | len(second)]) + first + second


def _decode_ids(encoded: bytes) -> DeliveryIds:
    end = 1 + (encoded[0] >> 4)
    return DeliveryIds(int.from_bytes(encoded[1:end]), int.from_bytes(encoded[end:]))


def _has_valid_mac(ids: bytes, mac: bytes, keys: list[tuple[int, bytes]]) -> bool:
    return any(hmac.compare_digest(_compute_mac(secret, ids), mac) for _, secret in keys)


def _compute_mac(secret: bytes, ids: bytes) -> bytes:
    return hmac.digest(secret, ids, "sha256")[:_MAC_BYTES]
