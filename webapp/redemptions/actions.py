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

from webapp.accounts.actions import record
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.offers import actions as offer_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import BUSY, LOST, Refused, Unavailable
from webapp.redemptions.queries import Redeemed
from webapp.redemptions.rules import Ask, Facts, OfferFacts, Use, discount_on, repeat_of, verdict

log = logging.getLogger(__name__)
# Each round either settles an ask or meets somebody else who was faster; more than a few can't happen by chance.
ROUNDS = 10


class _Held(Exception):
    """Somebody else holds the offer of these asks for too long; nothing was saved."""

    def __init__(self, asks: Iterable[int]) -> None:
        super().__init__()
        self.asks = list(asks)


def validate(ask: Ask) -> tuple[OfferFacts, int | None]:
    """What redeeming would give now: the offer, and what is taken off the order. Writes nothing.

    :raises Refused: with the first check of the rule that failed.
    :raises Invalid: when the order does not suit the discount.
    """
    entry = _admit(0, ask, redemption_facts.facts([ask])[0])
    return entry.offer, entry.discount_amount


def redeem_all(asks: Sequence[Ask], connection: Connection | None = None) -> list[Redeemed | DomainError]:
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
            return redeem_all(asks, connection)
    answers: dict[int, Redeemed | DomainError] = {}
    left: DomainError = DomainError("conflict", "Too many are at this very redemption at once; please try again.", 409)
    for _ in range(ROUNDS):
        waiting = [n for n in range(len(asks)) if n not in answers]
        if not waiting:
            break
        try:
            answers |= _round(connection, {n: asks[n] for n in waiting})
        except _Held as held:
            answers |= {n: Unavailable(BUSY) for n in held.asks}
        except (DBAPIError, Unavailable) as error:
            # What an earlier round has saved stays true, whatever becomes of the rest.
            if not answers:
                raise
            left = error if isinstance(error, Unavailable) else Unavailable()
            break
    return [answers.get(n, left) for n in range(len(asks))]


def _round(connection: Connection, asks: dict[int, Ask]) -> dict[int, Redeemed | DomainError]:
    """One transaction. Asks that met somebody faster, or an offer that is still open to change, get no answer yet."""
    transaction = connection.begin()
    with transaction:
        answers, admitted, loose = _judged(connection, asks)
        if not loose:
            for offer_id in sorted(admitted):
                entries = list(admitted[offer_id].values())
                with _not_held(entry.n for entry in entries):
                    answers |= _write(connection, entries)
        try:
            transaction.commit()
        except DBAPIError as error:
            raise Unavailable(LOST) from error
    if loose:
        _freeze(connection, loose)
    return answers


def _judged(
    connection: Connection, asks: dict[int, Ask]
) -> tuple[dict[int, Redeemed | DomainError], dict[int, dict[int, _Entry]], dict[int, list[int]]]:
    """The answers that need no write, what may be written by offer and customer, and the asks of offers that are not
    frozen, by offer."""
    answers: dict[int, Redeemed | DomainError] = {}
    admitted: dict[int, dict[int, _Entry]] = {}
    loose: dict[int, list[int]] = {}
    for n, facts in zip(asks, redemption_facts.facts(list(asks.values()), connection), strict=True):
        try:
            known = _judge(n, asks[n], facts)
        except DomainError as error:
            answers[n] = error
            continue
        if isinstance(known, Redeemed):
            answers[n] = known
        elif not known.offer.frozen:
            loose.setdefault(known.offer.id, []).append(n)
        else:
            # A second ask for the same pair waits for what becomes of the first.
            admitted.setdefault(known.offer.id, {}).setdefault(known.customer_id, known)
    return answers, admitted, loose


@dataclass(frozen=True, slots=True)
class _Entry:
    """An ask that may be written."""

    ask: Ask
    facts: Facts
    offer: OfferFacts
    customer_id: int
    discount_amount: int | None
    n: int


def _judge(n: int, ask: Ask, facts: Facts) -> _Entry | Redeemed:
    repeated = repeat_of(ask, facts)
    if repeated is not None:
        return _answer(facts, repeated, repeated=True)
    return _admit(n, ask, facts)


def _admit(n: int, ask: Ask, facts: Facts) -> _Entry:
    judged = verdict(facts)
    if judged.reason is not None:
        raise Refused(judged.reason, judged, facts)
    if facts.offer is None or facts.customer_id is None:
        raise RuntimeError("the rule admits only what is known")
    return _Entry(ask, facts, facts.offer, facts.customer_id, discount_on(ask.order, facts.offer.discount), n)


def _freeze(connection: Connection, offer_ids: Mapping[int, Iterable[int]]) -> None:
    """Freeze offers before their first redemption, each in a transaction of its own; the facts are then read anew.

    Nobody can then give an offer a cap, or another discount, between what was read and what is written.

    :param offer_ids: the offers, with the asks that wait for each.
    """
    for offer_id in sorted(offer_ids):
        with connection.begin(), _not_held(offer_ids[offer_id]):
            offer_actions.freeze(offer_id, connection)


@contextmanager
def _not_held(asks: Iterable[int]) -> Iterator[None]:
    """Tell whose asks it was that waited in vain for a lock."""
    try:
        yield
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise _Held(asks) from error


_INSERT = """
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
_TAKE = "update offer set redeemed = redeemed + %(n)s where id = %(offer_id)s and redeemed + %(n)s <= max_redemptions"
_LEFT = text("select max_redemptions - redeemed from offer where id = :offer_id for update")
_DROP = text("delete from redemption where offer_id = :offer_id and customer_id = any(:customer_ids)")


def _write(connection: Connection, entries: list[_Entry]) -> dict[int, Redeemed | DomainError]:
    """All rows of one offer, then their number from its cap. Whoever was there before is left without an answer."""
    offer = entries[0].offer
    made = _insert(connection, offer.id, sorted(entries, key=lambda entry: entry.customer_id))
    inserted = [entry for entry in entries if entry.customer_id in made]
    room = len(inserted)
    if offer.max_redemptions is not None and inserted:
        room = _take(connection, offer.id, len(inserted))
    answers: dict[int, Redeemed | DomainError] = {
        entry.n: _answer(entry.facts, made[entry.customer_id]) for entry in inserted[:room]
    }
    surplus = inserted[room:]
    if surplus:
        connection.execute(_DROP, {"offer_id": offer.id, "customer_ids": [entry.customer_id for entry in surplus]})
        answers |= {entry.n: _used_up(entry) for entry in surplus}
    return answers


def _insert(connection: Connection, offer_id: int, entries: list[_Entry]) -> dict[int, Use]:
    rows = json.dumps([_row(entry) for entry in entries])
    made = connection.exec_driver_sql(_INSERT, {"offer_id": offer_id, "rows": rows})
    when = dict(tuple(row) for row in made)
    return {entry.customer_id: _use(entry, when[entry.customer_id]) for entry in entries if entry.customer_id in when}


def _row(entry: _Entry) -> dict[str, Any]:
    """What there is to say of it: what is left out is null."""
    ask, order = entry.ask, entry.ask.order
    row: dict[str, Any] = {"customer_id": entry.customer_id, "channel": ask.channel, "api_key_id": ask.api_key_id}
    if order is not None:
        row |= {"order_id": order.id, "order_amount": order.amount, "order_currency": order.currency}
        row["discount_amount"] = entry.discount_amount
    if ask.metadata is not None:
        row["order_metadata"] = ask.metadata
    if ask.idempotency_key is not None:
        row |= {"idempotency_key": ask.idempotency_key, "body_hash": (ask.body_hash or b"").hex()}
    return row


def _use(entry: _Entry, redeemed_at: Any) -> Use:
    ask, order = entry.ask, entry.ask.order
    return Use(
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


def _take(connection: Connection, offer_id: int, n: int) -> int:
    """Take `n` units of the cap, or as many as are left; how many it were."""
    if connection.exec_driver_sql(_TAKE, {"offer_id": offer_id, "n": n}).rowcount:
        return n
    free: int = connection.execute(_LEFT, {"offer_id": offer_id}).scalar_one()
    left = min(n, max(0, free))
    if left:
        connection.exec_driver_sql(_TAKE, {"offer_id": offer_id, "n": left})
    return left


def _used_up(entry: _Entry) -> Refused:
    full = dataclasses.replace(entry.offer, redeemed=entry.offer.max_redemptions or 0)
    facts = dataclasses.replace(entry.facts, offer=full)
    return Refused("offer_exhausted", verdict(facts), facts)


def _answer(facts: Facts, use: Use, repeated: bool = False) -> Redeemed:
    offer = facts.offer
    if offer is None or facts.customer_id is None:
        raise RuntimeError("a redemption is always of an offer by a customer")
    return Redeemed(
        offer_id=offer.id,
        customer_id=facts.customer_id,
        code=offer.code,
        offer_name=offer.name,
        discount=offer.discount,
        time_zone=offer.time_zone,
        email=facts.email or "",
        customer_name="",
        use=use,
        repeated=repeated,
    )


def note_export(narrowed: redemption_queries.Filter | None, by: str) -> None:
    """Write down that somebody takes redemptions out, and which. Commits."""
    detail = dataclasses.asdict(narrowed) if narrowed else {"found": "nothing"}
    for name, value in detail.items():
        detail[name] = value.isoformat() if isinstance(value, datetime) else value
    record(by, "redemptions.exported", **{name: value for name, value in detail.items() if value is not None})
    db.session.commit()
