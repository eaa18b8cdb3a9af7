"""The public id of a redemption: offer, customer and moment encrypted as one AES block.

It needs no column, says nothing about what is in it, and is looked up by decrypting it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from webapp.core import signing_keys
from webapp.redemptions import base32

PUBLIC_ID_PURPOSE = "redemption_id"
PUBLIC_ID_LENGTH = 26
# 32 + 43 + 53 bits make one block: 4 billion offers, 8 trillion customers, moments until the year 2255.
_CUSTOMER_BITS, _TIME_BITS = 43, 53
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class RedemptionKey(NamedTuple):
    """What names a redemption for ever, also after it was undone."""

    offer_id: int
    customer_id: int
    redeemed_at: datetime


def encode_public_id(offer_id: int, customer_id: int, redeemed_at: datetime) -> str:
    """The public id of a redemption."""
    at = to_microseconds(redeemed_at)
    if not 0 <= customer_id < 1 << _CUSTOMER_BITS or not 0 <= at < 1 << _TIME_BITS:
        raise ValueError("no such redemption can be")
    number = ((offer_id << _CUSTOMER_BITS) | customer_id) << _TIME_BITS | at
    block = _cipher(signing_keys.current_secret(PUBLIC_ID_PURPOSE)).encryptor().update(number.to_bytes(16, "big"))
    return base32.encode_base32(int.from_bytes(block, "big"), PUBLIC_ID_LENGTH)


def decode_public_id(public_id: str) -> Iterator[RedemptionKey]:
    """What a public id may stand for: one triple for each key there has been. Only a look-up tells which is real.

    Whoever has found none of them real gets those of keys that another process has just made.
    """
    number = base32.decode_base32(public_id) if len(public_id) == PUBLIC_ID_LENGTH else None
    if number is None or number >= 1 << 128:
        return
    block = number.to_bytes(16, "big")
    for look_up in (signing_keys.accepted_keys, signing_keys.find_new_keys):
        for _, secret in look_up(PUBLIC_ID_PURPOSE):
            yield _unpack_key(_cipher(secret).decryptor().update(block))


def to_microseconds(at: datetime) -> int:
    """A moment as a number."""
    return (at - _UNIX_EPOCH) // _MICROSECOND


def from_microseconds(number: int) -> datetime:
    """The moment of a number; one that is too large for a calendar is the last that a number of ours can name."""
    return _UNIX_EPOCH + min(number, (1 << _TIME_BITS) - 1) * _MICROSECOND


def _unpack_key(block: bytes) -> RedemptionKey:
    number = int.from_bytes(block, "big")
    at = number & ((1 << _TIME_BITS) - 1)
    customer = (number >> _TIME_BITS) & ((1 << _CUSTOMER_BITS) - 1)
    return RedemptionKey(number >> (_TIME_BITS + _CUSTOMER_BITS), customer, from_microseconds(at))


@lru_cache(maxsize=16)
def _cipher(secret: bytes) -> Cipher[ECB]:
    # A single block has no second one to be compared with, which is what is wrong with ECB elsewhere.
    return Cipher(AES(secret), ECB())  # noqa: S305
