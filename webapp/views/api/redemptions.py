"""JSON calls of redemptions."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify, request
from flask_openapi import APIBlueprint

from webapp.core import pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.core.formatting import time
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers import queries as offer_queries
from webapp.offers.models import normalise_code
from webapp.overview.why_not import explain
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import Refused
from webapp.redemptions.queries import Filter, Place
from webapp.redemptions.rules import Ask, Facts, verdict
from webapp.views.api.blueprint import heeds, needs_scope
from webapp.views.api.schemas.redemptions import (
    CustomerEmail,
    CustomerOffers,
    ExplanationOut,
    NewExplanation,
    NewRedemption,
    NewRollback,
    NewValidation,
    RedemptionId,
    RedemptionList,
    RedemptionOut,
    RedemptionPage,
    UsablePage,
    ValidationOut,
    WhichCustomer,
    explanation_json,
    idempotency_key,
    redemption_json,
)
from webapp.views.api.schemas.types import discount_json

room = APIBlueprint("redemptions", __name__)


@room.post("/validations", responses={200: ValidationOut})
@needs_scope("redeem")
def validate(body: NewValidation) -> Response:
    """Would it redeem, and what would it give? Writes nothing."""
    try:
        offer, amount = redemption_actions.validate(_ask(body))
    except Refused as refused:
        return jsonify({"valid": False, "reason": refused.key, "detail": refused.message})
    return jsonify(
        {
            "valid": True,
            "discount": discount_json(offer.discount),
            "discount_amount": amount,
            "code": offer.code,
            "offer": offer.name,
        }
    )


@room.post("/explanations", responses={200: ExplanationOut})
@needs_scope("manage")
def explain_refusal(body: NewExplanation) -> Response:
    """Why not? Every check of the rule for a customer and a code, with the fact behind it. Writes nothing."""
    asked = Ask(
        channel="staff",
        code=normalise_code(body.code),
        email=_email(body.customer),
        source_id=body.customer.source_id,
    )
    return jsonify(explanation_json(explain(asked)))


@room.post("/redemptions", responses={201: RedemptionOut, 200: RedemptionOut, 404: None})
@needs_scope("redeem")
@heeds("Idempotency-Key", "The same request again has the same key.", minLength=1, maxLength=255, pattern="^[ -~]+$")
def redeem(body: NewRedemption) -> Response:
    """Redeem an offer for a customer. What it answers is on disk.

    A repeat by the same `Idempotency-Key` header or the same order id answers 200 with the first result. The same key
    with another body for the same offer and customer is refused with 422. After a rollback the same key answers the
    first result with `rolled_back_at`; a new key or order redeems anew.
    """
    done = group_commit.redeem(_ask(body))
    found = redemption_json(done)
    response = jsonify(found)
    if not done.repeated:
        response.status_code = 201
        response.headers["Location"] = f"{request.path}/{found['id']}"
    return response


@room.get("/redemptions", responses={200: RedemptionPage})
@needs_scope("read")
def page(query: RedemptionList) -> Response:
    """List live redemptions, newest first.

    With a `channel` a page may have fewer than `limit`, or none, and still a `next_cursor`: so far the look went in one
    call. The list has ended when `next_cursor` is null.
    """
    narrowed = _filter(query)
    place = pagination.read(query.cursor, 3)
    after = Place.of(*place) if place else None
    found = (
        redemption_queries.stretch(narrowed, query.limit, after) if narrowed else redemption_queries.Stretch([], None)
    )
    following = pagination.write(*found.following.numbers()) if found.following else None
    return pagination.answer("redemptions", [redemption_json(done) for done in found.shown], following)


@room.get("/redemptions/<id>", responses={200: RedemptionOut})
@needs_scope("read")
def read(path: RedemptionId) -> Response:
    """Read one redemption, also after it was undone."""
    done = redemption_queries.find(path.id)
    if done is None:
        raise NotFound("There is no such redemption.")
    return jsonify(redemption_json(done))


@room.post("/redemptions/<id>/rollback", responses={200: RedemptionOut})
@needs_scope("redeem")
def rollback(path: RedemptionId, body: NewRollback) -> Response:
    """Undo a redemption, once: the customer may redeem again and the cap gets its unit back."""
    return jsonify(redemption_json(redemption_rollback.rollback(path.id, body.reason, by=f"key {g.api_key.name}")))


@room.get("/customers/<email:email>/offers", responses={200: UsablePage})
@needs_scope("read")
def usable(path: CustomerEmail, query: CustomerOffers) -> Response:
    """What this customer can use now, those that end soonest first; with `used=true` also what was used already."""
    customer = customer_queries.by_email(normalise_email(path.email))
    if customer is None:
        raise DomainError("customer_unknown", "This customer is not known here; import them first.", 404)
    return jsonify(
        {"offers": [_usable(facts) for facts in redemption_facts.usable(customer.id) if _wanted(facts, query.used)]}
    )


def _wanted(facts: Facts, used: bool) -> bool:
    return verdict(facts).reason is None or (used and facts.use is not None)


def _usable(facts: Facts) -> dict[str, Any]:
    offer = facts.offer
    if offer is None or facts.customer_id is None:
        raise NotFound()
    found = {
        "code": offer.code,
        "personal_code": personal_codes.code(offer.code, offer.id, facts.customer_id),
        "name": offer.name,
        "discount": discount_json(offer.discount),
        "ends_at": time(offer.ends_at),
    }
    return found | ({"redeemed_at": time(facts.use.redeemed_at)} if facts.use else {})


def _ask(body: NewValidation) -> Ask:
    metadata = key = digest = None
    if isinstance(body, NewRedemption):
        metadata, key = body.metadata, idempotency_key(request.headers.get("Idempotency-Key"))
        # Only who sends a key asks whether the body is the same.
        digest = body.digest() if key else None
    return Ask(
        channel="api",
        code=normalise_code(body.code),
        email=_email(body.customer),
        source_id=body.customer.source_id,
        order=body.order.typed() if body.order else None,
        metadata=metadata,
        api_key_id=g.api_key.id,
        idempotency_key=key,
        body_hash=digest,
    )


def _email(customer: WhichCustomer) -> str | None:
    if customer.email is None:
        return None
    try:
        return normalise_email(customer.email)
    except Invalid as error:
        raise Invalid(FieldError("customer.email", error.errors[0].key, error.errors[0].message)) from error


def _filter(query: RedemptionList) -> Filter | None:
    """What to narrow the list to; None when that can't have any."""
    offer_id = customer_id = None
    if query.offer is not None:
        offer = offer_queries.by_code(normalise_code(query.offer))
        if offer is None:
            return None
        offer_id = offer.id
    if query.email is not None or query.source_id is not None:
        customer = _customer(query)
        if customer is None:
            return None
        customer_id = customer.id
    return Filter(offer_id, customer_id, query.channel, query.since, query.until)


def _customer(query: RedemptionList) -> Customer | None:
    if query.email is not None:
        return customer_queries.by_email(normalise_email(query.email))
    return customer_queries.by_source_id((query.source_id or "").replace("\0", ""))
