"""Public ids of redemptions: their key, encrypted as one AES block.

The key is offer id, customer id and time. A public id needs no column, reveals nothing about its contents, and is
looked up by decrypting it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from sqlalchemy import Connection

from webapp.core import signing_keys
from webapp.redemptions import base32

PUBLIC_ID_PURPOSE = "redemption_id"
PUBLIC_ID_LENGTH = 26
# 32 + 43 + 53 bits make one block: 4 billion offers, 8 trillion customers, times in microseconds until 2255.
_CUSTOMER_BITS, _TIME_BITS = 43, 53
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class RedemptionKey(NamedTuple):
    """The key of a redemption. It stays the same after a rollback."""

    offer_id: int
    customer_id: int
    redeemed_at: datetime


def load_secret(connection: Connection | None = None) -> bytes:
    """Return the secret for `encode_public_id`.

    :param connection: the connection of a write whose result must not depend on another one, without an open
        transaction; by default a new one is opened if the secret has to be read.
    """
    return signing_keys.get_current_secret(PUBLIC_ID_PURPOSE, connection)


def encode_public_id(offer_id: int, customer_id: int, redeemed_at: datetime, secret: bytes) -> str:
    """Return the public id of a redemption.

    :param secret: the secret to encrypt with (`load_secret`).
    :raises ValueError: when a value is out of range.
    """
    microseconds = to_microseconds(redeemed_at)
    if not 0 <= customer_id < 1 << _CUSTOMER_BITS or not 0 <= microseconds < 1 << _TIME_BITS:
        raise ValueError("customer id or time out of range")
    number = ((offer_id << _CUSTOMER_BITS) | customer_id) << _TIME_BITS | microseconds
    block = _cipher(secret).encryptor().update(number.to_bytes(16, "big"))
    return base32.encode_base32(int.from_bytes(block, "big"), PUBLIC_ID_LENGTH)


def decode_public_id(public_id: str) -> Iterator[RedemptionKey]:
    """Yield the keys that a public id may stand for, one per accepted signing key.

    Only a lookup shows which exists. If the caller continues, keys for signing keys that another process has just
    created follow.
    """
    number = base32.decode_base32(public_id) if len(public_id) == PUBLIC_ID_LENGTH else None
    if number is None or number >= 1 << 128:
        return
    block = number.to_bytes(16, "big")
    for list_keys in (signing_keys.list_accepted_keys, signing_keys.find_new_keys):
        for _, secret in list_keys(PUBLIC_ID_PURPOSE):
            yield _unpack_key(_cipher(secret).decryptor().update(block))


def to_microseconds(time: datetime) -> int:
    """Convert a time to microseconds since the Unix epoch."""
    return (time - _UNIX_EPOCH) // _MICROSECOND


def from_microseconds(number: int) -> datetime:
    """Convert microseconds since the Unix epoch to a time.

    A larger number than a public id can hold becomes the latest possible time.
    """
    return _UNIX_EPOCH + min(number, (1 << _TIME_BITS) - 1) * _MICROSECOND


def _unpack_key(block: bytes) -> RedemptionKey:
    number = int.from_bytes(block, "big")
    microseconds = number & ((1 << _TIME_BITS) - 1)
    customer = (number >> _TIME_BITS) & ((1 << _CUSTOMER_BITS) - 1)
    return RedemptionKey(number >> (_TIME_BITS + _CUSTOMER_BITS), customer, from_microseconds(microseconds))


@lru_cache(maxsize=16)
def _cipher(secret: bytes) -> Cipher[ECB]:
    # The weakness of ECB is that equal blocks of a message look equal; here a message is a single block.
    return Cipher(AES(secret), ECB())  # noqa: S305
