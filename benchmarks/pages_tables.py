"""The rows of staff pages besides offers and redemptions."""

from __future__ import annotations

import psycopg

from benchmarks import growth_tables

ANNOUNCED = 25
BATCH = 500
AUDIT_ENTRIES = 20_000

# The newest offers are announced, one every twelve days, to all customers or to their audience;
# one email in a thousand failed.
_CAMPAIGNS = """
insert into campaign (offer_id, audience_id, subject, text, status, total, prepared_to, prepared_at, sending_since,
  launched_at, launched_by, finished_at)
select o.id, o.audience_id, 'Summer', 'Hello', 'done', 0, %(customers)s, at, at, at, 'ann@example.com',
  at + interval '1 hour'
from (select *, now() - row_number() over (order by id desc) * interval '12 days' as at from offer
      order by id desc limit %(announced)s) o
order by o.id;
insert into campaign (offer_id, subject, text) select min(id), 'Summer', 'Hello' from offer
"""
_BATCHES = """
insert into batch (campaign_id, seq, first_id, last_id, gaps, window_start, window_end, status, sent)
select c.id, seq, 1 + seq * reach, (seq + 1) * reach, array[seq * reach + 1] || array_fill(step, array[%(batch)s - 1]),
  %(batch)s, %(batch)s, 'done', %(batch)s
from campaign c
cross join lateral (select case when c.audience_id is null then 1::bigint else 10 end as step) s
cross join lateral (select step * %(batch)s as reach) r
cross join lateral generate_series(0, %(customers)s / reach - 1) seq
where c.status = 'done';
update campaign c set total = coalesce((select sum(sent) from batch where campaign_id = c.id), 0);
update campaign set sent_in_batches = total where status = 'done'
"""
_ISSUES = """
insert into mail_issue (campaign_id, customer_id, state, smtp_code, text)
select c.id, n, 'failed', 550, 'no such mailbox' from campaign c, generate_series(1, %(customers)s, 1000) n
where c.status = 'done'
"""
_AUDIT_LOG = """
insert into audit_entry (at, actor, action, subject)
select now() - n * interval '10 minutes', 'ann@example.com', 'offer.changed', 'offer ' || n %% 200
from generate_series(%(entries)s, 1, -1) n
"""


def fill(connection: psycopg.Connection, customers: int, redemptions: int) -> None:
    """Insert all rows into a migrated database without any."""
    growth_tables.fill(connection, customers)
    growth_tables.redeem(connection, customers, redemptions)
    values = {"customers": customers, "announced": ANNOUNCED, "batch": BATCH, "entries": AUDIT_ENTRIES}
    with connection.transaction(), psycopg.ClientCursor(connection) as cursor:
        for statement in (_CAMPAIGNS, _BATCHES, _ISSUES, _AUDIT_LOG):
            cursor.execute(statement, values)
    connection.execute("vacuum (freeze, analyze) campaign, batch, mail_issue, audit_entry")


def fill_one_of_each(connection: psycopg.Connection) -> None:
    """Insert one row of each kind, so that every page has something to show."""
    with connection.transaction(), psycopg.ClientCursor(connection) as cursor:
        cursor.execute(_ONE)
    connection.execute("vacuum (freeze, analyze)")


_ONE = """
insert into customer (email, email_as_given, name)
values ('customer.1@example.com', 'Customer.1@example.com', 'Customer 1');
with made as (
  insert into offer (code, code_as_written, name, discount_type, percent, starts_at, frozen_at)
  select 'OFFER' || n, 'OFFER' || n, 'Offer ' || n, 'percent', 25, now() - interval '1 year', now()
  from generate_series(1, 2) n
  returning code, code_as_written, id
), counters as (
  insert into offer_counter (offer_id) select id from made
)
insert into offer_code (code, code_as_written, offer_id) select code, code_as_written, id from made;
insert into redemption (customer_id, offer_id, redeemed_at, channel) values (1, 1, now() - interval '2 days', 'link');
insert into redemption_hour (offer_id, hour, n) values (1, date_trunc('hour', now() - interval '2 days', 'UTC'), 1);
insert into redemption_total (offer_id, n) values (1, 1);
insert into hour_total (hour, n) values (date_trunc('hour', now() - interval '2 days', 'UTC'), 1);
update redemption_tally set counted_until = date_trunc('hour', now(), 'UTC');
insert into campaign (offer_id, subject, text, status, total, prepared_to, prepared_at, sending_since, launched_at,
  launched_by, finished_at)
select 1, 'Summer', 'Hello', 'done', 1, 1, at, at, at, 'ann@example.com', at + interval '1 hour'
from (select now() - interval '3 days' as at) x;
insert into campaign (offer_id, subject, text) values (2, 'Summer', 'Hello');
insert into batch (campaign_id, seq, first_id, last_id, gaps, window_start, window_end, status, sent)
values (1, 0, 1, 1, array[1], 1, 1, 'done', 1);
insert into audit_entry (actor, action, subject) values ('ann@example.com', 'offer.changed', 'offer 1')
"""
