"""Personal codes: the shared code and eight characters that only one customer's mail carries. Nothing is stored."""

from __future__ import annotations

import hashlib
import hmac

from webapp.core import signing_keys
from webapp.redemptions import base32

PERSONAL_CODE_PURPOSE = "personal_code"
SUFFIX_LENGTH = 8


def derive_personal_code(code_as_written: str, offer_id: int, customer_id: int) -> str:
    """SUMMER25-7KQ4XM2T: works only together with that customer's e-mail."""
    return (
        f"{code_as_written}-{_derive_suffix(signing_keys.current_secret(PERSONAL_CODE_PURPOSE), offer_id, customer_id)}"
    )


def split_personal_code(typed: str) -> tuple[str | None, str | None]:
    """A normalised code as (shared code, suffix), should it be a personal one."""
    if len(typed) <= SUFFIX_LENGTH:
        return None, None
    return typed[:-SUFFIX_LENGTH], base32.normalise_base32(typed[-SUFFIX_LENGTH:])


def verify_personal_code(suffix: str, offer_id: int, customer_id: int, revision: int = 0) -> bool:
    """Whether the suffix is this customer's, with any key that is accepted. Takes as long for a wrong one.

    :param revision: of the keys, as it stood on disk with the facts: see `keyring.keys`.
    """
    right = [
        hmac.compare_digest(_derive_suffix(secret, offer_id, customer_id).encode(), suffix.encode())
        for _, secret in signing_keys.accepted_keys(PERSONAL_CODE_PURPOSE, revision)
    ]
    return any(right)


def _derive_suffix(secret: bytes, offer_id: int, customer_id: int) -> str:
    digest = hmac.new(secret, f"{offer_id}:{customer_id}".encode(), hashlib.sha256).digest()
    return base32.encode_base32(int.from_bytes(digest[:5], "big"), SUFFIX_LENGTH)
