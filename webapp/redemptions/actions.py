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

from flask import current_app
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from webapp.accounts.actions import record
from webapp.errors import DomainError, FieldError, Invalid, NotFound
from webapp.extensions import db
from webapp.gather import Gatherer, Stuck
from webapp.offers import actions as offers
from webapp.redemptions import ids, queries, words
from webapp.redemptions.queries import Redeemed
from webapp.redemptions.verdict import Ask, Facts, OfferFacts, Reason, Use, Verdict, discount_on, repeat_of, verdict

log = logging.getLogger(__name__)

REASON_MAX = 500
# Each round either settles an ask or meets somebody else who was faster; more than a few can't happen by chance.
ROUNDS = 10
# More in one transaction make none of them cheaper, and all wait for the last.
GATHERED = 64
PATIENCE_SECONDS = 15
LOCK_SECONDS = 2
IDLE_SECONDS = 20
# Held shared by whoever undoes a redemption, alone by whoever counts hours.
_TALLY_LOCK = "hashtext('onecode.redemption_tally')"


class Refused(DomainError):
    """The rule says no. `verdict` has every check, `offer` what is known of the offer, `use` the earlier use."""

    def __init__(self, reason: Reason, judged: Verdict, facts: Facts) -> None:
        super().__init__(reason, words.full(reason, facts.offer), 404 if reason == "not_found" else 409)
        self.reason = reason
        self.verdict = judged
        self.facts = facts


AWAY = "The database can't be reached just now. Nothing was saved; please try again in a moment."
LOST = "The database did not say whether this was saved. Please try again: whatever was saved, it counts once."
BUSY = "There is a rush on this offer just now. Nothing was saved; please try again in a moment."


class Unavailable(DomainError):
    """No answer came in time. Unless the sentence is LOST, nothing was saved."""

    def __init__(self, sentence: str = AWAY) -> None:
        super().__init__("unavailable", sentence, 503)


class _Held(Exception):
    """Somebody else holds the offer of these asks for too long; nothing was saved."""

    def __init__(self, asks: Iterable[int]) -> None:
        super().__init__()
        self.asks = list(asks)


def redeem(ask: Ask) -> Redeemed:
    """Redeem an offer once for a customer, in a transaction of its own. What it returns is on disk.

    What threads of this process ask for at the same time is written in one transaction.

    :returns: the redemption; `repeated` when the same request has made it before (by Idempotency-Key or order id).
    :raises Refused: with the first check of the rule that failed.
    :raises Invalid: when the order does not suit the discount, or an Idempotency-Key came with another body before.
    :raises Unavailable: when the database does not answer.
    """
    # Whoever waits must hold no connection: the one that all wait for might find none left.
    if db.session.registry.has():
        db.session.rollback()
    answer = desk().redeem(ask)
    if isinstance(answer, DomainError):
        raise answer
    return answer


def validate(ask: Ask) -> tuple[OfferFacts, int | None]:
    """What redeeming would give now: the offer, and what is taken off the order. Writes nothing.

    :raises Refused: with the first check of the rule that failed.
    :raises Invalid: when the order does not suit the discount.
    """
    entry = _admit(0, ask, queries.facts([ask])[0])
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
    for n, facts in zip(asks, queries.facts(list(asks.values()), connection), strict=True):
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


class Desk:
    """Where the threads of one process redeem: on one connection, which is kept, one transaction at a time."""

    def __init__(self) -> None:
        self._gatherer = Gatherer(self._answer, GATHERED, PATIENCE_SECONDS)
        self._connection: Connection | None = None

    def redeem(self, ask: Ask) -> Redeemed | DomainError:
        """The answer to one ask, whoever else asks at the same time."""
        try:
            return self._gatherer.ask(ask)
        except Stuck as stuck:
            return Unavailable(LOST if stuck.begun else AWAY)

    def close(self) -> None:
        """Give the connection up; the next ask opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, asks: Sequence[Ask]) -> list[Redeemed | DomainError]:
        try:
            try:
                return self._redeem(asks, self._kept())
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was started anew since the last time, it may be.
                return self._redeem(asks, self._kept())
        except Unavailable as lost:
            return [lost for _ in asks]
        except DBAPIError as error:
            log.warning("%s redemptions at once: %s", len(asks), error.orig)
            if self._connection is None:
                return [Unavailable() for _ in asks]
            return self._apart(asks, error)

    def _redeem(self, asks: Sequence[Ask], connection: Connection) -> list[Redeemed | DomainError]:
        try:
            return redeem_all(asks, connection)
        finally:
            if connection.invalidated:
                connection.close()
                self._connection = None

    def _apart(self, asks: Sequence[Ask], error: DBAPIError) -> list[Redeemed | DomainError]:
        """What the database refuses for all at once, one by one: nobody suffers for a neighbour."""
        if len(asks) == 1:
            # Its disk is full, say (classes 53 and 57 of SQLSTATE): that is not about the ask, and passes.
            if str(getattr(error.orig, "sqlstate", None)).startswith(("53", "57")):
                log.error("the database can't write just now: %s", error.orig)
                return [Unavailable()]
            log.error("a redemption can't be written", exc_info=error)
            return [DomainError("error", "Something went wrong on our side. It has been noted.", 500)]
        return [answer for ask in asks for answer in self._answer([ask])]

    def _kept(self) -> Connection:
        if self._connection is None:
            connection = db.engine.connect()
            # It never goes back to the pool, so what is set here is set for good.
            connection.detach()
            connection.exec_driver_sql(f"set lock_timeout = '{LOCK_SECONDS}s'")
            # Should this machine vanish in the middle, what it holds is let go.
            connection.exec_driver_sql(f"set idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            connection.commit()
            self._connection = connection
        return self._connection


def desk() -> Desk:
    """The one of this app in this process."""
    found: Desk | None = current_app.extensions.get("redeeming")
    # Of two threads that are the first at the same time one makes it.
    return found or current_app.extensions.setdefault("redeeming", Desk())


def _freeze(connection: Connection, offer_ids: Mapping[int, Iterable[int]]) -> None:
    """Freeze offers before their first redemption, each in a transaction of its own; the facts are then read anew.

    Nobody can then give an offer a cap, or another discount, between what was read and what is written.

    :param offer_ids: the offers, with the asks that wait for each.
    """
    for offer_id in sorted(offer_ids):
        with connection.begin(), _not_held(offer_ids[offer_id]):
            offers.freeze(offer_id, connection)


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


_LOCK_TALLY_SHARED = text(f"select pg_advisory_xact_lock_shared({_TALLY_LOCK})")
_LOCK_TALLY = text(f"select pg_advisory_xact_lock({_TALLY_LOCK})")
_UNDO = text(
    """
    with gone as (
      delete from redemption
      where offer_id = :offer_id and customer_id = :customer_id and redeemed_at = :redeemed_at
      returning *
    )
    insert into rollback (customer_id, offer_id, redeemed_at, channel, api_key_id, order_id, order_amount,
      order_currency, discount_amount, order_metadata, idempotency_key, body_hash, rolled_back_by, reason)
    select customer_id, offer_id, redeemed_at, channel, api_key_id, order_id, order_amount,
      order_currency, discount_amount, order_metadata, idempotency_key, body_hash, :by, :reason
    from gone
    """
)
_GIVE_BACK = text("update offer set redeemed = redeemed - 1 where id = :offer_id and max_redemptions is not null")
# An hour has a row only when it was counted. All three move together, each row after the ones before it, so that nobody
# waits in a circle.
_UNCOUNT = text(
    """
    with uncounted as (
      update redemption_hour h set n = h.n - 1
      where h.offer_id = :offer_id and h.hour = date_trunc('hour', cast(:redeemed_at as timestamptz), 'UTC')
      returning h.offer_id, h.hour
    ), of_offer as (
      update redemption_total t set n = t.n - 1 from uncounted u where t.offer_id = u.offer_id returning u.hour
    )
    update hour_total t set n = t.n - 1 from of_offer o where t.hour = o.hour
    """
)


def rollback(public_id: str, reason: str, by: str) -> Redeemed:
    """Undo a redemption, once: its row moves to the rollbacks, the cap gets its unit back, and the customer may redeem
    again. Commits.

    :raises NotFound: when there is no such redemption.
    :raises DomainError: `already_rolled_back` when it was undone before, also at this very moment.
    :raises Invalid: `reason_missing`, `reason_too_long`.
    """
    why = " ".join(reason.split())
    if not why or not why.isprintable():
        raise Invalid(FieldError("reason", "reason_missing", "Say in a few words why it is undone."))
    if len(why) > REASON_MAX:
        raise Invalid(FieldError("reason", "reason_too_long", f"A reason has at most {REASON_MAX} characters."))
    found = queries.find(public_id)
    if found is None:
        raise NotFound("There is no such redemption; check its reference.")
    triple = ids.Triple(found.offer_id, found.customer_id, found.use.redeemed_at)._asdict()
    # First of all, for the hours are counted by whoever holds this lock alone: before us or after us, never between.
    db.session.execute(_LOCK_TALLY_SHARED)
    undone = db.session.connection().execute(_UNDO, triple | {"by": by, "reason": why}).rowcount
    if not undone:
        db.session.rollback()
        raise DomainError("already_rolled_back", "This redemption was undone before.", 409)
    db.session.execute(_GIVE_BACK, {"offer_id": found.offer_id})
    db.session.execute(_UNCOUNT, {"offer_id": found.offer_id, "redeemed_at": found.use.redeemed_at})
    record(by, "redemption.undone", found.code, customer=found.customer_id, reference=public_id)
    db.session.commit()
    return queries.find(public_id) or found


def note_export(narrowed: queries.Filter | None, by: str) -> None:
    """Write down that somebody takes redemptions out, and which. Commits."""
    detail = dataclasses.asdict(narrowed) if narrowed else {"found": "nothing"}
    for name, value in detail.items():
        detail[name] = value.isoformat() if isinstance(value, datetime) else value
    record(by, "redemptions.exported", **{name: value for name, value in detail.items() if value is not None})
    db.session.commit()


_COUNT = text(
    """
    with counted as (
      select o.id as offer_id, counted.hour, counted.n
      from offer o, redemption_tally t,
      lateral (
        select date_trunc('hour', r.redeemed_at, 'UTC') as hour, count(*) as n from redemption r
        where r.offer_id = o.id and r.redeemed_at >= t.counted_until and r.redeemed_at < :until
        group by 1
      ) counted
      where t.id = 1
    ), by_offer as (
      insert into redemption_total (offer_id, n) select offer_id, sum(n) from counted group by 1
      on conflict (offer_id) do update set n = redemption_total.n + excluded.n
    ), by_hour as (
      insert into hour_total (hour, n) select hour, sum(n) from counted group by 1
    )
    insert into redemption_hour (offer_id, hour, n) select offer_id, hour, n from counted
    """
)
_UNTIL = text("select date_trunc('hour', now() - interval '5 minutes', 'UTC')")
_MOVE = text("update redemption_tally set counted_until = :until where id = 1 and counted_until < :until returning id")


def count_hours() -> None:
    """Count the redemptions of every hour that ended more than five minutes ago, once. Commits.

    The five minutes are for transactions that were about to commit when the hour ended. Harmless when it runs twice.
    """
    until = db.session.execute(_UNTIL).scalar_one()
    db.session.execute(_LOCK_TALLY)
    if db.session.execute(text("select counted_until < :until from redemption_tally"), {"until": until}).scalar():
        db.session.execute(_COUNT, {"until": until})
        db.session.execute(_MOVE, {"until": until})
    db.session.commit()
