"""Personal links: `/r/<token>` opens the form filled in. The token says whose it is and that we made it."""

from __future__ import annotations

from collections.abc import Callable

from flask import current_app

from webapp.core import signing_keys

PERSONAL_LINK_PURPOSE = "personal_link"
# No customer has this id. Links of previews and tests are signed for it: they open a page that says so.
PREVIEW_CUSTOMER_ID = 0


def build_personal_url(offer_id: int, customer_id: int) -> str:
    """The absolute address of this customer's link for this offer."""
    token = signing_keys.sign_token(PERSONAL_LINK_PURPOSE, [offer_id, customer_id])
    return f"{current_app.config['SETTINGS'].public_url}/r/{token}"


def make_personal_url_builder(offer_id: int) -> Callable[[int], str]:
    """`personal_url` of one offer for many customers, one after the other."""
    start, sign = f"{current_app.config['SETTINGS'].public_url}/r/", signing_keys.create_signer(PERSONAL_LINK_PURPOSE)
    return lambda customer_id: start + sign([offer_id, customer_id])


def parse_personal_token(token: str) -> tuple[int, int] | None:
    """(offer id, customer id) of a token of ours, else None."""
    payload = signing_keys.verify_token(PERSONAL_LINK_PURPOSE, token) if token.isascii() else None
    if payload is None or len(payload) != 2:
        return None
    return payload[0], payload[1]
