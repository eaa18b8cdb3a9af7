"""Redeeming, undoing, and the hourly counts. Exactness is the database's: these are the writes that it guards."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from webapp.accounts.actions import record_audit_entry
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import OFFER_BUSY, OUTCOME_UNKNOWN, RedemptionRefused, RedemptionUnavailable
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import (
    OfferFacts,
    RedemptionFacts,
    RedemptionRequest,
    RedemptionRow,
    calculate_discount_amount,
    evaluate,
    find_replayed_redemption,
)

log = logging.getLogger(__name__)
# Each round either settles an ask or meets somebody else who was faster; more than a few can't happen by chance.
MAX_ROUNDS = 10


class _OfferLockTimeout(Exception):
    """Somebody else holds the offer of these asks for too long; nothing was saved."""

    def __init__(self, asks: Iterable[int]) -> None:
        super().__init__()
        self.indexes = list(asks)


def validate_redemption(request: RedemptionRequest) -> tuple[OfferFacts, int | None]:
    """What redeeming would give now: the offer, and what is taken off the order. Writes nothing.

    :raises Refused: with the first check of the rule that failed.
    :raises Invalid: when the order does not suit the discount.
    """
    entry = _accept_request(0, request, redemption_facts.load_facts([request])[0])
    return entry.offer, entry.discount_amount


def redeem_all(
    requests: Sequence[RedemptionRequest], connection: Connection | None = None
) -> list[RedemptionRecord | DomainError]:
    """Redeem many, of any offers and customers, in one transaction; an answer for each, in their order.

    Every answer "redeemed", "already redeemed" or "used up" tells what is on disk. All are judged by one rule over
    facts from one statement; then, offer by offer in the order of their ids, all rows are inserted sorted by customer
    and their number is taken from the cap last. In this order, whatever runs at once, nobody waits in a circle.

    :param connection: to work on; one of its own unless another is given.
    :raises DBAPIError: when the database refuses or is lost; nothing is saved then.
    :raises Unavailable: when it is lost during the commit.
    """
    if connection is None:
        with db.engine.connect() as connection:
            return redeem_all(requests, connection)
    answers: dict[int, RedemptionRecord | DomainError] = {}
    left: DomainError = DomainError("conflict", "Too many are at this very redemption at once; please try again.", 409)
    for _ in range(MAX_ROUNDS):
        waiting = [n for n in range(len(requests)) if n not in answers]
        if not waiting:
            break
        try:
            answers |= _redeem_in_transaction(connection, {n: requests[n] for n in waiting})
        except _OfferLockTimeout as held:
            answers |= {n: RedemptionUnavailable(OFFER_BUSY) for n in held.indexes}
        except (DBAPIError, RedemptionUnavailable) as error:
            # What an earlier round has saved stays true, whatever becomes of the rest.
            if not answers:
                raise
            left = error if isinstance(error, RedemptionUnavailable) else RedemptionUnavailable()
            break
    return [answers.get(n, left) for n in range(len(requests))]


def _redeem_in_transaction(
    connection: Connection, asks: dict[int, RedemptionRequest]
) -> dict[int, RedemptionRecord | DomainError]:
    """One transaction. Asks that met somebody faster, or an offer that is still open to change, get no answer yet."""
    transaction = connection.begin()
    with transaction:
        answers, admitted, loose = _evaluate_requests(connection, asks)
        if not loose:
            for offer_id in sorted(admitted):
                entries = list(admitted[offer_id].values())
                with _raise_on_lock_timeout(entry.index for entry in entries):
                    answers |= _redeem_for_offer(connection, entries)
        try:
            transaction.commit()
        except DBAPIError as error:
            raise RedemptionUnavailable(OUTCOME_UNKNOWN) from error
    if loose:
        _freeze_offers(connection, loose)
    return answers


def _evaluate_requests(
    connection: Connection, asks: dict[int, RedemptionRequest]
) -> tuple[dict[int, RedemptionRecord | DomainError], dict[int, dict[int, _AcceptedRequest]], dict[int, list[int]]]:
    """The answers that need no write, what may be written by offer and customer, and the asks of offers that are not
    frozen, by offer."""
    answers: dict[int, RedemptionRecord | DomainError] = {}
    admitted: dict[int, dict[int, _AcceptedRequest]] = {}
    loose: dict[int, list[int]] = {}
    for n, facts in zip(asks, redemption_facts.load_facts(list(asks.values()), connection), strict=True):
        try:
            known = _evaluate_request(n, asks[n], facts)
        except DomainError as error:
            answers[n] = error
            continue
        if isinstance(known, RedemptionRecord):
            answers[n] = known
        elif not known.offer.is_frozen:
            loose.setdefault(known.offer.id, []).append(n)
        else:
            # A second ask for the same pair waits for what becomes of the first.
            admitted.setdefault(known.offer.id, {}).setdefault(known.customer_id, known)
    return answers, admitted, loose


@dataclass(frozen=True, slots=True)
class _AcceptedRequest:
    """An ask that may be written."""

    request: RedemptionRequest
    facts: RedemptionFacts
    offer: OfferFacts
    customer_id: int
    discount_amount: int | None
    index: int


def _evaluate_request(n: int, ask: RedemptionRequest, facts: RedemptionFacts) -> _AcceptedRequest | RedemptionRecord:
    repeated = find_replayed_redemption(ask, facts)
    if repeated is not None:
        return _redemption_record(facts, repeated, is_replay=True)
    return _accept_request(n, ask, facts)


def _accept_request(n: int, ask: RedemptionRequest, facts: RedemptionFacts) -> _AcceptedRequest:
    judged = evaluate(facts)
    if judged.reason is not None:
        raise RedemptionRefused(judged.reason, judged, facts)
    if facts.offer is None or facts.customer_id is None:
        raise RuntimeError("the rule admits only what is known")
    return _AcceptedRequest(
        ask, facts, facts.offer, facts.customer_id, calculate_discount_amount(ask.order, facts.offer.discount), n
    )


def _freeze_offers(connection: Connection, offer_ids: Mapping[int, Iterable[int]]) -> None:
    """Freeze offers before their first redemption, each in a transaction of its own; the facts are then read anew.

    Nobody can then give an offer a cap, or another discount, between what was read and what is written.

    :param offer_ids: the offers, with the asks that wait for each.
    """
    for offer_id in sorted(offer_ids):
        with connection.begin(), _raise_on_lock_timeout(offer_ids[offer_id]):
            offer_actions.freeze_offer(offer_id, connection)


@contextmanager
def _raise_on_lock_timeout(asks: Iterable[int]) -> Iterator[None]:
    """Tell whose asks it was that waited in vain for a lock."""
    try:
        yield
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise _OfferLockTimeout(asks) from error


_INSERT_REDEMPTIONS = """
    insert into redemption (customer_id, offer_id, redeemed_at, channel, api_key_id, order_id, order_amount,
      order_currency, discount_amount, order_metadata, idempotency_key, body_hash)
    select customer_id, %(offer_id)s, clock_timestamp(), channel, api_key_id, order_id, order_amount,
      order_currency, discount_amount, order_metadata, idempotency_key, decode(body_hash, 'hex')
    from json_to_recordset(cast(%(rows)s as json)) as t(
      customer_id bigint, channel text, api_key_id int, order_id text, order_amount bigint, order_currency text,
      discount_amount bigint, order_metadata jsonb, idempotency_key text, body_hash text
    )
    on conflict do nothing
    returning customer_id, redeemed_at
    """
_INCREMENT_REDEEMED = (
    "update offer set redeemed = redeemed + %(n)s where id = %(offer_id)s and redeemed + %(n)s <= max_redemptions"
)
_SELECT_REMAINING_FOR_UPDATE = text("select max_redemptions - redeemed from offer where id = :offer_id for update")
_DELETE_REDEMPTIONS = text("delete from redemption where offer_id = :offer_id and customer_id = any(:customer_ids)")


def _redeem_for_offer(
    connection: Connection, entries: list[_AcceptedRequest]
) -> dict[int, RedemptionRecord | DomainError]:
    """All rows of one offer, then their number from its cap. Whoever was there before is left without an answer."""
    offer = entries[0].offer
    made = _insert_redemptions(connection, offer.id, sorted(entries, key=lambda entry: entry.customer_id))
    inserted = [entry for entry in entries if entry.customer_id in made]
    room = len(inserted)
    if offer.max_redemptions is not None and inserted:
        room = _reserve_cap(connection, offer.id, len(inserted))
    answers: dict[int, RedemptionRecord | DomainError] = {
        entry.index: _redemption_record(entry.facts, made[entry.customer_id]) for entry in inserted[:room]
    }
    surplus = inserted[room:]
    if surplus:
        connection.execute(
            _DELETE_REDEMPTIONS, {"offer_id": offer.id, "customer_ids": [entry.customer_id for entry in surplus]}
        )
        answers |= {entry.index: _exhausted_refusal(entry) for entry in surplus}
    return answers


def _insert_redemptions(
    connection: Connection, offer_id: int, entries: list[_AcceptedRequest]
) -> dict[int, RedemptionRow]:
    rows = json.dumps([_insert_values(entry) for entry in entries])
    made = connection.exec_driver_sql(_INSERT_REDEMPTIONS, {"offer_id": offer_id, "rows": rows})
    when = dict(tuple(row) for row in made)
    return {
        entry.customer_id: _redemption_row(entry, when[entry.customer_id])
        for entry in entries
        if entry.customer_id in when
    }


def _insert_values(entry: _AcceptedRequest) -> dict[str, Any]:
    """What there is to say of it: what is left out is null."""
    ask, order = entry.request, entry.request.order
    row: dict[str, Any] = {"customer_id": entry.customer_id, "channel": ask.channel, "api_key_id": ask.api_key_id}
    if order is not None:
        row |= {"order_id": order.id, "order_amount": order.amount, "order_currency": order.currency}
        row["discount_amount"] = entry.discount_amount
    if ask.metadata is not None:
        row["order_metadata"] = ask.metadata
    if ask.idempotency_key is not None:
        row |= {"idempotency_key": ask.idempotency_key, "body_hash": (ask.body_hash or b"").hex()}
    return row


def _redemption_row(entry: _AcceptedRequest, redeemed_at: Any) -> RedemptionRow:
    ask, order = entry.request, entry.request.order
    return RedemptionRow(
        redeemed_at=redeemed_at,
        channel=ask.channel,
        api_key_id=ask.api_key_id,
        order_id=order.id if order else None,
        order_amount=order.amount if order else None,
        order_currency=order.currency if order else None,
        discount_amount=entry.discount_amount,
        order_metadata=ask.metadata,
        idempotency_key=ask.idempotency_key,
        body_hash=ask.body_hash,
    )


def _reserve_cap(connection: Connection, offer_id: int, n: int) -> int:
    """Take `n` units of the cap, or as many as are left; how many it were."""
    if connection.exec_driver_sql(_INCREMENT_REDEEMED, {"offer_id": offer_id, "n": n}).rowcount:
        return n
    free: int = connection.execute(_SELECT_REMAINING_FOR_UPDATE, {"offer_id": offer_id}).scalar_one()
    left = min(n, max(0, free))
    if left:
        connection.exec_driver_sql(_INCREMENT_REDEEMED, {"offer_id": offer_id, "n": left})
    return left


def _exhausted_refusal(entry: _AcceptedRequest) -> RedemptionRefused:
    full = dataclasses.replace(entry.offer, redeemed=entry.offer.max_redemptions or 0)
    facts = dataclasses.replace(entry.facts, offer=full)
    return RedemptionRefused("offer_exhausted", evaluate(facts), facts)


def _redemption_record(facts: RedemptionFacts, row: RedemptionRow, is_replay: bool = False) -> RedemptionRecord:
    offer = facts.offer
    if offer is None or facts.customer_id is None:
        raise RuntimeError("a redemption is always of an offer by a customer")
    return RedemptionRecord(
        offer_id=offer.id,
        customer_id=facts.customer_id,
        code=offer.code,
        offer_name=offer.name,
        discount=offer.discount,
        time_zone=offer.time_zone,
        email=facts.email or "",
        customer_name="",
        row=row,
        is_replay=is_replay,
    )


def record_redemption_export(narrowed: redemption_queries.RedemptionFilter | None, by: str) -> None:
    """Write down that somebody takes redemptions out, and which. Commits."""
    detail = dataclasses.asdict(narrowed) if narrowed else {"found": "nothing"}
    for name, value in detail.items():
        detail[name] = value.isoformat() if isinstance(value, datetime) else value
    record_audit_entry(
        by, "redemptions.exported", **{name: value for name, value in detail.items() if value is not None}
    )
    db.session.commit()
