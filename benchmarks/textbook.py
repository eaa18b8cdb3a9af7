"""Redeeming as a textbook has it, on the program's own tables: three baselines for the benchmarks of redemption.

- `OrmHabit`: look the offer up, look the customer up, look for an earlier use, count, insert. What most shops run.
- `ForUpdate`: the same with the offer's row locked first, and its counter kept.
- `PlainInsert`: one INSERT of two numbers and nothing else, the limit of what any way could reach.

Tables, indexes and customers are those of the program, so that only the way differs. Make one for each process, with as
many connections as it has threads; `redeem` may be called by all of them at once:

    with OrmHabit(url, connections=16) as way:
        way.redeem(ask(offer_id, code, customer_id))
"""

from __future__ import annotations

import queue
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import psycopg
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption


class Asked(NamedTuple):
    """Who wants to use what. The limit takes the ids, the others look up what people type."""

    offer_id: int
    code: str
    customer_id: int
    email: str


def ask(offer_id: int, code: str, customer_id: int) -> Asked:
    """What one of the customers of `benchmarks.customers.fill` asks for."""
    return Asked(offer_id, code, customer_id, f"customer.{customer_id}@example.com")


class Way(Protocol):
    """A way of redeeming. `exact` is what it promises when many do so at once."""

    name: str
    exact: bool

    def __init__(self, url: str, connections: int) -> None: ...
    def redeem(self, asked: Asked) -> bool:
        """True when it is redeemed and on disk, False when it is refused."""
        ...

    def close(self) -> None: ...


class _Closing:
    """Ways close their connections at the end of a with-block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class _Orm(_Closing):
    def __init__(self, url: str, connections: int) -> None:
        self.engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"), pool_size=connections, max_overflow=0
        )

    def close(self) -> None:
        self.engine.dispose()


def orm_habit(session: Session, code: str, email: str) -> bool:
    """Check, then insert, in one transaction of the given session; commits. Two that check at once both pass."""
    offer = session.scalar(select(Offer).where(Offer.code == code))
    customer = session.scalar(select(Customer).where(Customer.email == email))
    if offer is None or customer is None or not _is_open(offer):
        return False
    if session.get(Redemption, (customer.id, offer.id)) is not None:
        return False
    if offer.max_redemptions is not None:
        used = session.scalar(select(func.count()).select_from(Redemption).where(Redemption.offer_id == offer.id)) or 0
        if used >= offer.max_redemptions:
            return False
    return _insert(session, customer.id, offer.id)


def for_update(session: Session, code: str, email: str) -> bool:
    """Lock the offer, then check, insert and count, in one transaction of the given session; commits."""
    offer = session.scalar(select(Offer).where(Offer.code == code).with_for_update())
    customer = session.scalar(select(Customer).where(Customer.email == email))
    if offer is None or customer is None or not _is_open(offer):
        return False
    if session.get(Redemption, (customer.id, offer.id)) is not None:
        return False
    if offer.max_redemptions is not None:
        if offer.redeemed >= offer.max_redemptions:
            return False
        offer.redeemed += 1
    return _insert(session, customer.id, offer.id)


def _is_open(offer: Offer) -> bool:
    now = datetime.now(UTC)
    return offer.paused_at is None and offer.starts_at <= now and (offer.ends_at is None or now < offer.ends_at)


def _insert(session: Session, customer_id: int, offer_id: int) -> bool:
    session.add(Redemption(customer_id=customer_id, offer_id=offer_id, channel="form"))
    try:
        session.commit()
    except IntegrityError:
        # The primary key has refused a second use by the same customer.
        session.rollback()
        return False
    return True


class OrmHabit(_Orm):
    name = "ORM check-then-insert"
    exact = False

    def redeem(self, asked: Asked) -> bool:
        with Session(self.engine) as session:
            return orm_habit(session, asked.code, asked.email)


class ForUpdate(_Orm):
    name = "SELECT … FOR UPDATE"
    exact = True

    def redeem(self, asked: Asked) -> bool:
        with Session(self.engine) as session:
            return for_update(session, asked.code, asked.email)


class PlainInsert(_Closing):
    """Checks nothing at all: no cap, no window."""

    name = "plain INSERT"
    exact = False

    def __init__(self, url: str, connections: int) -> None:
        self.free: queue.SimpleQueue[psycopg.Connection] = queue.SimpleQueue()
        self.all = [psycopg.connect(url, autocommit=True, prepare_threshold=0) for _ in range(connections)]
        for connection in self.all:
            self.free.put(connection)

    def redeem(self, asked: Asked) -> bool:
        connection = self.free.get()
        try:
            return bool(
                connection.execute(
                    "insert into redemption (customer_id, offer_id, channel) values (%s, %s, 'form')"
                    " on conflict do nothing",
                    [asked.customer_id, asked.offer_id],
                ).rowcount
            )
        finally:
            self.free.put(connection)

    def close(self) -> None:
        for connection in self.all:
            connection.close()


WAYS: tuple[type[OrmHabit] | type[ForUpdate] | type[PlainInsert], ...] = (OrmHabit, ForUpdate, PlainInsert)
