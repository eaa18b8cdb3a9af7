"""Codes for the pools: ten characters that nobody misreads or guesses."""

from __future__ import annotations

import secrets

ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
LENGTH = 10
# Bytes below it fall evenly on the letters.
_EVEN = 256 // len(ALPHABET) * len(ALPHABET)


def generate(n: int) -> list[str]:
    """So many different codes."""
    found: dict[str, None] = {}
    while len(found) < n:
        noise = secrets.token_bytes(16 * (n - len(found)))
        letters = [ALPHABET[byte % len(ALPHABET)] for byte in noise if byte < _EVEN]
        whole = len(letters) - len(letters) % LENGTH
        found |= dict.fromkeys("".join(letters[at : at + LENGTH]) for at in range(0, whole, LENGTH))
    return list(found)[:n]
