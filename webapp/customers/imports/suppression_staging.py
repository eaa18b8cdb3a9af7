"""The statements of an import of addresses that must not be mailed. See `staging`, whose steps they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from webapp.customers.imports.parser import SUPPRESSION_STAGING_FIELDS
from webapp.customers.imports.staging import Connection, MergeCounts, MergeStrategy, fetch_one

TARGET_TABLE: LiteralString = "suppression"
_HAS_HASHES: LiteralString = "select exists (select from staged where email like 'sha256:%%')"
# An exported list has the hashes of those who were erased. Who is a customer again stands on it by address, so that
# whoever counts from the list's side finds them. One pass over the customers, only where there is a hash.
_RESOLVE_HASHES: LiteralString = """
  update staged s set email = c.email, named = true from customer c
  where s.email like 'sha256:%%' and s.email = 'sha256:' || encode(sha256(convert_to(c.email, 'UTF8')), 'hex')
"""
# Of several rows about one address the strongest reason counts.
_DELETE_DUPLICATES: LiteralString = """
  with ranked as (
    select ctid as place, row_number() over (
      partition by email
      order by array_position(array['complained', 'unsubscribed', 'bounced'], reason), line
    ) as n from staged
  ),
  gone as (delete from staged using ranked where staged.ctid = ranked.place and ranked.n > 1 returning 1)
  select count(*) from gone
"""
# Whoever is erased at this moment, or changes the address, must not be named by it: then the hash stays.
_MERGE: LiteralString = """
  with found as (
    select email from customer
    -- Most lists name nobody; then the customers are not looked at.
    where (select exists (select from staged where line > %(start)s and line <= %(end)s and named))
      and email in (select email from staged where line > %(start)s and line <= %(end)s and named)
    for share
  ),
  merged as (
    insert into suppression as known (email, reason, source)
    select case when not s.named or s.email in (select email from found) then s.email
      else 'sha256:' || encode(sha256(convert_to(s.email, 'UTF8')), 'hex') end, s.reason, 'import'
    from staged s where s.line > %(start)s and s.line <= %(end)s order by 1
    on conflict (email) do update set reason = excluded.reason, at = now(), source = excluded.source, words = ''
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    returning (xmax = 0) as is_new
  )
  select count(*) filter (where is_new), count(*) filter (where not is_new),
    (select count(*) from staged where line > %(start)s and line <= %(end)s)
  from merged
"""


def create_staging_tables(connection: Connection) -> None:
    connection.execute("set work_mem = '64MB'")
    connection.execute("set temp_buffers = '32MB'")
    connection.execute(
        'create temp table staged (line bigint not null, email text collate "C", reason text, '
        "named boolean not null default false)"
    )


def copy_rows(connection: Connection, rows: Sequence[str]) -> None:
    """Rows as `intake` has them into the staging table."""
    if rows:
        with connection.cursor().copy(
            f"copy staged ({', '.join(SUPPRESSION_STAGING_FIELDS)}) from stdin (null '')"
        ) as copy:
            copy.write("\n".join(rows).replace("\\", "\\\\") + "\n")


def deduplicate_rows(connection: Connection) -> int:
    """Once the whole file is staged: name the customers behind hashes, drop the rows that another one stands in for,
    and say how many of those there were."""
    if fetch_one(connection, _HAS_HASHES, {})[0]:
        connection.execute(_RESOLVE_HASHES, {})
    return int(fetch_one(connection, _DELETE_DUPLICATES, {})[0])


def merge_rows(connection: Connection, import_id: int, start: int, end: int, expect: MergeStrategy) -> MergeCounts:
    """Merge the addresses of the lines in `(start, end]`. Nobody is taken off the list by an import."""
    created, updated, staged = fetch_one(connection, _MERGE, {"start": start, "end": end})
    return MergeCounts(created, updated, staged - created - updated, 0)
