"""Evaluate requests to redeem on the facts about them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from webapp.core.errors import DomainError
from webapp.redemptions import caps
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import (
    OfferFacts,
    RedemptionFacts,
    RedemptionRequest,
    RedemptionRow,
    calculate_discount_amount,
    evaluate,
    find_replayed_redemption,
    is_cap_reached,
)


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A request that passes all eligibility checks on its facts and is to be written.

    The facts do not always contain earlier redemptions and the counter: see `evaluate_requests`.
    """

    request: RedemptionRequest
    facts: RedemptionFacts
    offer: OfferFacts
    customer_id: int
    discount_amount: int | None
    index: int


RequestResult = AcceptedRequest | RedemptionRecord | DomainError


def accept_request(index: int, request: RedemptionRequest, facts: RedemptionFacts) -> AcceptedRequest:
    """Accept a request that passes all eligibility checks.

    :param index: the position of the request in its group.
    :raises RedemptionRefused: with the first eligibility check that failed.
    :raises InvalidInput: when the currency of the order is missing or differs from that of the discount.
    """
    evaluation = evaluate(facts)
    if evaluation.reason is not None:
        raise RedemptionRefused(evaluation.reason, evaluation, facts)
    if facts.offer is None or facts.customer_id is None:
        raise RuntimeError("an accepted request has an offer and a customer")
    discount_amount = calculate_discount_amount(request.order, facts.offer.discount)
    return AcceptedRequest(request, facts, facts.offer, facts.customer_id, discount_amount, index)


def evaluate_requests(
    connection: Connection, requests: Mapping[int, RedemptionRequest], secret: bytes
) -> dict[int, RequestResult]:
    """Evaluate each request; return the results by index, in order of arrival.

    Requests that are accepted without regard to earlier redemptions are not looked up: most customers have none, and
    the insert leaves out those who have, and all requests for an offer that is used up (`look_up_and_evaluate`).
    """
    all_facts = dict(
        zip(requests, redemption_facts.load_facts_without_redemptions(list(requests.values()), connection), strict=True)
    )
    used_up_offer_ids = caps.get_used_up_offer_ids()
    results: dict[int, RequestResult] = {}
    for index, facts in all_facts.items():
        if facts.offer is not None and facts.offer.id in used_up_offer_ids:
            continue
        with suppress(DomainError):
            results[index] = accept_request(index, requests[index], facts)
    rest = {index: (request, all_facts[index]) for index, request in requests.items() if index not in results}
    results |= look_up_and_evaluate(connection, rest, secret)
    return dict(sorted(results.items()))


def look_up_and_evaluate(
    connection: Connection, candidates: Mapping[int, tuple[RedemptionRequest, RedemptionFacts]], secret: bytes
) -> dict[int, RequestResult]:
    """Evaluate requests with regard to earlier redemptions and counters, which are looked up now; return the results.

    :param candidates: requests by index, with the facts that `evaluate_requests` loaded.
    """
    requests = [request for request, _ in candidates.values()]
    known_facts = [facts for _, facts in candidates.values()]
    results: dict[int, RequestResult] = {}
    all_facts = redemption_facts.look_up_redemptions(requests, known_facts, connection)
    for index, request, facts in zip(candidates, requests, all_facts, strict=True):
        if facts.offer is not None:
            caps.remember_whether_used_up(facts.offer.id, is_cap_reached(facts.offer))
        try:
            results[index] = _evaluate_request(index, request, facts, secret)
        except DomainError as error:
            results[index] = error
    return results


def _evaluate_request(
    index: int, request: RedemptionRequest, facts: RedemptionFacts, secret: bytes
) -> AcceptedRequest | RedemptionRecord:
    redemption_facts.require_counter(facts)
    replayed = find_replayed_redemption(request, facts)
    if replayed is not None:
        return build_redemption_record(facts, replayed, secret, is_replay=True)
    return accept_request(index, request, facts)


def build_redemption_record(
    facts: RedemptionFacts, row: RedemptionRow, secret: bytes, is_replay: bool = False
) -> RedemptionRecord:
    """Return the redemption of the facts' offer and customer.

    :param secret: the secret of public ids (`public_ids.load_secret`).
    :param is_replay: whether an earlier, identical request made it.
    """
    offer = facts.offer
    if offer is None or facts.customer_id is None:
        raise RuntimeError("a redemption has an offer and a customer")
    return RedemptionRecord(
        offer_id=offer.id,
        customer_id=facts.customer_id,
        code=offer.code,
        offer_name=offer.name,
        discount=offer.discount,
        time_zone=offer.time_zone,
        email=facts.email or "",
        customer_name="",
        customer_locale=facts.locale,
        row=row,
        public_id_secret=secret,
        is_replay=is_replay,
    )
