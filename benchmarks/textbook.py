"""Textbook implementations of redeeming on the application's tables.

- `OrmHabit`: look up offer, customer and an earlier redemption, count, insert. The most common implementation.
- `ForUpdate`: the same with the offer's row locked first, and a counter.
- `OneStatement`: all checks, the row and the counter in one prepared statement per request.
- `PlainInsert`: one INSERT of two ids and nothing else, the upper limit of any implementation.

Tables, indexes and customers are those of the application, so that only the implementation differs. Create one per
process, with a connection per thread; `redeem` may be called concurrently:

    with OrmHabit(url, connections=16) as implementation:
        implementation.redeem(make_request(offer_id, code, customer_id))
"""

from __future__ import annotations

import queue
from datetime import UTC, datetime
from types import TracebackType
from typing import LiteralString, NamedTuple, Protocol, Self

import psycopg
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption


class TextbookRequest(NamedTuple):
    """A request to redeem: ids for `PlainInsert`, code and email for the others."""

    offer_id: int
    code: str
    customer_id: int
    email: str


def make_request(offer_id: int, code: str, customer_id: int) -> TextbookRequest:
    """Build the request of a customer of `benchmarks.customers.fill`."""
    return TextbookRequest(offer_id, code, customer_id, f"customer.{customer_id}@example.com")


class Implementation(Protocol):
    """An implementation of redeeming; `exact` if it keeps the cap under concurrency."""

    name: str
    exact: bool

    def __init__(self, url: str, connections: int) -> None: ...
    def redeem(self, request: TextbookRequest) -> bool:
        """Redeem; return True when it is on disk, False when it is refused."""
        ...

    def close(self) -> None: ...


class _Closing:
    """A context manager that closes the connections."""

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
    """Check, insert and commit in one transaction; concurrent checks can both pass."""
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
    """Lock the offer, then check, insert, count and commit, in one transaction."""
    offer = session.scalar(select(Offer).where(Offer.code == code).with_for_update())
    customer = session.scalar(select(Customer).where(Customer.email == email))
    if offer is None or customer is None or not _is_open(offer):
        return False
    if session.get(Redemption, (customer.id, offer.id)) is not None:
        return False
    if offer.max_redemptions is not None:
        if offer.redeemed >= offer.max_redemptions:
            return False
        offer.counter.redeemed += 1
    return _insert(session, customer.id, offer.id)


def _is_open(offer: Offer) -> bool:
    now = datetime.now(UTC)
    return offer.paused_at is None and offer.starts_at <= now and (offer.ends_at is None or now < offer.ends_at)


def _insert(session: Session, customer_id: int, offer_id: int) -> bool:
    session.add(Redemption(customer_id=customer_id, offer_id=offer_id, channel="form"))
    try:
        session.commit()
    except IntegrityError:
        # The primary key prevents a second redemption by the same customer.
        session.rollback()
        return False
    return True


class OrmHabit(_Orm):
    name = "ORM check-then-insert"
    exact = False

    def redeem(self, request: TextbookRequest) -> bool:
        with Session(self.engine) as session:
            return orm_habit(session, request.code, request.email)


class ForUpdate(_Orm):
    name = "SELECT … FOR UPDATE"
    exact = True

    def redeem(self, request: TextbookRequest) -> bool:
        with Session(self.engine) as session:
            return for_update(session, request.code, request.email)


class _Prepared(_Closing):
    """Prepared statements in autocommit mode, over a number of connections."""

    def __init__(self, url: str, connections: int) -> None:
        self.free: queue.SimpleQueue[psycopg.Connection] = queue.SimpleQueue()
        self.all = [psycopg.connect(url, autocommit=True, prepare_threshold=0) for _ in range(connections)]
        for connection in self.all:
            self.free.put(connection)

    def execute(self, statement: LiteralString, values: list[object]) -> int:
        """Execute a statement; return the number of rows."""
        connection = self.free.get()
        try:
            return connection.execute(statement, values).rowcount
        finally:
            self.free.put(connection)

    def close(self) -> None:
        for connection in self.all:
            connection.close()


class PlainInsert(_Prepared):
    """Inserts without any check."""

    name = "plain INSERT"
    exact = False

    def redeem(self, request: TextbookRequest) -> bool:
        statement: LiteralString = (
            "insert into redemption (customer_id, offer_id, channel) values (%s, %s, 'form') on conflict do nothing"
        )
        return bool(self.execute(statement, [request.customer_id, request.offer_id]))


class OneStatement(_Prepared):
    """Checks, row and counter in one statement: one round trip per redemption.

    A check constraint rolls back the statement when the cap is exceeded. It never returns the reason of a refusal.
    """

    name = "one SQL statement"
    exact = True

    def redeem(self, request: TextbookRequest) -> bool:
        try:
            return bool(self.execute(_ALL_IN_ONE, [request.email, request.code]))
        except psycopg.errors.CheckViolation:
            return False


_ALL_IN_ONE: LiteralString = """
with made as (
  insert into redemption (customer_id, offer_id, channel)
  select c.id, o.id, 'form'
  from offer_code k
  join offer o on o.id = k.offer_id
  join offer_counter n on n.offer_id = o.id
  join customer c on c.email = %s and c.erased_at is null
  where k.code = %s and k.closed_at is null and o.paused_at is null and o.starts_at <= now()
    and (o.ends_at is null or now() < o.ends_at) and not o.personal_code_required
    and (n.max_redemptions is null or n.redeemed < n.max_redemptions)
    and (o.audience_id is null or exists (
      select from audience_member m where m.audience_id = o.audience_id and m.customer_id = c.id
    ))
  on conflict do nothing
  returning offer_id
), counted as (
  update offer_counter set redeemed = redeemed + 1
  where offer_id = (select offer_id from made) and max_redemptions is not null
)
select from made
"""


ImplementationType = type[OrmHabit] | type[ForUpdate] | type[OneStatement] | type[PlainInsert]
IMPLEMENTATIONS: tuple[ImplementationType, ...] = (OrmHabit, ForUpdate, PlainInsert)
