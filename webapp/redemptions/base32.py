"""Crockford's Base32: 32 digits and letters, without I, L, O and U."""

from __future__ import annotations

BASE32_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Letters that are commonly mistyped for digits.
_LOOKALIKES = str.maketrans("OIL", "011")
# All pairs of digits, in the order of their values.
_PAIRS = [first + second for first in BASE32_ALPHABET for second in BASE32_ALPHABET]


def encode_base32(number: int, length: int) -> str:
    """Encode a number in exactly `length` characters, padded with zeros.

    :raises ValueError: when the number does not fit.
    """
    if number < 0 or number.bit_length() > 5 * length:
        raise ValueError("the number does not fit")
    # Two digits at a time. With an odd length, the first pair has a leading zero, which is cut off.
    digits = "".join([_PAIRS[number >> shift & 1023] for shift in range(10 * ((length - 1) // 2), -1, -10)])
    return digits[-length:]


def normalise_base32(text: str) -> str:
    """Convert to upper case and replace O, I and L by the digits they look like."""
    return text.upper().translate(_LOOKALIKES)


def decode_base32(text: str) -> int | None:
    """Decode a number of `encode_base32`; None when the text is not Base32."""
    number = 0
    for letter in normalise_base32(text):
        digit = BASE32_ALPHABET.find(letter)
        if digit < 0:
            return None
        number = number * 32 + digit
    return number
