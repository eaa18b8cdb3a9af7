"""Evaluate requests to redeem and write redemptions, many in one transaction."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from flask_babel import gettext as _
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from webapp.core import database_engines
from webapp.core.database_connections import CommitRefused
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import public_ids
from webapp.redemptions.caps import reserve_cap
from webapp.redemptions.errors import (
    OFFER_BUSY,
    OUTCOME_UNKNOWN,
    InvalidOfferCounter,
    RedemptionRefused,
    RedemptionUnavailable,
    build_unavailable,
)
from webapp.redemptions.evaluation import (
    AcceptedRequest,
    accept_request,
    build_redemption_record,
    evaluate_requests,
    look_up_and_evaluate,
)
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import (
    OfferFacts,
    RedemptionRequest,
    RedemptionRow,
    evaluate,
)
from webapp.redemptions.staff_entries import record_staff_entries

log = logging.getLogger(__name__)
# The number of rounds, each with one transaction, that a group of requests gets. Requests without a result after the
# last one are refused. Three are enough without concurrent changes: one freezes the offers, the next redeems, the third
# evaluates the other requests of the same customer for the same offer. Each offer that fails takes one more, as does a
# concurrent change, such as a rollback. So many changes in a row are no coincidence: the limit only prevents an endless
# loop.
MAX_ROUNDS = 10


class _OfferFailed(Exception):
    """The requests for one offer failed. Nothing was saved.

    :param indexes: the indexes of the requests for that offer.
    :param error: their result.
    """

    def __init__(self, indexes: Iterable[int], error: DomainError) -> None:
        super().__init__()
        self.indexes = list(indexes)
        self.error = error


def validate_redemption(request: RedemptionRequest) -> tuple[OfferFacts, int | None]:
    """Return the offer and the discount that a redemption would have now.

    Does not write.

    :returns: the offer, and the discount in minor units of the order's currency; None if the amount is not known.
    :raises RedemptionRefused: with the first eligibility check that failed.
    :raises InvalidInput: when the currency of the order is missing or differs from that of the discount.
    """
    accepted = accept_request(0, request, redemption_facts.load_facts([request])[0])
    return accepted.offer, accepted.discount_amount


def redeem_all(
    requests: Sequence[RedemptionRequest], connection: Connection | None = None
) -> list[RedemptionRecord | DomainError]:
    """Redeem any offers for any customers in one transaction.

    One statement loads the facts of all requests, and the eligibility checks are made on them. Then, offer by offer in
    the order of their ids, all rows are inserted sorted by customer, and their number is counted towards the cap last.
    This lock order rules out deadlocks between concurrent calls. Earlier redemptions are looked up only for requests
    that are refused without them, or that get no row because of them, in the same transaction. After the commit, no
    result needs another connection.

    :param connection: the connection to use; by default a new one.
    :returns: one result per request, in order. Every result "redeemed", "already redeemed" or "limit reached" describes
        committed data.
    :raises DBAPIError: when the database reports an error or is unavailable; nothing is saved then.
    :raises RedemptionUnavailable: when the database is unavailable during the commit, or commits are refused.
    """
    if connection is None:
        with db.engine.connect() as connection:
            return redeem_all(requests, connection)
    secret = public_ids.load_secret(connection)
    results: dict[int, RedemptionRecord | DomainError] = {}
    pending_error = DomainError(
        "conflict", _("There are too many concurrent requests for this redemption. Please try again."), 409
    )
    for _round in range(MAX_ROUNDS):
        pending = [index for index in range(len(requests)) if index not in results]
        if not pending:
            break
        try:
            results |= _redeem_in_transaction(connection, {index: requests[index] for index in pending}, secret)
        except _OfferFailed as failure:
            results |= dict.fromkeys(failure.indexes, failure.error)
        except (DBAPIError, RedemptionUnavailable) as error:
            # The results that an earlier round has committed remain valid if a later round fails.
            if not results:
                raise
            pending_error = error if isinstance(error, RedemptionUnavailable) else build_unavailable(error)
            break
    return [results.get(index, pending_error) for index in range(len(requests))]


def _redeem_in_transaction(
    connection: Connection, requests: dict[int, RedemptionRequest], secret: bytes
) -> dict[int, RedemptionRecord | DomainError]:
    """Run one round in one transaction.

    Requests that are accepted but get no row get no result and are evaluated again in the next round; so are all
    requests while an offer is not frozen yet.

    :param secret: the secret of public ids.
    :raises RedemptionUnavailable: when the commit fails, or commits are refused: then nothing waits for the locks of
        transactions that cannot complete.
    """
    try:
        database_engines.check_commits(connection)
    except CommitRefused as error:
        raise build_unavailable(error) from error
    transaction = connection.begin()
    with transaction:
        results, accepted_by_offer, unfrozen_indexes = _group_requests(connection, requests, secret)
        if not unfrozen_indexes:
            for offer_id in sorted(accepted_by_offer):
                accepted = accepted_by_offer[offer_id]
                with _isolate_failure(request.index for request in accepted):
                    results |= _redeem_for_offer(connection, accepted, secret)
        try:
            transaction.commit()
        except DBAPIError as error:
            transaction.rollback()  # Otherwise SQLAlchemy would reject the next one of this connection.
            raise build_unavailable(error, OUTCOME_UNKNOWN) from error
    if unfrozen_indexes:
        _freeze_offers(connection, unfrozen_indexes)
    return results


def _group_requests(
    connection: Connection, requests: dict[int, RedemptionRequest], secret: bytes
) -> tuple[dict[int, RedemptionRecord | DomainError], dict[int, list[AcceptedRequest]], dict[int, list[int]]]:
    """Evaluate requests and group them by the writes that they need.

    :returns: the results that need no write; the accepted requests by offer; and the indexes of requests
        whose offer is not frozen, by offer.
    """
    results: dict[int, RedemptionRecord | DomainError] = {}
    accepted_by_offer: dict[int, list[AcceptedRequest]] = {}
    unfrozen_indexes: dict[int, list[int]] = {}
    for index, evaluation in evaluate_requests(connection, requests, secret).items():
        if not isinstance(evaluation, AcceptedRequest):
            results[index] = evaluation
        elif not evaluation.offer.is_frozen:
            unfrozen_indexes.setdefault(evaluation.offer.id, []).append(index)
        else:
            accepted_by_offer.setdefault(evaluation.offer.id, []).append(evaluation)
    return results, accepted_by_offer, unfrozen_indexes


def _freeze_offers(connection: Connection, indexes_by_offer: Mapping[int, Iterable[int]]) -> None:
    """Freeze offers before their first redemption, each in its own transaction.

    The facts are loaded again afterwards, so that no offer can get a cap or another discount between the evaluation and
    the write.

    :param indexes_by_offer: the ids of the offers with the indexes of the requests that wait for each.
    """
    for offer_id in sorted(indexes_by_offer):
        with connection.begin(), _isolate_failure(indexes_by_offer[offer_id]):
            offer_actions.freeze_offer(offer_id, connection)


@contextmanager
def _isolate_failure(indexes: Iterable[int], busy_message: str = OFFER_BUSY) -> Iterator[None]:
    """Turn a lock timeout of the block, or an invalid counter, into `_OfferFailed`.

    :param busy_message: the message after a lock timeout.
    """
    try:
        yield
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise _OfferFailed(indexes, RedemptionUnavailable(busy_message)) from error
    except InvalidOfferCounter as error:
        raise _OfferFailed(indexes, error) from error


# A customer who has redeemed gets no row, without a wait for a rollback that has not been committed yet: after it, a
# repeat would redeem again. There are no rows either while the offer is used up, has no counter, or has one with a cap
# although the offer has none, or vice versa. The lookups are scalar subqueries, so that the planner uses the indexes
# regardless of its row estimates.
_INSERT_REDEMPTIONS = f"""
    insert into redemption (customer_id, offer_id, redeemed_at, channel, api_key_id, staff_user_id, order_id,
      order_amount, order_currency, discount_amount, order_metadata, idempotency_key, body_hash)
    select customer_id, %(offer_id)s, %(redeemed_at)s, channel, api_key_id, staff_user_id, order_id,
      order_amount, order_currency, discount_amount, order_metadata, idempotency_key, decode(body_hash, 'hex')
    from json_to_recordset(cast(%(rows)s as json)) as t(
      customer_id bigint, channel text, api_key_id int, staff_user_id bigint, order_id text, order_amount bigint,
      order_currency text, discount_amount bigint, order_metadata jsonb, idempotency_key text, body_hash text
    )
    where (
      select true from redemption r where r.offer_id = %(offer_id)s and r.customer_id = t.customer_id limit 1
    ) is null and (
      select true from rollback b
      where b.offer_id = %(offer_id)s and {redemption_facts.SAME_REQUEST_AS_ROLLBACK} limit 1
    ) is null and (
      select coalesce(redeemed < max_redemptions, true) and (max_redemptions is not null) = %(is_capped)s
      from offer_counter where offer_id = %(offer_id)s
    )
    on conflict do nothing
    returning customer_id
    """  # noqa: S608
_DELETE_REDEMPTIONS = text("delete from redemption where offer_id = :offer_id and customer_id = any(:customer_ids)")


def _redeem_for_offer(
    connection: Connection, accepted: list[AcceptedRequest], secret: bytes
) -> dict[int, RedemptionRecord | DomainError]:
    """Insert all rows of one offer, then count them towards its cap.

    All rows have the time at which the requests were evaluated. The rows that exceed the cap are deleted. A request
    gets no row if there was one already or it was rolled back, or if the offer was used up before. It is looked up
    at once, by a statement that sees what has been committed until now, also by a transaction for which the insert
    waited. A request gets no result if it is accepted nevertheless, or if another one of the same customer redeemed.
    """
    offer, redeemed_at = accepted[0].offer, accepted[0].facts.evaluated_at
    first_of_customer = {request.customer_id: request for request in reversed(accepted)}
    # Sorted to avoid deadlocks. The cap is assigned in order of arrival.
    rows = json.dumps([_insert_values(first_of_customer[customer_id]) for customer_id in sorted(first_of_customer)])
    values = {
        "offer_id": offer.id,
        "redeemed_at": redeemed_at,
        "rows": rows,
        "is_capped": offer.max_redemptions is not None,
    }
    # It waits for a row of the same customer that is not committed, perhaps because a standby is missing.
    with _isolate_failure([request.index for request in accepted], OUTCOME_UNKNOWN):
        customer_ids = set(connection.exec_driver_sql(_INSERT_REDEMPTIONS, values).scalars())
    results = _look_up(connection, [item for item in accepted if item.customer_id not in customer_ids], secret)
    inserted = [
        item for item in accepted if item.customer_id in customer_ids and item is first_of_customer[item.customer_id]
    ]
    reserved = len(inserted)
    if offer.max_redemptions is not None and inserted:
        # After the lookup: the lock of the counter is held as shortly as possible.
        reserved = reserve_cap(connection, offer.id, len(inserted))
    results |= {
        request.index: build_redemption_record(request.facts, _redemption_row(request, redeemed_at), secret)
        for request in inserted[:reserved]
    }
    surplus = inserted[reserved:]
    if surplus:
        connection.execute(
            _DELETE_REDEMPTIONS, {"offer_id": offer.id, "customer_ids": [request.customer_id for request in surplus]}
        )
        results |= {request.index: _build_used_up_refusal(request) for request in surplus}
    entries = [(item.request.staff, item.customer_id) for item in inserted[:reserved] if item.request.staff]
    record_staff_entries(connection, offer.code, entries)
    return results


def _look_up(
    connection: Connection, accepted: list[AcceptedRequest], secret: bytes
) -> dict[int, RedemptionRecord | DomainError]:
    """Return the results of requests that are repeats or are refused because of earlier redemptions."""
    candidates = {item.index: (item.request, item.facts) for item in accepted}
    results = look_up_and_evaluate(connection, candidates, secret)
    return {index: result for index, result in results.items() if not isinstance(result, AcceptedRequest)}


def _insert_values(accepted: AcceptedRequest) -> dict[str, Any]:
    """Return the columns of the row that have a value; the others become null."""
    request, order = accepted.request, accepted.request.order
    values: dict[str, Any] = {
        "customer_id": accepted.customer_id,
        "channel": request.channel,
        "api_key_id": request.api_key_id,
    }
    if order is not None:
        values |= {"order_id": order.id, "order_amount": order.amount, "order_currency": order.currency}
        values["discount_amount"] = accepted.discount_amount
    if request.staff is not None:
        values["staff_user_id"] = request.staff.user_id
    if request.metadata is not None:
        values["order_metadata"] = request.metadata
    if request.idempotency_key is not None:
        values |= {"idempotency_key": request.idempotency_key, "body_hash": (request.body_hash or b"").hex()}
    return values


def _redemption_row(accepted: AcceptedRequest, redeemed_at: datetime) -> RedemptionRow:
    request, order = accepted.request, accepted.request.order
    return RedemptionRow(
        redeemed_at=redeemed_at,
        channel=request.channel,
        api_key_id=request.api_key_id,
        staff_user_id=request.staff.user_id if request.staff else None,
        order_id=order.id if order else None,
        order_amount=order.amount if order else None,
        order_currency=order.currency if order else None,
        discount_amount=accepted.discount_amount,
        order_metadata=request.metadata,
        idempotency_key=request.idempotency_key,
        body_hash=request.body_hash,
    )


def _build_used_up_refusal(accepted: AcceptedRequest) -> RedemptionRefused:
    used_up_offer = dataclasses.replace(accepted.offer, redeemed=accepted.offer.max_redemptions or 0)
    facts = dataclasses.replace(accepted.facts, offer=used_up_offer)
    return RedemptionRefused("offer_exhausted", evaluate(facts), facts)
