"""Crockford's Base32: 32 digits and letters, without I, L, O and U."""

from __future__ import annotations

BASE32_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Letters that are commonly mistyped for digits.
_LOOKALIKES = str.maketrans("OIL", "011")


def encode_base32(number: int, length: int) -> str:
    """Encode a number in exactly `length` characters, padded with zeros.

    :raises ValueError: when the number does not fit.
    """
    if not 0 <= number < 32**length:
        raise ValueError("the number does not fit")
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 32)
        digits.append(BASE32_ALPHABET[digit])
    return "".join(reversed(digits))


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
