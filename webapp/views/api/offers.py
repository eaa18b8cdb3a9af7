"""JSON calls of offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from flask import Response, g, jsonify, request, url_for
from flask_openapi import APIBlueprint

from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.core import pagination
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues, normalise_code
from webapp.redemptions import queries as redemption_queries
from webapp.views.api.blueprint import documents_header, require_scope
from webapp.views.api.schemas.offers import (
    CodePath,
    NewCode,
    NewOffer,
    OfferChange,
    OfferListQuery,
    OfferOut,
    OfferPage,
    OfferPath,
    offer_json,
)

blueprint = APIBlueprint("offers", __name__)


@blueprint.post("/offers", responses={201: OfferOut})
@require_scope("manage")
def create(body: NewOffer) -> Response:
    """Set up an offer and the mail that announces it; nothing is sent before it is launched."""
    values = OfferValues(
        name=body.name,
        discount=body.discount.to_discount(),
        starts_at=body.starts_at or offer_queries.database_now(),
        code=body.code,
        ends_at=body.ends_at,
        time_zone=body.time_zone,
        audience_id=_find_audience_id(body.audience),
        personal_code_required=body.personal_code_required,
        max_redemptions=body.max_redemptions,
    )
    mail = None if body.mail is None else EmailContent(**body.mail.model_dump(exclude_none=True))
    offer = draft_actions.create_offer_with_announcement(values, mail, by=_actor())
    answer = _offer_response(offer)
    answer.status_code = 201
    answer.headers["Location"] = url_for("api.offers.read", code=offer.code)
    return answer


@blueprint.get("/offers", responses={200: OfferPage})
@require_scope("read")
def page(query: OfferListQuery) -> Response:
    """List offers, newest first."""
    place = pagination.decode_cursor(query.cursor, 1)
    found = offer_queries.list_offers(query.q, query.state, before=place[0] if place else None, limit=query.limit)
    shown = found[: query.limit]
    following = pagination.encode_cursor(shown[-1].id) if len(found) > query.limit else None
    return pagination.build_page_response("offers", _offers_json(shown), following)


@blueprint.get("/offers/<code>", responses={200: OfferOut})
@require_scope("read")
def read(path: OfferPath) -> Response:
    """Read one offer."""
    return _offer_response(_require_offer(path.code))


@blueprint.patch("/offers/<code>", responses={200: OfferOut, 412: None})
@require_scope("manage")
@documents_header("If-Match", "The `ETag` that the offer had when it was read.")
def change(path: OfferPath, body: OfferChange) -> Response:
    """Change an offer. With `If-Match` only if nobody else has changed it since (412 otherwise).

    From the first launch or redemption the discount, the code, and whether there is a cap stay as they are. Another
    code is then given by `POST /offers/{code}/codes`.
    """
    offer = _require_offer(path.code)
    changes: dict[str, Any] = {
        name: getattr(body, name) for name in body.model_fields_set - {"paused", "audience", "discount"}
    }
    if "discount" in body.model_fields_set:
        changes["discount"] = body.discount.to_discount()
    if "audience" in body.model_fields_set:
        changes["audience_id"] = _find_audience_id(body.audience)
    with _conflict_as_precondition_failed():
        return _offer_response(
            offer_actions.update_offer(offer.id, changes, _expected_version(offer), _actor(), paused=body.paused)
        )


@blueprint.post("/offers/<code>/codes", responses={200: OfferOut, 412: None})
@require_scope("manage")
@documents_header("If-Match", "The `ETag` that the offer had when it was read.")
def renew_code(path: OfferPath, body: NewCode) -> Response:
    """Give an offer another code. The one before stays an alias, which works everywhere until it is closed;
    before the first launch or redemption it is simply replaced.

    With `If-Match` only if nobody else has changed the offer since (412 otherwise). Asking for the code that it has
    changes nothing. An alias can become the code again; a code that any offer ever had is refused.
    """
    offer = _require_offer(path.code)
    with _conflict_as_precondition_failed():
        return _offer_response(code_actions.renew_code(offer.id, body.code, _actor(), _expected_version(offer)))


@blueprint.post("/offers/<code>/codes/<alias>/close", responses={200: OfferOut, 404: None, 409: None})
@require_scope("manage")
def close_code(path: CodePath) -> Response:
    """End an alias: it works nowhere from now on, and no other offer ever gets it. Again changes nothing."""
    return _offer_response(code_actions.close_code(_require_offer(path.code).id, path.alias, _actor()))


@blueprint.post("/offers/<code>/codes/<alias>/reopen", responses={200: OfferOut, 404: None})
@require_scope("manage")
def reopen_code(path: CodePath) -> Response:
    """Let a closed code work again, as an alias. Again changes nothing."""
    return _offer_response(code_actions.reopen_code(_require_offer(path.code).id, path.alias, _actor()))


@contextmanager
def _conflict_as_precondition_failed() -> Iterator[None]:
    """Inside, somebody else's change in between is what `If-Match` calls a failed precondition."""
    try:
        yield
    except DomainError as error:
        if error.key == "conflict":
            error.status = 412
        raise


def _expected_version(offer: Offer) -> int | None:
    """The version the change was made from, if the client says so."""
    wanted = request.if_match
    if not wanted or wanted.star_tag:
        return None
    # Proxies that compress make an ETag weak; it names the same version.
    return offer.version if wanted.contains_weak(str(offer.version)) else -1


def _require_offer(code: str) -> Offer:
    try:
        offer = offer_queries.find_offer_by_code(normalise_code(code))
    except InvalidInput:
        offer = None
    if offer is None:
        raise NotFound("There is no offer with this code.")
    return offer


def _find_audience_id(name: str | None) -> int | None:
    if name is None:
        return None
    audience = customer_queries.find_audience_by_name(name)
    if audience is None:
        raise InvalidInput(
            FieldError("audience", "audience_unknown", "There is no audience of this name; import it first.")
        )
    return audience.id


def _offer_response(offer: Offer) -> Response:
    response = jsonify(_offers_json([offer])[0])
    response.set_etag(str(offer.version))
    return response


def _offers_json(offers: list[Offer]) -> list[dict[str, object]]:
    at: datetime = offer_queries.database_now()
    redeemed = redemption_queries.count_redemptions([offer.id for offer in offers])
    codes = offer_queries.list_codes_by_offer([offer.id for offer in offers])
    names = {audience.id: audience.name for audience in customer_queries.list_audiences()}
    return [
        offer_json(offer, at, names.get(offer.audience_id or 0), redeemed[offer.id], codes[offer.id])
        for offer in offers
    ]


def _actor() -> str:
    return f"key {g.api_key.name}"
