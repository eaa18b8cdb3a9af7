"""Tables as they are after years: offers, customers and redemptions.

The keys come in a realistic order: times ascending, customers in random order, offers in turn.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

from benchmarks import customers

OFFERS = 200
# Every tenth offer has its own audience of every tenth customer.
AUDIENCES = OFFERS // 10

_OFFERS = """
insert into audience (name) select 'Audience ' || n from generate_series(1, %(audiences)s) n;
with made as (
  insert into offer (code, code_as_written, name, discount_type, percent, starts_at, ends_at, frozen_at, audience_id)
  select 'OFFER' || n, 'OFFER' || n, 'Offer ' || n, 'percent', 25, now() - interval '1 year',
    now() + interval '1 year' + n * interval '1 hour', now() - interval '1 year',
    case when n %% 10 = 0 then n / 10 end
  from generate_series(1, %(offers)s) n
  returning code, code_as_written, id
), counters as (
  insert into offer_counter (offer_id) select id from made
)
insert into offer_code (code, code_as_written, offer_id) select code, code_as_written, id from made
"""
_MEMBERS = """
insert into audience_member (audience_id, customer_id)
select a.id, n from audience a, generate_series(1, %(customers)s, 10) n
"""
# Each pair of offer and customer occurs once: in each cycle over the customers, the offers shift by one.
_REDEMPTIONS: LiteralString = """
insert into redemption (customer_id, offer_id, redeemed_at, channel{columns})
select 1 + p %% %(customers)s, 1 + (p %% %(customers)s + p / %(customers)s) %% %(offers)s,
  now() - interval '300 days' * (1 - n / %(rows)s::float8), {values}
from (
  select p, row_number() over (order by hashint8extended(p, 7)) as n from generate_series(0, %(rows)s::bigint - 1) p
) shuffled
order by n
"""
_BARE = _REDEMPTIONS.format(columns="", values="'link'")
_FULL = _REDEMPTIONS.format(
    columns=", api_key_id, order_id, idempotency_key, body_hash",
    values="'api', 1, 'A-' || 1000000 + n, "
    "encode(substr(sha256(int8send(n)), 1, 9), 'base64'), substr(sha256(int8send(p)), 1, 8)",
)


def fill(connection: psycopg.Connection, customer_count: int) -> None:
    """Insert customers, open offers and audiences into a migrated database."""
    customers.fill(connection, customer_count)
    with connection.transaction(), psycopg.ClientCursor(connection) as cursor:
        cursor.execute(_OFFERS, {"offers": OFFERS, "audiences": AUDIENCES})
        cursor.execute(_MEMBERS, {"customers": customer_count})
    connection.execute("vacuum (freeze, analyze) offer, offer_code, audience, audience_member")


def redeem(connection: psycopg.Connection, customer_count: int, rows: int, full: bool = False) -> None:
    """Insert redemptions of these customers, with an order and a key each if `full`.

    They are also counted by the hour, as the periodic task does.
    """
    if rows > customer_count * OFFERS:
        raise ValueError(f"{customer_count} customers can redeem {OFFERS} offers only once each")
    values = {"customers": customer_count, "offers": OFFERS, "rows": rows}
    with connection.transaction(), psycopg.ClientCursor(connection) as cursor:
        cursor.execute(_FULL if full else _BARE, values)
        cursor.execute(_COUNTED)
    connection.execute("vacuum (freeze, analyze) redemption, redemption_hour, redemption_total, hour_total")


_COUNTED = """
insert into redemption_hour (offer_id, hour, n)
select offer_id, date_trunc('hour', redeemed_at, 'UTC') as hour, count(*) from redemption
where redeemed_at < date_trunc('hour', now(), 'UTC') group by 1, 2;
insert into redemption_total (offer_id, n) select offer_id, sum(n) from redemption_hour group by 1;
insert into hour_total (hour, n) select hour, sum(n) from redemption_hour group by 1;
update redemption_tally set counted_until = date_trunc('hour', now(), 'UTC')
"""
