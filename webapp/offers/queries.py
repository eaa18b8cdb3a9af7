"""Queries for offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, true
from sqlalchemy.orm import contains_eager

from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.offers.models import Offer, OfferCode, OfferCounter, OfferState, normalise_code

# Offers with their counters, for conditions on `OfferCounter`.
SELECT_OFFERS = select(Offer).join(Offer.counter).options(contains_eager(Offer.counter))
IS_BELOW_CAP = or_(OfferCounter.max_redemptions.is_(None), OfferCounter.redeemed < OfferCounter.max_redemptions)


def find_offer(offer_id: int) -> Offer | None:
    """Return the offer with this id, or None."""
    return db.session.get(Offer, offer_id)


def find_offers(offer_ids: Sequence[int]) -> dict[int, Offer]:
    """Return the offers with these ids, by id; missing ones are left out."""
    return {offer.id: offer for offer in db.session.scalars(select(Offer).where(Offer.id.in_(offer_ids)))}


def find_offer_by_code(code: str) -> Offer | None:
    """Return the offer whose current code or open alias this is.

    :param code: normalised.
    """
    return db.session.scalar(
        select(Offer)
        .join(OfferCode, OfferCode.offer_id == Offer.id)
        .where(OfferCode.code == code, OfferCode.closed_at.is_(None))
    )


def find_offer_code(offer_id: int, code: str) -> OfferCode | None:
    """Return a code of an offer, whether it is current, an alias or closed."""
    return db.session.scalar(select(OfferCode).where(OfferCode.offer_id == offer_id, OfferCode.code == code))


def is_code_of_other_offer(code: str, offer: Offer | None) -> bool:
    """Return whether an offer other than this one has or had the code.

    :param code: normalised.
    """
    owner_id = db.session.scalar(select(OfferCode.offer_id).where(OfferCode.code == code))
    return owner_id is not None and (offer is None or owner_id != offer.id)


def find_closed_code(codes: Sequence[str]) -> OfferCode | None:
    """Return the longest of these codes that is a closed code of an offer.

    The candidates are the whole input and its shared part; the longer one is the better match.
    """
    statement = select(OfferCode).where(OfferCode.code.in_(codes), OfferCode.closed_at.is_not(None))
    return db.session.scalar(statement.order_by(func.length(OfferCode.code).desc()).limit(1))


def list_codes_by_offer(offer_ids: Sequence[int]) -> dict[int, list[OfferCode]]:
    """Return all codes of each of these offers, open or closed, newest first."""
    codes: dict[int, list[OfferCode]] = {offer_id: [] for offer_id in offer_ids}
    statement = select(OfferCode).where(OfferCode.offer_id.in_(offer_ids))
    for offer_code in db.session.scalars(statement.order_by(OfferCode.created_at.desc(), OfferCode.code)):
        codes[offer_code.offer_id].append(offer_code)
    return codes


def lock_offer(offer_id: int) -> Offer | None:
    """Load an offer and lock its row until the transaction ends.

    It replaces the values that the session has loaded before. The counter is not locked, so that redemptions do not
    wait; `redeemed` may therefore be older than the lock (`lock_counter`).
    """
    return db.session.scalar(
        select(Offer).where(Offer.id == offer_id).with_for_update(of=Offer).execution_options(populate_existing=True)
    )


def lock_counter(offer: Offer) -> None:
    """Lock the counter of an offer until the transaction ends, and load it again.

    The offer must be locked already: this lock order rules out deadlocks.
    """
    db.session.refresh(offer.counter, with_for_update=True)


def list_offers(
    search: str = "",
    state: OfferState | None = None,
    *,
    before_id: int | None = None,
    after_id: int | None = None,
    limit: int = 25,
) -> list[Offer]:
    """Return offers, newest first; one more than `limit` if there are more.

    :param search: part of the name, or the start of a code.
    :param before_id: return only older offers than this one.
    :param after_id: return the offers that precede this one in the list.
    """
    statement = SELECT_OFFERS.where(_search_condition(search), _state_condition(state))
    if after_id is not None:
        newer = statement.where(Offer.id > after_id).order_by(Offer.id).limit(limit + 1)
        return list(db.session.scalars(newer))[::-1]
    if before_id is not None:
        statement = statement.where(Offer.id < before_id)
    return list(db.session.scalars(statement.order_by(Offer.id.desc()).limit(limit + 1)))


def list_current_offer_ids() -> Sequence[int]:
    """Return the ids of the offers within their validity period that are not paused.

    They are sorted by end, earliest first, and include offers that are used up.
    """
    return db.session.scalars(
        select(Offer.id)
        .where(Offer.starts_at <= func.now(), _not_ended(), Offer.paused_at.is_(None))
        .order_by(Offer.ends_at.asc().nulls_last(), Offer.id)
    ).all()


def _search_condition(search: str) -> ColumnElement[bool]:
    search = search.replace("\0", "").strip()
    if not search:
        return true()
    pattern = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    name_matches = Offer.name.ilike(pattern)
    try:
        code_matches = OfferCode.code.startswith(normalise_code(search))
    except InvalidInput:
        return name_matches
    # Closed codes are searched too: staff want to find out which offer a code belonged to.
    return or_(name_matches, Offer.id.in_(select(OfferCode.offer_id).where(code_matches)))


def _not_ended() -> ColumnElement[bool]:
    return or_(Offer.ends_at.is_(None), Offer.ends_at > func.now())


def _state_condition(state: OfferState | None) -> ColumnElement[Any]:
    """Return the SQL equivalent of `Offer.state`, for `SELECT_OFFERS`."""
    not_ended_or_paused = and_(_not_ended(), Offer.paused_at.is_(None))
    is_used_up = and_(OfferCounter.max_redemptions.is_not(None), OfferCounter.redeemed >= OfferCounter.max_redemptions)
    states: dict[OfferState | None, ColumnElement[Any]] = {
        None: true(),
        "ended": ~_not_ended(),
        "paused": and_(_not_ended(), Offer.paused_at.is_not(None)),
        "used_up": and_(not_ended_or_paused, is_used_up),
        "scheduled": and_(not_ended_or_paused, IS_BELOW_CAP, Offer.starts_at > func.now()),
        "live": and_(not_ended_or_paused, IS_BELOW_CAP, Offer.starts_at <= func.now()),
    }
    return states[state]
