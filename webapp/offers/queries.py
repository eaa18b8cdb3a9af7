"""Every SELECT about offers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, true

from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.offers.models import Offer, OfferCode, OfferState, normalise_code


def find_offer(offer_id: int) -> Offer | None:
    return db.session.get(Offer, offer_id)


def find_offers(offer_ids: Sequence[int]) -> dict[int, Offer]:
    """Those of these offers that there are."""
    return {offer.id: offer for offer in db.session.scalars(select(Offer).where(Offer.id.in_(offer_ids)))}


def find_offer_by_code(code: str) -> Offer | None:
    """The offer of a normalised code: the one it gives out now, or an alias that is not closed."""
    return db.session.scalar(
        select(Offer)
        .join(OfferCode, OfferCode.offer_id == Offer.id)
        .where(OfferCode.code == code, OfferCode.closed_at.is_(None))
    )


def find_offer_code(offer_id: int, code: str) -> OfferCode | None:
    """This code of an offer, if it ever had it."""
    return db.session.scalar(select(OfferCode).where(OfferCode.offer_id == offer_id, OfferCode.code == code))


def find_closed_code(codes: Sequence[str]) -> OfferCode | None:
    """The longest of these codes that an offer had and that is closed."""
    closed = select(OfferCode).where(OfferCode.code.in_(codes), OfferCode.closed_at.is_not(None))
    return db.session.scalar(closed.order_by(func.length(OfferCode.code).desc()).limit(1))


def list_codes_by_offer(offer_ids: Sequence[int]) -> dict[int, list[OfferCode]]:
    """Every code that each of these offers has or had, newest first."""
    found: dict[int, list[OfferCode]] = {offer_id: [] for offer_id in offer_ids}
    statement = select(OfferCode).where(OfferCode.offer_id.in_(offer_ids))
    for row in db.session.scalars(statement.order_by(OfferCode.created_at.desc(), OfferCode.code)):
        found[row.offer_id].append(row)
    return found


def lock_offer(offer_id: int) -> Offer | None:
    """The offer as it stands on disk, locked until the transaction ends."""
    return db.session.scalar(
        select(Offer).where(Offer.id == offer_id).with_for_update().execution_options(populate_existing=True)
    )


def database_now() -> datetime:
    """What time it is for the database, whose clock decides about windows."""
    now: datetime = db.session.execute(select(func.now())).scalar_one()
    return now


def list_offers(
    q: str = "",
    state: OfferState | None = None,
    *,
    before: int | None = None,
    after: int | None = None,
    limit: int = 25,
) -> list[Offer]:
    """Offers, newest first, older than `before` or newer than `after`; one more than `limit` if there are more."""
    statement = select(Offer).where(_search_condition(q), _state_condition(state))
    if after is not None:
        newer = statement.where(Offer.id > after).order_by(Offer.id).limit(limit + 1)
        return list(db.session.scalars(newer))[::-1]
    if before is not None:
        statement = statement.where(Offer.id < before)
    return list(db.session.scalars(statement.order_by(Offer.id.desc()).limit(limit + 1)))


def has_offers() -> bool:
    return db.session.scalar(select(Offer.id).limit(1)) is not None


def list_open_offer_ids() -> Sequence[int]:
    """Offers whose window is open and which are not paused, those that end soonest first."""
    return db.session.scalars(
        select(Offer.id)
        .where(Offer.starts_at <= func.now(), _not_ended(), Offer.paused_at.is_(None))
        .order_by(Offer.ends_at.asc().nulls_last(), Offer.id)
    ).all()


def _search_condition(q: str) -> ColumnElement[bool]:
    words = q.replace("\0", "").strip()
    if not words:
        return true()
    pattern = "%" + words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    found = Offer.name.ilike(pattern)
    try:
        begins = OfferCode.code.startswith(normalise_code(words))
    except InvalidInput:
        return found
    # Also by a code that was closed: whoever comes with one wants to know what it was.
    return or_(found, Offer.id.in_(select(OfferCode.offer_id).where(begins)))


def _not_ended() -> ColumnElement[bool]:
    return or_(Offer.ends_at.is_(None), Offer.ends_at > func.now())


def _state_condition(state: OfferState | None) -> ColumnElement[Any]:
    """The same words as `Offer.state`, for the database."""
    running = and_(_not_ended(), Offer.paused_at.is_(None))
    used_up = and_(Offer.max_redemptions.is_not(None), Offer.redeemed >= Offer.max_redemptions)
    room = or_(Offer.max_redemptions.is_(None), Offer.redeemed < Offer.max_redemptions)
    states: dict[OfferState | None, ColumnElement[Any]] = {
        None: true(),
        "ended": ~_not_ended(),
        "paused": and_(_not_ended(), Offer.paused_at.is_not(None)),
        "used_up": and_(running, used_up),
        "scheduled": and_(running, room, Offer.starts_at > func.now()),
        "live": and_(running, room, Offer.starts_at <= func.now()),
    }
    return states[state]
