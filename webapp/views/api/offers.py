"""API views for offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Response, jsonify, request, url_for
from flask_babel import gettext as _
from flask_openapi import APIBlueprint

from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.core import database_clock, pagination
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues, normalise_code
from webapp.redemptions import count_queries
from webapp.views.api.blueprint import document_header, get_actor, require_scope
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

# A version that no offer has.
NO_VERSION = -1


@blueprint.post("/offers", responses={201: OfferOut})
@require_scope("manage")
def create(body: NewOffer) -> Response:
    """Create an offer and the draft of its announcement.

    Nothing is sent before the launch.
    """
    values = OfferValues(
        name=body.name,
        discount=body.discount.to_discount(),
        starts_at=body.starts_at or database_clock.get_database_time(),
        code=body.code,
        ends_at=body.ends_at,
        time_zone=body.time_zone,
        audience_id=_find_audience_id(body.audience),
        personal_code_required=body.personal_code_required,
        max_redemptions=body.max_redemptions,
    )
    content = None if body.mail is None else EmailContent(**body.mail.model_dump(exclude_none=True))
    offer = draft_actions.create_offer_with_announcement(values, content, by=get_actor())
    response = _offer_response(offer)
    response.status_code = 201
    response.headers["Location"] = url_for("api.offers.read", code=offer.code)
    return response


@blueprint.get("/offers", responses={200: OfferPage})
@require_scope("read")
def page(query: OfferListQuery) -> Response:
    """List offers, newest first."""
    position = pagination.decode_cursor(query.cursor, 1)
    before_id = position[0] if position else None
    rows = offer_queries.list_offers(query.q, query.state, before_id=before_id, limit=query.limit)
    offers = rows[: query.limit]
    next_cursor = pagination.encode_cursor(offers[-1].id) if len(rows) > query.limit else None
    return pagination.build_page_response("offers", _offers_json(offers), next_cursor)


@blueprint.get("/offers/<code>", responses={200: OfferOut})
@require_scope("read")
def read(path: OfferPath) -> Response:
    """Get an offer."""
    return _offer_response(_get_offer_or_404(path.code))


@blueprint.patch("/offers/<code>", responses={200: OfferOut, 412: None})
@require_scope("manage")
@document_header("If-Match", "The `ETag` of the offer when you read it.")  # no translation
def change(path: OfferPath, body: OfferChange) -> Response:
    """Update an offer.

    With `If-Match`, the offer is changed only if its `ETag` still matches; otherwise the response is 412. After the
    first launch or redemption, the discount and the code can't be changed, and `max_redemptions` can be changed but
    neither added nor removed. Use `POST /offers/{code}/codes` to replace the code then.
    """
    offer = _get_offer_or_404(path.code)
    changes: dict[str, Any] = {
        name: getattr(body, name) for name in body.model_fields_set - {"paused", "audience", "discount"}
    }
    if "discount" in body.model_fields_set:
        changes["discount"] = body.discount.to_discount()
    if "audience" in body.model_fields_set:
        changes["audience_id"] = _find_audience_id(body.audience)
    with _raise_conflicts_as_412():
        return _offer_response(
            offer_actions.update_offer(offer.id, changes, _expected_version(offer), get_actor(), paused=body.paused)
        )


@blueprint.post("/offers/<code>/codes", responses={200: OfferOut, 412: None})
@require_scope("manage")
@document_header("If-Match", "The `ETag` of the offer when you read it.")  # no translation
def renew_code(path: OfferPath, body: NewCode) -> Response:
    """Replace the code of an offer.

    The previous one stays valid as an alias until it is closed; before the first launch or redemption it is freed.
    With `If-Match`, the offer is changed only if its `ETag` still matches; otherwise the response is 412. Assigning the
    current code changes nothing. An alias of the offer can become its code again; a code that another offer has or had
    is rejected.
    """
    offer = _get_offer_or_404(path.code)
    with _raise_conflicts_as_412():
        return _offer_response(code_actions.renew_code(offer.id, body.code, get_actor(), _expected_version(offer)))


@blueprint.post("/offers/<code>/codes/<alias>/close", responses={200: OfferOut, 404: None, 409: None})
@require_scope("manage")
def close_code(path: CodePath) -> Response:
    """Close an alias: it is no longer accepted. Idempotent.

    It never becomes available to another offer.
    """
    return _offer_response(code_actions.close_code(_get_offer_or_404(path.code).id, path.alias, get_actor()))


@blueprint.post("/offers/<code>/codes/<alias>/reopen", responses={200: OfferOut, 404: None})
@require_scope("manage")
def reopen_code(path: CodePath) -> Response:
    """Reopen a closed code as an alias. Idempotent."""
    return _offer_response(code_actions.reopen_code(_get_offer_or_404(path.code).id, path.alias, get_actor()))


@contextmanager
def _raise_conflicts_as_412() -> Iterator[None]:
    """Turn a version conflict into 412, as `If-Match` requires, with a message for programs."""
    try:
        yield
    except DomainError as error:
        if error.key == "conflict":
            error.status = 412
            error.message = _(
                "This offer was changed since the version in `If-Match`. Fetch it again, then repeat the request with "
                "the new `ETag` if your changes should replace the current values."
            )
        raise


def _expected_version(offer: Offer) -> int | None:
    """Return the version that the change is based on; None without an `If-Match`.

    If the header does not match, this is `NO_VERSION`.
    """
    if_match = request.if_match
    if not if_match or if_match.star_tag:
        return None
    # A compressing proxy makes the ETag weak; it still identifies the same version.
    return offer.version if if_match.contains_weak(str(offer.version)) else NO_VERSION


def _get_offer_or_404(code: str) -> Offer:
    try:
        offer = offer_queries.find_offer_by_code(normalise_code(code))
    except InvalidInput:
        offer = None
    if offer is None:
        raise NotFound(_("No offer has this code."))
    return offer


def _find_audience_id(name: str | None) -> int | None:
    if name is None:
        return None
    audience = customer_queries.find_audience_by_name(name)
    if audience is None:
        message = _("No audience has this name. Create it with an import of customers first.")
        raise InvalidInput(FieldError("audience", "audience_unknown", message))
    return audience.id


def _offer_response(offer: Offer) -> Response:
    response = jsonify(_offers_json([offer])[0])
    response.set_etag(str(offer.version))
    return response


def _offers_json(offers: list[Offer]) -> list[dict[str, object]]:
    now = database_clock.get_database_time()
    redeemed = count_queries.count_redemptions([offer.id for offer in offers])
    codes = offer_queries.list_codes_by_offer([offer.id for offer in offers])
    audience_names = {audience.id: audience.name for audience in customer_queries.list_audiences()}
    return [
        offer_json(
            offer,
            now,
            audience_names.get(offer.audience_id) if offer.audience_id else None,
            redeemed[offer.id],
            codes[offer.id],
        )
        for offer in offers
    ]
