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

PURPOSE = "redemption_id"
LENGTH = 26
# 32 + 43 + 53 bits make one block: 4 billion offers, 8 trillion customers, moments until the year 2255.
_CUSTOMER_BITS, _TIME_BITS = 43, 53
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Triple(NamedTuple):
    """What names a redemption for ever, also after it was undone."""

    offer_id: int
    customer_id: int
    redeemed_at: datetime


def write(offer_id: int, customer_id: int, redeemed_at: datetime) -> str:
    """The public id of a redemption."""
    at = microseconds(redeemed_at)
    if not 0 <= customer_id < 1 << _CUSTOMER_BITS or not 0 <= at < 1 << _TIME_BITS:
        raise ValueError("no such redemption can be")
    number = ((offer_id << _CUSTOMER_BITS) | customer_id) << _TIME_BITS | at
    block = _cipher(signing_keys.newest(PURPOSE)).encryptor().update(number.to_bytes(16, "big"))
    return base32.write(int.from_bytes(block, "big"), LENGTH)


def read(public_id: str) -> Iterator[Triple]:
    """What a public id may stand for: one triple for each key there has been. Only a look-up tells which is real.

    Whoever has found none of them real gets those of keys that another process has just made.
    """
    number = base32.read(public_id) if len(public_id) == LENGTH else None
    if number is None or number >= 1 << 128:
        return
    block = number.to_bytes(16, "big")
    for look_up in (signing_keys.keys, signing_keys.newly_known):
        for _, secret in look_up(PURPOSE):
            yield _triple(_cipher(secret).decryptor().update(block))


def microseconds(at: datetime) -> int:
    """A moment as a number."""
    return (at - _EPOCH) // _MICROSECOND


def moment(number: int) -> datetime:
    """The moment of a number; one that is too large for a calendar is the last that a number of ours can name."""
    return _EPOCH + min(number, (1 << _TIME_BITS) - 1) * _MICROSECOND


def _triple(block: bytes) -> Triple:
    number = int.from_bytes(block, "big")
    at = number & ((1 << _TIME_BITS) - 1)
    customer = (number >> _TIME_BITS) & ((1 << _CUSTOMER_BITS) - 1)
    return Triple(number >> (_TIME_BITS + _CUSTOMER_BITS), customer, moment(at))


@lru_cache(maxsize=16)
def _cipher(secret: bytes) -> Cipher[ECB]:
    # A single block has no second one to be compared with, which is what is wrong with ECB elsewhere.
    return Cipher(AES(secret), ECB())  # noqa: S305
