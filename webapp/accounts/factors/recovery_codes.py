"""The format of recovery codes."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

# Without characters that look alike. The first character of a code names its row.
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
SLOTS = "abcdefghjk"
RANDOM_LENGTH = 11  # 31 ** 11: 54 bits
_GROUP = 4


class ParsedCode(NamedTuple):
    """A recovery code: the character that names its row, and all of its characters."""

    slot: str
    text: str


def generate_codes() -> list[str]:
    """Return a new code for each slot, in groups of four characters."""
    return [_format_code(slot + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_LENGTH))) for slot in SLOTS]


def parse_code(text: str) -> ParsedCode | None:
    """Return a code without separators, in lower case; None if it has not the format of a recovery code."""
    code = re.sub(r"[\s-]", "", text).lower()
    if not re.fullmatch(f"[{SLOTS}][{ALPHABET}]{{{RANDOM_LENGTH}}}", code):
        return None
    return ParsedCode(code[0], code)


def _format_code(code: str) -> str:
    return "-".join(code[start : start + _GROUP] for start in range(0, len(code), _GROUP))
