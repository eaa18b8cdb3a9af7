"""Personal codes: the shared code with an eight-character suffix for one customer.

The suffix is derived by HMAC and not stored.
"""

from __future__ import annotations

import hashlib
import hmac

from webapp.core import signing_keys
from webapp.redemptions import base32

PERSONAL_CODE_PURPOSE = "personal_code"
SUFFIX_LENGTH = 8


def derive_personal_code(code_as_written: str, offer_id: int, customer_id: int) -> str:
    """Return the personal code of a customer, such as SUMMER25-7KQ4XM2T.

    It is valid only with that customer's email address.
    """
    secret = signing_keys.get_current_secret(PERSONAL_CODE_PURPOSE)
    return f"{code_as_written}-{_derive_suffix(secret, offer_id, customer_id)}"


def split_personal_code(code: str) -> tuple[str | None, str | None]:
    """Split a normalised code into (shared code, suffix).

    Return (None, None) when it is too short for a personal one.
    """
    if len(code) <= SUFFIX_LENGTH:
        return None, None
    return code[:-SUFFIX_LENGTH], base32.normalise_base32(code[-SUFFIX_LENGTH:])


def verify_personal_code(suffix: str, offer_id: int, customer_id: int, key_revision: int = 0) -> bool:
    """Return whether the suffix is this customer's under any accepted key.

    The time does not depend on the suffix.

    :param key_revision: revision of the keys in the database, loaded with the facts, see
        `signing_keys.list_accepted_keys`.
    """
    matches = [
        hmac.compare_digest(_derive_suffix(secret, offer_id, customer_id).encode(), suffix.encode())
        for _, secret in signing_keys.list_accepted_keys(PERSONAL_CODE_PURPOSE, key_revision)
    ]
    return any(matches)


def _derive_suffix(secret: bytes, offer_id: int, customer_id: int) -> str:
    digest = hmac.new(secret, f"{offer_id}:{customer_id}".encode(), hashlib.sha256).digest()
    return base32.encode_base32(int.from_bytes(digest[:5], "big"), SUFFIX_LENGTH)
