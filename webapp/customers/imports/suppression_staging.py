"""Stage and merge an import of the suppression list, like `staging`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from webapp.customers.imports.csv_rows import SUPPRESSION_STAGING_FIELDS
from webapp.customers.imports.staging import Connection, MergeCounts, MergeStrategy, fetch_one

TARGET_TABLE: LiteralString = "suppression"
_HAS_HASHES: LiteralString = "select exists (select from staged where email like 'sha256:%%')"
# An exported list contains hashes of erased customers. When a customer has the address again, the plain address is
# used, so that the suppression list shows and counts it. Needs one pass over the customers, only if there is a hash.
_RESOLVE_HASHES: LiteralString = """
  update staged s set email = c.email, named = true from customer c
  where s.email like 'sha256:%%' and s.email = 'sha256:' || encode(sha256(convert_to(c.email, 'UTF8')), 'hex')
"""
# If several rows have the same email address, the strongest reason is used.
_DELETE_DUPLICATES: LiteralString = """
  with ranked as (
    select ctid as row_ctid, row_number() over (
      partition by email
      order by array_position(array['complained', 'unsubscribed', 'bounced'], reason), line
    ) as n from staged
  ),
  deleted as (delete from staged using ranked where staged.ctid = ranked.row_ctid and ranked.n > 1 returning 1)
  select count(*) from deleted
"""
# The address of a customer who is erased or whose address is changed concurrently must not be stored in plain text
# again: then the hash is stored.
_MERGE: LiteralString = """
  with block as (
    select email, reason, named from staged where line > %(start)s and line <= %(end)s
  ),
  current_customer as (
    select email from customer
    -- Most lists contain no resolved hash; then the customers are not scanned.
    where (select exists (select from block where named)) and email in (select email from block where named)
    for share
  ),
  entry as (
    select case when not s.named or s.email in (select email from current_customer) then s.email
      else 'sha256:' || encode(sha256(convert_to(s.email, 'UTF8')), 'hex') end as email, s.reason
    from block s
  ),
  known as (select entry.email from entry join suppression on suppression.email = entry.email),
  merged as (
    insert into suppression as existing (email, reason, source)
    select email, reason, 'import' from entry order by 1
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source, words = ''
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], existing.reason)
    returning email
  )
  select count(*) filter (where known.email is null), count(known.email),
    (select count(*) from block)
  from merged left join known on known.email = merged.email
"""


def create_staging_tables(connection: Connection) -> None:
    """Create the temporary table and tune the session for the merge."""
    connection.execute("set work_mem = '64MB'")
    connection.execute("set temp_buffers = '32MB'")
    connection.execute(
        'create temp table staged (line bigint not null, email text collate "C", reason text, '
        "named boolean not null default false)"
    )


def copy_rows(connection: Connection, rows: Sequence[str]) -> None:
    """Copy rows from the parser into the staging table."""
    if rows:
        with connection.cursor().copy(
            f"copy staged ({', '.join(SUPPRESSION_STAGING_FIELDS)}) from stdin (null '')"
        ) as copy:
            copy.write("\n".join(rows).replace("\\", "\\\\") + "\n")


def deduplicate_rows(connection: Connection) -> int:
    """Resolve hashes of current customers; delete and count duplicate addresses."""
    if fetch_one(connection, _HAS_HASHES, {})[0]:
        connection.execute(_RESOLVE_HASHES, {})
    return int(fetch_one(connection, _DELETE_DUPLICATES, {})[0])


def merge_rows(connection: Connection, import_id: int, start: int, end: int, strategy: MergeStrategy) -> MergeCounts:
    """Merge the addresses of the lines in `(start, end]`.

    An import never removes an entry. The counts are approximate: an entry that is added concurrently counts as created,
    although the import updates it.
    """
    created, updated, staged = fetch_one(connection, _MERGE, {"start": start, "end": end})
    return MergeCounts(created, updated, staged - created - updated, 0)
