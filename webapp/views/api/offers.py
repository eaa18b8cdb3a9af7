"""JSON calls of offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from flask import Response, g, jsonify, request, url_for
from flask_openapi import APIBlueprint

from webapp.campaigns import actions as campaign_actions
from webapp.campaigns.content.placeholders import MailText
from webapp.core import pagination
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues, normalise_code
from webapp.redemptions import queries as redemption_queries
from webapp.views.api.blueprint import heeds, needs_scope
from webapp.views.api.schemas.offers import (
    CodePath,
    NewCode,
    NewOffer,
    OfferChange,
    OfferList,
    OfferOut,
    OfferPage,
    OfferPath,
    offer_json,
)

room = APIBlueprint("offers", __name__)


@room.post("/offers", responses={201: OfferOut})
@needs_scope("manage")
def create(body: NewOffer) -> Response:
    """Set up an offer and the mail that announces it; nothing is sent before it is launched."""
    values = OfferValues(
        name=body.name,
        discount=body.discount.typed(),
        starts_at=body.starts_at or offer_queries.clock(),
        code=body.code,
        ends_at=body.ends_at,
        time_zone=body.time_zone,
        audience_id=_audience_id(body.audience),
        personal_code_required=body.personal_code_required,
        max_redemptions=body.max_redemptions,
    )
    mail = None if body.mail is None else MailText(**body.mail.model_dump(exclude_none=True))
    offer = campaign_actions.create_offer(values, mail, by=_who())
    answer = _answer(offer)
    answer.status_code = 201
    answer.headers["Location"] = url_for("api.offers.read", code=offer.code)
    return answer


@room.get("/offers", responses={200: OfferPage})
@needs_scope("read")
def page(query: OfferList) -> Response:
    """List offers, newest first."""
    place = pagination.read(query.cursor, 1)
    found = offer_queries.page(query.q, query.state, before=place[0] if place else None, limit=query.limit)
    shown = found[: query.limit]
    following = pagination.write(shown[-1].id) if len(found) > query.limit else None
    return pagination.answer("offers", _json(shown), following)


@room.get("/offers/<code>", responses={200: OfferOut})
@needs_scope("read")
def read(path: OfferPath) -> Response:
    """Read one offer."""
    return _answer(_offer(path.code))


@room.patch("/offers/<code>", responses={200: OfferOut, 412: None})
@needs_scope("manage")
@heeds("If-Match", "The `ETag` that the offer had when it was read.")
def change(path: OfferPath, body: OfferChange) -> Response:
    """Change an offer. With `If-Match` only if nobody else has changed it since (412 otherwise).

    From the first launch or redemption the discount, the code, and whether there is a cap stay as they are. Another
    code is then given by `POST /offers/{code}/codes`.
    """
    offer = _offer(path.code)
    changes: dict[str, Any] = {
        name: getattr(body, name) for name in body.model_fields_set - {"paused", "audience", "discount"}
    }
    if "discount" in body.model_fields_set:
        changes["discount"] = body.discount.typed()
    if "audience" in body.model_fields_set:
        changes["audience_id"] = _audience_id(body.audience)
    with _if_match():
        return _answer(offer_actions.change(offer.id, changes, _version(offer), _who(), paused=body.paused))


@room.post("/offers/<code>/codes", responses={200: OfferOut, 412: None})
@needs_scope("manage")
@heeds("If-Match", "The `ETag` that the offer had when it was read.")
def renew_code(path: OfferPath, body: NewCode) -> Response:
    """Give an offer another code. The one before stays an alias, which works everywhere until it is closed;
    before the first launch or redemption it is simply replaced.

    With `If-Match` only if nobody else has changed the offer since (412 otherwise). Asking for the code that it has
    changes nothing. An alias can become the code again; a code that any offer ever had is refused.
    """
    offer = _offer(path.code)
    with _if_match():
        return _answer(code_actions.renew_code(offer.id, body.code, _who(), _version(offer)))


@room.post("/offers/<code>/codes/<alias>/close", responses={200: OfferOut, 404: None, 409: None})
@needs_scope("manage")
def close_code(path: CodePath) -> Response:
    """End an alias: it works nowhere from now on, and no other offer ever gets it. Again changes nothing."""
    return _answer(code_actions.close_code(_offer(path.code).id, path.alias, _who()))


@room.post("/offers/<code>/codes/<alias>/reopen", responses={200: OfferOut, 404: None})
@needs_scope("manage")
def reopen_code(path: CodePath) -> Response:
    """Let a closed code work again, as an alias. Again changes nothing."""
    return _answer(code_actions.reopen_code(_offer(path.code).id, path.alias, _who()))


@contextmanager
def _if_match() -> Iterator[None]:
    """Inside, somebody else's change in between is what `If-Match` calls a failed precondition."""
    try:
        yield
    except DomainError as error:
        if error.key == "conflict":
            error.status = 412
        raise


def _version(offer: Offer) -> int | None:
    """The version the change was made from, if the client says so."""
    wanted = request.if_match
    if not wanted or wanted.star_tag:
        return None
    # Proxies that compress make an ETag weak; it names the same version.
    return offer.version if wanted.contains_weak(str(offer.version)) else -1


def _offer(code: str) -> Offer:
    try:
        offer = offer_queries.by_code(normalise_code(code))
    except Invalid:
        offer = None
    if offer is None:
        raise NotFound("There is no offer with this code.")
    return offer


def _audience_id(name: str | None) -> int | None:
    if name is None:
        return None
    audience = customer_queries.audience_by_name(name)
    if audience is None:
        raise Invalid(FieldError("audience", "audience_unknown", "There is no audience of this name; import it first."))
    return audience.id


def _answer(offer: Offer) -> Response:
    response = jsonify(_json([offer])[0])
    response.set_etag(str(offer.version))
    return response


def _json(offers: list[Offer]) -> list[dict[str, object]]:
    at: datetime = offer_queries.clock()
    redeemed = redemption_queries.totals([offer.id for offer in offers])
    codes = offer_queries.codes_of([offer.id for offer in offers])
    names = {audience.id: audience.name for audience in customer_queries.audiences()}
    return [
        offer_json(offer, at, names.get(offer.audience_id or 0), redeemed[offer.id], codes[offer.id])
        for offer in offers
    ]


def _who() -> str:
    return f"key {g.api_key.name}"
