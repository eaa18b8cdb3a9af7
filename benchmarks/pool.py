"""The common parts of both voucher pools.

Offers, a launch that enqueues a job, a mail job and a row per customer.

They are optimised more than usual: no UUIDs, no foreign keys, blocks of 10,000, one statement per step, an index for
every lookup. They can record the same about a redemption as Onecode. Only the row per customer is inherent.
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
CUSTOMERS = """
select id from customer where id > %s and erased_at is null
  and not exists (select from suppression s where s.email = customer.email)
order by id limit %s
"""
REDEMPTION_COLUMNS = """
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
# Free space on each page for the second version of a row, so that marking it as mailed updates no index. Between 50 and
# 100, a higher value saves a little disk, a lower one a little WAL.
FILLFACTOR = "fillfactor = 90"
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
REDEEM_REQUESTS = """
select v.{code}, c.email from unnest(%s::bigint[]) with ordinality as t(id, n)
join customer c on c.id = t.id join {table} v on v.customer_id = c.id and v.offer_id = %s order by t.n
"""


class VoucherPool:
    """Vouchers are in `table`, codes in its column `code`; the pools differ in `assign_vouchers`."""

    name: str
    table: str
    code: str
    tables: LiteralString

    def __init__(self, url: str, workers: int = 4) -> None:
        self.connections = jobs.ConnectionPool(url)
        # Launch, vouchers and redemptions are on disk before they are confirmed; mail jobs commit asynchronously.
        self.async_connections = jobs.ConnectionPool(url, async_commit=True)
        self.huey = jobs.queue(self.table, url)
        self.workers = [jobs.queue(self.table, url, async_commit=True) for _ in range(workers)]
        self.make, self.send = self._tasks(self.huey)
        for worker in self.workers:
            self._tasks(worker)
        self._mail, self._mailed, self._count_mailed, self._redeem, self._redeem_requests = (
            sql.SQL(statement).format(table=sql.Identifier(self.table), code=sql.Identifier(self.code))
            for statement in (MAIL, MAILED, COUNT_MAILED, REDEEM, REDEEM_REQUESTS)
        )

    def _tasks(self, huey: Any) -> tuple[Any, Any]:
        return huey.task(name="make")(self.make_vouchers), huey.task(name="send")(self.send_voucher)

    def set_up(self) -> None:
        with self.connections.acquire() as connection:
            connection.execute(OFFERS)
            connection.execute(self.tables)

    def new_offer(self) -> int:
        """Create an offer that can be launched; return its id."""
        with self.connections.acquire() as connection:
            return fetch_int(connection.execute(NEW_OFFER))

    def launch(self, offer_id: int) -> bool:
        """Handle the launch request: enqueue one job; return False the second time."""
        with self.connections.acquire() as connection:
            launched = connection.execute(
                "update special_offer set launched_at = now() where id = %s and launched_at is null", [offer_id]
            )
        if launched.rowcount:
            self.make(offer_id)
        return launched.rowcount == 1

    def make_vouchers(self, offer_id: int) -> None:
        """Run the launch job: create a voucher and a mail job for every customer.

        It continues where a killed one stopped; a concurrent one waits for each block and adds nothing to it.
        """
        with self.connections.acquire() as connection:
            while self._make_block(connection, offer_id):
                pass

    def _make_block(self, connection: psycopg.Connection, offer_id: int) -> bool:
        with connection.transaction():
            at = fetch_int(connection.execute("select made_to from special_offer where id = %s for update", [offer_id]))
            customers = [row[0] for row in connection.execute(CUSTOMERS, [at, BLOCK])]
            if not customers:
                connection.execute("update special_offer set made_at = now() where id = %s", [offer_id])
                return False
            self.assign_vouchers(connection, offer_id, customers)
            jobs.enqueue_all(connection, self.huey, (self.send.s(offer_id, customer) for customer in customers))
            connection.execute("update special_offer set made_to = %s where id = %s", [customers[-1], offer_id])
            return True

    def assign_vouchers(self, connection: psycopg.Connection, offer_id: int, customers: Sequence[int]) -> None:
        """Create a voucher for each customer, in the transaction of the caller."""
        raise NotImplementedError

    def send_voucher(self, offer_id: int, customer_id: int) -> None:
        """Run a mail job: read the email's data, discard it, mark the voucher."""
        with self.async_connections.acquire() as connection:
            mail = connection.execute(self._mail, [customer_id, offer_id]).fetchone()
            if mail is not None:
                connection.execute(self._mailed, [mail[0]])

    def run_jobs(self, at_most: int) -> int:
        """Run at most `at_most` jobs; return how many were run."""
        return jobs.run(self.workers, at_most)

    def count_mailed(self, offer_id: int) -> int:
        """Count the customers whose email was sent."""
        with self.connections.acquire() as connection:
            return fetch_int(connection.execute(self._count_mailed, [offer_id]))

    def redeem(self, code: str, email: str) -> Decimal | None:
        """Redeem a voucher by code and address; return the discount, None if refused."""
        with self.connections.acquire() as connection:
            row = connection.execute(self._redeem, [code, email]).fetchone()
        return row[0] if row is not None else None

    def redeem_each(self, requests: Sequence[tuple[str, str]]) -> int:
        """Redeem one after the other; return how many were not refused."""
        return sum(self.redeem(code, email) is not None for code, email in requests)

    def redeem_requests(self, offer_id: int, customers: Sequence[int]) -> list[tuple[str, str]]:
        """The (code, email address) that each of these customers types."""
        with self.connections.acquire() as connection:
            return [(row[0], row[1]) for row in connection.execute(self._redeem_requests, [list(customers), offer_id])]

    def connect(self) -> None:
        """Open the connections that the next step needs, so that they are not measured."""
        with self.connections.acquire(), self.async_connections.acquire():
            for huey in (self.huey, *self.workers):
                huey.storage.sql("select 1")

    def disconnect(self) -> None:
        self.connections.close()
        self.async_connections.close()
        for huey in (self.huey, *self.workers):
            huey.storage.close()


def fetch_int(cursor: psycopg.Cursor[tuple[int]] | psycopg.Cursor) -> int:
    """Return the integer of the first row and column."""
    row = cursor.fetchone()
    if row is None:
        raise LookupError("there is no such row")
    return int(row[0])
