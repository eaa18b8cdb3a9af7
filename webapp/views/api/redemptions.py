"""API views for redemptions."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify, request
from flask_babel import gettext as _
from flask_openapi import APIBlueprint

from webapp.core import pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.formatting import format_rfc3339
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers import queries as offer_queries
from webapp.offers.models import normalise_code
from webapp.overview.eligibility import explain_eligibility
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.redemptions.rules import RedemptionFacts, RedemptionRequest, evaluate
from webapp.views.access_notes import note_access
from webapp.views.api.blueprint import document_header, get_actor, has_scope, require_scope
from webapp.views.api.schemas.explanations import ExplanationOut, NewExplanation, explanation_json
from webapp.views.api.schemas.redemptions import (
    CustomerEmailPath,
    CustomerReference,
    NewRedemption,
    NewRollback,
    NewValidation,
    RedemptionListQuery,
    RedemptionOut,
    RedemptionPage,
    RedemptionPath,
    UsableOffersOut,
    UsableOffersQuery,
    ValidationOut,
    hash_idempotency_key,
    redemption_json,
)
from webapp.views.api.schemas.types import discount_json

blueprint = APIBlueprint("redemptions", __name__)


@blueprint.post("/validations", responses={200: ValidationOut})
@require_scope("redeem")
def validate(body: NewValidation) -> Response:
    """Check whether a redemption would succeed, and the discount that it would give.

    Nothing is stored.
    """
    try:
        offer, amount = redemption_actions.validate_redemption(_build_redemption_request(body))
    except RedemptionRefused as refusal:
        return jsonify({"valid": False, "reason": refusal.key, "detail": refusal.message})
    return jsonify(
        {
            "valid": True,
            "discount": discount_json(offer.discount),
            "discount_amount": amount,
            "code": offer.code,
            "offer": offer.name,
        }
    )


@blueprint.post("/explanations", responses={200: ExplanationOut})
@require_scope("manage")
def explain_refusal(body: NewExplanation) -> Response:
    """Explain the eligibility of a customer for a code, check by check.

    Each check has a sentence about the data that decided it. Nothing is stored.
    """
    redemption_request = RedemptionRequest(
        # The channel does not affect eligibility.
        channel="staff",
        code=normalise_code(body.code),
        email=_normalise_customer_email(body.customer),
        source_id=body.customer.source_id,
    )
    explanation = explain_eligibility(redemption_request)
    if explanation.facts.customer_id is not None:
        note_access("customer.viewed")
    return jsonify(explanation_json(explanation))


@blueprint.post("/redemptions", responses={201: RedemptionOut, 200: RedemptionOut, 404: None})
@require_scope("redeem")
@document_header(
    "Idempotency-Key",
    "Send the same key when you repeat the same request.",  # no translation
    minLength=1,
    maxLength=255,
    pattern="^[ -~]+$",
)
def redeem(body: NewRedemption) -> Response:
    """Redeem an offer for a customer. The response is sent after the commit.

    A repeated request, with the same `Idempotency-Key` header or the same order id, returns 200 with the first result.
    The same key with another body for the same offer and customer is rejected with 422. After a rollback the same key
    returns the first result with `rolled_back_at`; a new key or order redeems the offer again.
    """
    record = group_commit.redeem(_build_redemption_request(body))
    redemption = _redemption_json(record)
    response = jsonify(redemption)
    if not record.is_replay:
        response.status_code = 201
        response.headers["Location"] = f"{request.path}/{redemption['id']}"
    return response


@blueprint.get("/redemptions", responses={200: RedemptionPage})
@require_scope("read")
def page(query: RedemptionListQuery) -> Response:
    """List redemptions, newest first, without rolled-back ones.

    With a `channel`, a page may contain fewer than `limit` redemptions, or none, and still have a `next_cursor`,
    because one call scans only part of the list. The list ends when `next_cursor` is null.
    """
    redemption_filter = _build_filter(query)
    position = pagination.decode_cursor(query.cursor, 3)
    after = KeysetCursor.from_integers(*position) if position else None
    scan = (
        redemption_queries.scan_redemptions(redemption_filter, query.limit, after)
        if redemption_filter
        else redemption_queries.ScanPage([], None)
    )
    next_cursor = pagination.encode_cursor(*scan.next_cursor.to_integers()) if scan.next_cursor else None
    note_access("redemptions.listed")
    return pagination.build_page_response(
        "redemptions", [_redemption_json(record) for record in scan.redemptions], next_cursor
    )


@blueprint.get("/redemptions/<id>", responses={200: RedemptionOut})
@require_scope("read")
def read(path: RedemptionPath) -> Response:
    """Get a redemption, whether it was rolled back or not."""
    record = redemption_queries.find_redemption(path.id)
    if record is None:
        raise NotFound(_("This redemption does not exist."))
    note_access("redemption.viewed")
    return jsonify(_redemption_json(record))


@blueprint.post("/redemptions/<id>/rollback", responses={200: RedemptionOut})
@require_scope("redeem")
def rollback(path: RedemptionPath, body: NewRollback) -> Response:
    """Roll back a redemption.

    A second call fails with `already_rolled_back`. The customer can redeem the offer again, and the redemption no
    longer counts towards the redemption limit.
    """
    record = redemption_rollback.roll_back_redemption(path.id, body.reason, by=get_actor())
    return jsonify(_redemption_json(record))


@blueprint.get("/customers/<email:email>/offers", responses={200: UsableOffersOut})
@require_scope("read")
def usable(path: CustomerEmailPath, query: UsableOffersQuery) -> Response:
    """List the offers that a customer can redeem now.

    They are sorted by end, earliest first. With `used=true`, offers that were already redeemed are included.
    """
    customer = customer_queries.find_customer_by_email(normalise_email(path.email))
    if customer is None:
        raise DomainError("customer_unknown", _("This customer does not exist. Import them first."), 404)
    note_access("customer.viewed")
    return jsonify(
        {
            "offers": [
                _usable_offer_json(facts)
                for facts in redemption_facts.load_current_offer_facts(customer.id)
                if _is_listed(facts, query.used)
            ]
        }
    )


def _is_listed(facts: RedemptionFacts, include_redeemed: bool) -> bool:
    return evaluate(facts).reason is None or (include_redeemed and facts.redemption is not None)


def _usable_offer_json(facts: RedemptionFacts) -> dict[str, Any]:
    offer = facts.offer
    if offer is None or facts.customer_id is None:
        raise ValueError("facts of no offer or customer")  # no translation
    values: dict[str, Any] = {
        "code": offer.code,
        "personal_code": personal_codes.derive_personal_code(offer.code, offer.id, facts.customer_id),
        "name": offer.name,
        "discount": discount_json(offer.discount),
        "ends_at": format_rfc3339(offer.ends_at),
    }
    if facts.redemption is not None:
        values["redeemed_at"] = format_rfc3339(facts.redemption.redeemed_at)
    return values


def _redemption_json(record: RedemptionRecord) -> dict[str, Any]:
    # Email addresses of users are not for every program that reads redemptions.
    return redemption_json(record, names_user=has_scope("manage"))


def _build_redemption_request(body: NewValidation) -> RedemptionRequest:
    metadata = idempotency_key = body_hash = None
    if isinstance(body, NewRedemption):
        metadata, idempotency_key = body.metadata, hash_idempotency_key(request.headers.get("Idempotency-Key"))
        # Bodies are compared only for requests with the same key.
        body_hash = body.compute_body_hash() if idempotency_key else None
    return RedemptionRequest(
        channel="api",
        code=normalise_code(body.code),
        email=_normalise_customer_email(body.customer),
        source_id=body.customer.source_id,
        order=body.order.to_order() if body.order else None,
        metadata=metadata,
        api_key_id=g.api_key.id,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
    )


def _normalise_customer_email(customer: CustomerReference) -> str | None:
    if customer.email is None:
        return None
    try:
        return normalise_email(customer.email)
    except InvalidInput as error:
        raise InvalidInput(FieldError("customer.email", error.errors[0].key, error.errors[0].message)) from error


def _build_filter(query: RedemptionListQuery) -> RedemptionFilter | None:
    """Return the filter of the list; None if the code or the customer does not exist."""
    offer_id = customer_id = None
    if query.offer is not None:
        offer = offer_queries.find_offer_by_code(normalise_code(query.offer))
        if offer is None:
            return None
        offer_id = offer.id
    if query.email is not None or query.source_id is not None:
        customer = _find_customer(query)
        if customer is None:
            return None
        customer_id = customer.id
    return RedemptionFilter(offer_id, customer_id, query.channel, query.since, query.until)


def _find_customer(query: RedemptionListQuery) -> Customer | None:
    if query.email is not None:
        return customer_queries.find_customer_by_email(normalise_email(query.email))
    return customer_queries.find_customer_by_source_id((query.source_id or "").replace("\0", ""))
