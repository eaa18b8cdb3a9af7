"""What both kinds of voucher pool share: an offer, a launch that fires one job, a mail job and a row for each customer.

Written as well as we know how, and leaner than usual: no uuids, no foreign keys, blocks of 10,000, one statement for
each step, everything that is looked up has its index. Of a redemption they can record all that
Onecode does. Only the row for each customer is what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from benchmarks import jobs

BLOCK = 10_000
OFFERS = """
create table special_offer (
  id bigint generated always as identity primary key,
  name text not null,
  percent numeric(5, 2) not null,
  ends_at timestamptz not null,
  launched_at timestamptz,
  made_to bigint not null default 0,
  made_at timestamptz
)
"""
NEW_OFFER = (
    "insert into special_offer (name, percent, ends_at) values ('Summer', 25, now() + interval '30 days') returning id"
)
PEOPLE = """
select id from customer where id > %s and erased_at is null
  and not exists (select from suppression s where s.email = customer.email)
order by id limit %s
"""
RECORDED = """
      redeemed_at timestamptz,
      channel text,
      api_key_id integer,
      order_id text,
      order_amount bigint,
      order_currency text,
      discount_amount bigint,
      order_metadata jsonb,
      idempotency_key text,
      body_hash bytea
"""
# Room on each page for the second version of a row, so that marking it mailed touches no index. Between 50 and 100 the
# fuller pages save disk, the emptier ones WAL, a little each.
ROOM = "fillfactor = 90"
MAIL = """
select v.id, v.{code}, c.email_as_given, c.name from {table} v join customer c on c.id = v.customer_id
where v.customer_id = %s and v.offer_id = %s and v.mailed_at is null
"""
MAILED = "update {table} set mailed_at = now() where id = %s"
COUNT_MAILED = "select count(*) from {table} where offer_id = %s and mailed_at is not null"
REDEEM = """
update {table} v set redeemed_at = now(), channel = 'form' from customer c, special_offer o
where v.{code} = %s and c.email = %s and v.customer_id = c.id and v.redeemed_at is null
  and o.id = v.offer_id and o.ends_at > now()
returning o.percent
"""
TYPED = """
select v.{code}, c.email from unnest(%s::bigint[]) with ordinality as t(id, n)
join customer c on c.id = t.id join {table} v on v.customer_id = c.id and v.offer_id = %s order by t.n
"""


class VoucherPool:
    """Vouchers stand in `table`, their codes in the column `code`; `give` is what the two do differently."""

    name: str
    table: str
    code: str
    tables: LiteralString

    def __init__(self, url: str, workers: int = 4) -> None:
        self.connections = jobs.Connections(url)
        # Launch, vouchers and redemptions are on disk before anybody hears of them; the mail jobs hurry.
        self.hurried = jobs.Connections(url, hasty=True)
        self.huey = jobs.queue(self.table, url)
        self.workers = [jobs.queue(self.table, url, hasty=True) for _ in range(workers)]
        self.make, self.send = self._tasks(self.huey)
        for worker in self.workers:
            self._tasks(worker)
        self._mail, self._mailed, self._count_mailed, self._redeem, self._typed = (
            sql.SQL(statement).format(table=sql.Identifier(self.table), code=sql.Identifier(self.code))
            for statement in (MAIL, MAILED, COUNT_MAILED, REDEEM, TYPED)
        )

    def _tasks(self, huey: Any) -> tuple[Any, Any]:
        return huey.task(name="make")(self.make_vouchers), huey.task(name="send")(self.send_voucher)

    def set_up(self) -> None:
        with self.connections.one() as connection:
            connection.execute(OFFERS)
            connection.execute(self.tables)

    def new_offer(self) -> int:
        """An offer that can be launched; its id."""
        with self.connections.one() as connection:
            return first(connection.execute(NEW_OFFER))

    def launch(self, offer_id: int) -> bool:
        """What the request does: fire one job, once."""
        with self.connections.one() as connection:
            launched = connection.execute(
                "update special_offer set launched_at = now() where id = %s and launched_at is null", [offer_id]
            )
        if launched.rowcount:
            self.make(offer_id)
        return launched.rowcount == 1

    def make_vouchers(self, offer_id: int) -> None:
        """The job of the launch: a voucher and a mail job for every customer. It goes on where a killed one left off; a
        second one at the same time waits for each block and adds nothing to it."""
        with self.connections.one() as connection:
            while self._make_block(connection, offer_id):
                pass

    def _make_block(self, connection: psycopg.Connection, offer_id: int) -> bool:
        with connection.transaction():
            at = first(connection.execute("select made_to from special_offer where id = %s for update", [offer_id]))
            customers = [row[0] for row in connection.execute(PEOPLE, [at, BLOCK])]
            if not customers:
                connection.execute("update special_offer set made_at = now() where id = %s", [offer_id])
                return False
            self.give(connection, offer_id, customers)
            jobs.put_all(connection, self.huey, (self.send.s(offer_id, customer) for customer in customers))
            connection.execute("update special_offer set made_to = %s where id = %s", [customers[-1], offer_id])
            return True

    def give(self, connection: psycopg.Connection, offer_id: int, customers: Sequence[int]) -> None:
        """A voucher for each of these customers, in the transaction of the caller."""
        raise NotImplementedError

    def send_voucher(self, offer_id: int, customer_id: int) -> None:
        """The job of one customer: read what the mail says, send it (nowhere, here), mark it mailed."""
        with self.hurried.one() as connection:
            mail = connection.execute(self._mail, [customer_id, offer_id]).fetchone()
            if mail is not None:
                connection.execute(self._mailed, [mail[0]])

    def work(self, at_most: int) -> int:
        """Run so many jobs; how many there were."""
        return jobs.run(self.workers, at_most)

    def mailed(self, offer_id: int) -> int:
        """How many customers have got their mail."""
        with self.connections.one() as connection:
            return first(connection.execute(self._count_mailed, [offer_id]))

    def redeem(self, code: str, email: str) -> Decimal | None:
        """Use a voucher once, by its code and its customer's e-mail; the discount, or None when it is refused."""
        with self.connections.one() as connection:
            row = connection.execute(self._redeem, [code, email]).fetchone()
        return row[0] if row is not None else None

    def redeem_each(self, asks: Sequence[tuple[str, str]]) -> int:
        """Redeem one after the other; how many were not refused."""
        return sum(self.redeem(code, email) is not None for code, email in asks)

    def typed(self, offer_id: int, customers: Sequence[int]) -> list[tuple[str, str]]:
        """What these customers type: the code of each, and the e-mail."""
        with self.connections.one() as connection:
            return [(row[0], row[1]) for row in connection.execute(self._typed, [list(customers), offer_id])]

    def connect(self) -> None:
        """Open what the next step needs, so that it does not pay for that."""
        with self.connections.one(), self.hurried.one():
            for huey in (self.huey, *self.workers):
                huey.storage.sql("select 1")

    def disconnect(self) -> None:
        self.connections.close()
        self.hurried.close()
        for huey in (self.huey, *self.workers):
            huey.storage.close()


def first(cursor: psycopg.Cursor[tuple[int]] | psycopg.Cursor) -> int:
    """The one number that was asked for."""
    row = cursor.fetchone()
    if row is None:
        raise LookupError("there is no such row")
    return int(row[0])
