"""The first baseline, the classic voucher pool.

The launch creates a voucher and a queued job for every customer.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg.errors import UniqueViolation

from benchmarks import codes
from benchmarks.pool import FILLFACTOR, REDEMPTION_COLUMNS, VoucherPool

COPY = "copy voucher (offer_id, customer_id, code) from stdin"


class Eager(VoucherPool):
    name = "eager pool"
    table = "voucher"
    code = "code"
    # The last index serves the list of an offer's redemptions, as in Onecode.
    tables = f"""
    create table voucher (
      id bigint generated always as identity primary key,
      offer_id bigint not null,
      customer_id bigint not null,
      code text collate "C" not null unique,
      created_at timestamptz not null default now(),
      mailed_at timestamptz,
      unique (customer_id, offer_id),
      {REDEMPTION_COLUMNS}
    ) with ({FILLFACTOR});
    create index voucher_redeemed on voucher (offer_id, redeemed_at) where redeemed_at is not null;
    """

    def assign_vouchers(self, connection: psycopg.Connection, offer_id: int, customers: Sequence[int]) -> None:
        """Insert by COPY, which writes the least WAL.

        If a code exists already (once in many millions), all codes are generated again.
        """
        for last in (False, False, True):
            try:
                with connection.transaction(), connection.cursor() as cursor, cursor.copy(COPY) as copy:
                    for customer, code in zip(customers, codes.generate(len(customers)), strict=True):
                        copy.write_row((offer_id, customer, code))
                return
            except UniqueViolation as error:
                if last or error.diag.constraint_name != "voucher_code_key":
                    raise
