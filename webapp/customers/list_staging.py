"""The statements of an import of addresses that must not be mailed. See `staging`, whose steps they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from webapp.customers.intake import LIST_FIELDS
from webapp.customers.staging import Connection, Expect, Merged, one

TABLE: LiteralString = "suppression"
# Of several rows about one address the strongest reason counts.
_DROP_DUPLICATES: LiteralString = """
  with ranked as (
    select ctid as place, row_number() over (
      partition by email
      order by array_position(array['complained', 'unsubscribed', 'bounced'], reason), line
    ) as n from staged
  ),
  gone as (delete from staged using ranked where staged.ctid = ranked.place and ranked.n > 1 returning 1)
  select count(*) from gone
"""
_MERGE: LiteralString = """
  with merged as (
    insert into suppression as known (email, reason, source)
    select email, reason, 'import' from staged where line > %(start)s and line <= %(end)s order by email
    on conflict (email) do update set reason = excluded.reason, at = now(), source = excluded.source, words = ''
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    returning (xmax = 0) as is_new
  )
  select count(*) filter (where is_new), count(*) filter (where not is_new),
    (select count(*) from staged where line > %(start)s and line <= %(end)s)
  from merged
"""


def prepare(connection: Connection) -> None:
    connection.execute("set work_mem = '64MB'")
    connection.execute("set temp_buffers = '32MB'")
    connection.execute('create temp table staged (line bigint not null, email text collate "C", reason text)')


def copy_rows(connection: Connection, rows: Sequence[str]) -> None:
    """Rows as `intake` has them into the staging table."""
    if rows:
        with connection.cursor().copy(f"copy staged ({', '.join(LIST_FIELDS)}) from stdin (null '')") as copy:
            copy.write("\n".join(rows).replace("\\", "\\\\") + "\n")


def sort_out(connection: Connection) -> int:
    """Once the whole file is staged: drop the rows that another one stands in for, and say how many there were."""
    return int(one(connection, _DROP_DUPLICATES, {})[0])


def merge(connection: Connection, import_id: int, start: int, end: int, expect: Expect) -> Merged:
    """Merge the addresses of the lines in `(start, end]`. Nobody is taken off the list by an import."""
    created, updated, staged = one(connection, _MERGE, {"start": start, "end": end})
    return Merged(created, updated, staged - created - updated, 0)
