"""The second baseline, the voucher bank.

Codes are created in bulk and are `available` until they are `picked_up`.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from benchmarks import codes, jobs
from benchmarks.pool import BLOCK, FILLFACTOR, REDEMPTION_COLUMNS, VoucherPool

# Each transaction locks the codes that it takes and skips those locked by others: no code is given twice, none waits.
PICK_UP = """
with free as materialized (
  select id, row_number() over () as n from (
    select id from voucher_bank where status = 'available' order by id limit %(n)s for update skip locked
  ) locked
)
update voucher_bank b
set status = 'picked_up', offer_id = %(offer)s, customer_id = t.customer_id, picked_up_at = now()
from free join unnest(%(customers)s::bigint[]) with ordinality as t(customer_id, n) using (n)
where b.id = free.id
"""


class OutOfCodes(Exception):
    """Fewer codes are available than customers need one."""


class Bank(VoucherPool):
    name = "voucher bank"
    table = "voucher_bank"
    code = "voucher_code"
    tables = f"""
    create table voucher_bank (
      id bigint generated always as identity primary key,
      voucher_code text collate "C" not null unique,
      status text not null default 'available' check (status in ('available', 'picked_up')),
      offer_id bigint,
      customer_id bigint,
      picked_up_at timestamptz,
      mailed_at timestamptz,
      check ((status = 'picked_up') = (customer_id is not null)),
      {REDEMPTION_COLUMNS}
    ) with ({FILLFACTOR});
    create index voucher_bank_available on voucher_bank (id) where status = 'available';
    create unique index voucher_bank_customer on voucher_bank (customer_id, offer_id) where customer_id is not null;
    create index voucher_bank_redeemed on voucher_bank (offer_id, redeemed_at) where redeemed_at is not null;
    """

    def fill(self, n: int) -> None:
        """Add n new codes to the bank. Codes that exist already are replaced by others."""
        with self.connections.acquire() as connection:
            while n > 0:
                n -= sum(self._add(connection, part) for part in jobs.slices(codes.generate(n), BLOCK))

    @staticmethod
    def _add(connection: psycopg.Connection, new: list[str]) -> int:
        return connection.execute(
            "insert into voucher_bank (voucher_code) select unnest(%s::text[]) on conflict do nothing", [new]
        ).rowcount

    def assign_vouchers(self, connection: psycopg.Connection, offer_id: int, customers: Sequence[int]) -> None:
        """Assign an available code to each customer.

        :raises OutOfCodes: when the bank has too few codes; then none is assigned.
        """
        picked = connection.execute(
            PICK_UP, {"n": len(customers), "offer": offer_id, "customers": list(customers)}
        ).rowcount
        if picked < len(customers):
            raise OutOfCodes(f"{len(customers) - picked} codes are missing")
