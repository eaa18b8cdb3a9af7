"""Personal links: `/r/<token>` opens the offer for one customer.

The token is signed and contains the ids of both.
"""

from __future__ import annotations

from collections.abc import Callable

from flask import current_app

from webapp.core import signing_keys

PERSONAL_LINK_PURPOSE = "personal_link"
# No customer has this id. Links in previews and test emails are signed for it; their page explains that.
PREVIEW_CUSTOMER_ID = 0


def build_personal_url(offer_id: int, customer_id: int) -> str:
    """Return the absolute URL of a customer's personal link for an offer."""
    token = signing_keys.sign_token(PERSONAL_LINK_PURPOSE, [offer_id, customer_id])
    return f"{current_app.config['SETTINGS'].public_url}/r/{token}"


def create_personal_url_builder(offer_id: int) -> Callable[[int], str]:
    """Return a function that builds the personal URL of one offer for a customer id.

    It is faster than `build_personal_url` for many customers.
    """
    prefix, sign = (
        f"{current_app.config['SETTINGS'].public_url}/r/",
        signing_keys.create_token_signer(PERSONAL_LINK_PURPOSE),
    )
    return lambda customer_id: prefix + sign([offer_id, customer_id])


def parse_personal_token(token: str) -> tuple[int, int] | None:
    """Return (offer id, customer id) of a token with a valid signature, else None."""
    payload = signing_keys.verify_token(PERSONAL_LINK_PURPOSE, token) if token.isascii() else None
    if payload is None or len(payload) != 2:
        return None
    return payload[0], payload[1]
