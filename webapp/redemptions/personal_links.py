"""Personal links: `/r/<token>` opens the form filled in. The token says whose it is and that we made it."""

from __future__ import annotations

from collections.abc import Callable

from flask import current_app

from webapp.core import signing_keys

PURPOSE = "personal_link"
# No customer has this id. Links of previews and tests are signed for it: they open a page that says so.
NOBODY = 0


def personal_url(offer_id: int, customer_id: int) -> str:
    """The absolute address of this customer's link for this offer."""
    return f"{current_app.config['SETTINGS'].public_url}/r/{signing_keys.sign(PURPOSE, [offer_id, customer_id])}"


def personal_urls(offer_id: int) -> Callable[[int], str]:
    """`personal_url` of one offer for many customers, one after the other."""
    start, sign = f"{current_app.config['SETTINGS'].public_url}/r/", signing_keys.signer(PURPOSE)
    return lambda customer_id: start + sign([offer_id, customer_id])


def read(token: str) -> tuple[int, int] | None:
    """(offer id, customer id) of a token of ours, else None."""
    payload = signing_keys.unsign(PURPOSE, token) if token.isascii() else None
    if payload is None or len(payload) != 2:
        return None
    return payload[0], payload[1]
