"""Count redemptions towards the cap of an offer, and remember which offers are used up."""

from __future__ import annotations

from flask import current_app
from sqlalchemy import Connection, text

from webapp.redemptions.errors import InvalidOfferCounter

_INCREMENT_REDEEMED = (
    "update offer_counter set redeemed = redeemed + %(n)s "
    "where offer_id = %(offer_id)s and redeemed + %(n)s <= max_redemptions returning redeemed = max_redemptions"
)
_SELECT_REMAINING_FOR_UPDATE = text(
    "select max_redemptions - redeemed from offer_counter where offer_id = :offer_id for update"
)


def reserve_cap(connection: Connection, offer_id: int, count: int) -> int:
    """Count redemptions towards the cap, or as many as remain; return their number.

    :raises InvalidOfferCounter: when the offer has no counter, or one without a cap.
    """
    if _increment_redeemed(connection, offer_id, count):
        return count
    remaining: int | None = connection.scalar(_SELECT_REMAINING_FOR_UPDATE, {"offer_id": offer_id})
    if remaining is None:
        raise InvalidOfferCounter(offer_id)
    reserved = min(count, max(0, remaining))
    if reserved:
        _increment_redeemed(connection, offer_id, reserved)
    else:
        remember_whether_used_up(offer_id, True)
    return reserved


def _increment_redeemed(connection: Connection, offer_id: int, count: int) -> bool:
    """Count redemptions towards the cap; return False if fewer remain."""
    is_used_up = connection.exec_driver_sql(_INCREMENT_REDEEMED, {"offer_id": offer_id, "n": count}).scalar()
    if is_used_up is None:
        return False
    remember_whether_used_up(offer_id, is_used_up)
    return True


def remember_whether_used_up(offer_id: int, is_used_up: bool) -> None:
    """Remember in this process whether an offer has no redemptions left under its cap."""
    if is_used_up:
        get_used_up_offer_ids().add(offer_id)
    else:
        get_used_up_offer_ids().discard(offer_id)


def get_used_up_offer_ids() -> set[int]:
    """Return the offers that were used up when this app and process last looked them up or redeemed them.

    Requests for them are looked up before the insert: a refusal then takes the same statements for every email, and no
    insert. The outcome does not depend on it.
    """
    used_up_offer_ids: set[int] = current_app.extensions.setdefault("used_up_offers", set())
    return used_up_offer_ids
