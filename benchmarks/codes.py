"""Codes for the pools: ten characters that are unambiguous and hard to guess."""

from __future__ import annotations

import secrets

ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
LENGTH = 10
# Bytes below this value map evenly to the letters.
_EVEN = 256 // len(ALPHABET) * len(ALPHABET)


def generate(n: int) -> list[str]:
    """Generate n different codes."""
    codes: dict[str, None] = {}
    while len(codes) < n:
        random_bytes = secrets.token_bytes(16 * (n - len(codes)))
        letters = [ALPHABET[byte % len(ALPHABET)] for byte in random_bytes if byte < _EVEN]
        usable = len(letters) - len(letters) % LENGTH
        codes |= dict.fromkeys("".join(letters[at : at + LENGTH]) for at in range(0, usable, LENGTH))
    return list(codes)[:n]
