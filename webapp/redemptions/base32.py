"""Crockford's base32: 32 letters and digits that people can read out, without I, L, O and U."""

from __future__ import annotations

BASE32_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# What is easily typed instead.
_LOOKALIKES = str.maketrans("OIL", "011")


def encode_base32(number: int, length: int) -> str:
    """The number in exactly `length` characters, zeros in front."""
    if not 0 <= number < 32**length:
        raise ValueError("the number does not fit")
    letters = []
    for _ in range(length):
        number, place = divmod(number, 32)
        letters.append(BASE32_ALPHABET[place])
    return "".join(reversed(letters))


def normalise_base32(text: str) -> str:
    """Upper-cased, with O, I and L as the digits they were read from."""
    return text.upper().translate(_LOOKALIKES)


def decode_base32(text: str) -> int | None:
    """The number that `write` made this of, else None."""
    number = 0
    for letter in normalise_base32(text):
        place = BASE32_ALPHABET.find(letter)
        if place < 0:
            return None
        number = number * 32 + place
    return number
