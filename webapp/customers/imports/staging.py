"""Stage the rows of a customer import, and merge them in blocks.

Temporary tables need no privilege to create tables, write no WAL and disappear with their connection, even after a
crash. Nothing here commits: `customers.imports.processing` commits each step together with its progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, LiteralString

import psycopg
from flask_babel import gettext as _

from webapp.customers.imports.customer_rows import CUSTOMER_STAGING_FIELDS
from webapp.customers.imports.parse_results import Rejection
from webapp.customers.models import ACTIVITY_PRECISION

Connection = psycopg.Connection[tuple[Any, ...]]

TARGET_TABLE: LiteralString = "customer"
# Lines of the file merged in one transaction.
BLOCK_LINES = 100_000

_CREATE_STAGING_TABLES: tuple[LiteralString, ...] = (
    "set work_mem = '64MB'",
    "set temp_buffers = '32MB'",
    "set jit = off",
    """create temp table staged (
         line bigint not null, email text collate "C" not null, email_as_given text not null, name text, locale text,
         source_id text collate "C", audience text
       )""",
    "create temp table joining (line bigint not null, audience text not null)",
)

# If several rows have the same email address, the last one is used. Its empty cells are filled from the nearest earlier
# row that has a value, and the audiences of all rows are kept.
_DELETE_DUPLICATES: LiteralString = """
  with repeated as (
    select email, max(line) as last,
      (array_agg(name order by line desc) filter (where name is not null))[1] as name,
      (array_agg(locale order by line desc) filter (where locale is not null))[1] as locale,
      (array_agg(source_id order by line desc) filter (where source_id is not null))[1] as source_id
    from staged group by email having count(*) > 1
  ),
  filled as (
    update staged s set name = r.name, locale = r.locale, source_id = r.source_id from repeated r
    where s.email = r.email and s.line = r.last
      and (s.name, s.locale, s.source_id) is distinct from (r.name, r.locale, r.source_id)
  ),
  deleted as (
    delete from staged s using repeated r where s.email = r.email and s.line < r.last
    returning r.last, s.audience
  ),
  kept as (insert into joining select distinct last, audience from deleted where audience is not null)
  select count(*) from deleted
"""

# Rows whose source id belongs to another customer or to an earlier row of the block.
_SELECT_TAKEN_SOURCE_IDS: LiteralString = """
  with candidate as (
    select s.line, s.source_id,
      exists (select from customer c where c.source_id = s.source_id and c.email <> s.email) as taken
    from staged s where s.line > %(start)s and s.line <= %(end)s and s.source_id is not null
  )
  select line from candidate where taken
  union all
  select line from (
    select line, row_number() over (partition by source_id order by line) as n from candidate where not taken
  ) t where n > 1
"""
_REJECT_ROWS: tuple[LiteralString, ...] = (
    """
  insert into import_rejection (import_id, line, code, detail, row)
  select %(import_id)s, line, 'source_id_taken', %(source_id_taken)s,
    concat_ws(',', email_as_given, name, source_id, locale, audience)
  from staged where line > %(start)s and line <= %(end)s and line = any(%(lines)s)
""",
    "delete from staged where line > %(start)s and line <= %(end)s and line = any(%(lines)s)",
)

_INSERT: LiteralString = """
  insert into customer (email, email_as_given, name, locale, source_id)
  select email, email_as_given, coalesce(name, ''), locale, source_id
  from staged where line > %(start)s and line <= %(end)s order by email
"""

# An empty cell keeps the stored value. The suppression list is not touched. Only new rows were created in this
# transaction.
_UPSERT: LiteralString = """
  with merged as (
    insert into customer (email, email_as_given, name, locale, source_id)
    select email, email_as_given, coalesce(name, ''), locale, source_id
    from staged where line > %(start)s and line <= %(end)s order by email
    on conflict (email) do update set
      email_as_given = excluded.email_as_given,
      name = case when excluded.name = '' then customer.name else excluded.name end,
      locale = coalesce(excluded.locale, customer.locale),
      source_id = coalesce(excluded.source_id, customer.source_id),
      active_at = excluded.active_at
    where (customer.email_as_given, customer.name, customer.locale, customer.source_id) is distinct from (
      excluded.email_as_given,
      case when excluded.name = '' then customer.name else excluded.name end,
      coalesce(excluded.locale, customer.locale),
      coalesce(excluded.source_id, customer.source_id)
    )
    returning created_at
  )
  select count(*) filter (where created_at = now()), count(*) filter (where created_at <> now()),
    (select count(*) from staged where line > %(start)s and line <= %(end)s)
  from merged
"""

# Unchanged customers are active too (see `customer.active_at`). In most imports none is stale, which the index shows.
# They are updated in a statement of their own, because Citus does not update a reference table from a temporary one.
_SELECT_STALE_CUSTOMERS: LiteralString = """
  select c.id from staged s, customer c
  where s.line > %(start)s and s.line <= %(end)s and c.email = s.email and c.erased_at is null
    and c.active_at < now() - %(precision)s
    and exists (select from customer where erased_at is null and active_at < now() - %(precision)s)
"""
_RECORD_ACTIVITY: LiteralString = """
  update customer set active_at = now()
  where id = any(%(ids)s) and erased_at is null and active_at < now() - %(precision)s
"""

_ADD_TO_NAMED_AUDIENCES: LiteralString = """
  insert into audience_member (audience_id, customer_id)
  select a.id, c.id
  from (
    select line, email, audience from staged where audience is not null
    union all
    select s.line, s.email, j.audience from joining j join staged s on s.line = j.line
  ) membership
  join audience a on a.name = membership.audience
  join customer c on c.email = membership.email
  where membership.line > %(start)s and membership.line <= %(end)s
  on conflict do nothing
"""

_ADD_TO_AUDIENCE: LiteralString = """
  insert into audience_member (audience_id, customer_id)
  select %(audience_id)s, c.id from staged s join customer c on c.email = s.email
  where s.line > %(start)s and s.line <= %(end)s
  on conflict do nothing
"""


class MergeStrategy(Enum):
    """The conflicts that a merge handles.

    Each strategy needs one more lookup per row than the one before.
    """

    INSERT = 1  # none: all email addresses are new
    UPSERT = 2  # email addresses of existing customers
    UPSERT_CHECKING_SOURCE_IDS = 3  # also source ids of other customers


@dataclass(frozen=True)
class MergeCounts:
    """Numbers of created, updated, unchanged and rejected rows of a block."""

    created: int
    updated: int
    unchanged: int
    rejected: int


def create_staging_tables(connection: Connection) -> None:
    """Create the temporary tables and tune the session for the merge."""
    for statement in _CREATE_STAGING_TABLES:
        connection.execute(statement)


def copy_rows(connection: Connection, rows: Sequence[str]) -> None:
    """Copy rows from the parser into the staging table."""
    if not rows:
        return
    text = "\n".join(rows).replace("\\", "\\\\")
    with connection.cursor().copy(f"copy staged ({', '.join(CUSTOMER_STAGING_FIELDS)}) from stdin (null '')") as copy:
        copy.write(text + "\n")


def copy_rejections(connection: Connection, import_id: int, rejections: Sequence[Rejection]) -> None:
    """Store rejections from the parser."""
    with connection.cursor().copy("copy import_rejection (import_id, line, code, detail, row) from stdin") as copy:
        for rejection in rejections:
            copy.write_row((import_id, *rejection))


def deduplicate_rows(connection: Connection) -> int:
    """Delete rows replaced by a later row of the file; return their number.

    All rows must be staged.
    """
    duplicates = fetch_one(connection, _DELETE_DUPLICATES, {})[0]
    # Rows are stored in line order, so a small BRIN index is enough to find a block.
    connection.execute("create index on staged using brin (line)")
    connection.execute("analyze staged (line, email)")
    connection.execute("analyze joining")
    return int(duplicates)


# Erased customers are suppressed under a hash. When a customer is imported with the same address, the plain address
# replaces the hash, so that the suppression list shows and counts it.
_SELECT_HASHED_ADDRESSES: LiteralString = """
  select h.email, s.email from staged s, suppression h
  where s.line > %(start)s and s.line <= %(end)s
    and h.email = 'sha256:' || encode(sha256(convert_to(s.email, 'UTF8')), 'hex')
"""
_DELETE_HASHES: LiteralString = """
  delete from suppression where email = any(%(hashes)s) returning email, reason, at, source
"""
_RESTORE_SUPPRESSIONS: LiteralString = """
  insert into suppression as existing (email, reason, at, source)
  select * from unnest(
    cast(%(emails)s as text[]), cast(%(reasons)s as text[]), cast(%(times)s as timestamptz[]),
    cast(%(sources)s as text[])
  )
  on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source, words = ''
  where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
    > array_position(array['bounced', 'unsubscribed', 'complained'], existing.reason)
"""


def restore_suppressions(connection: Connection, start: int, end: int) -> None:
    """Replace hashed suppressions with the addresses in `(start, end]`.

    Cheap when there are no hashes.
    """
    has_hashes = "select exists (select from suppression where email >= 'sha256:' and email < 'sha256;')"
    if not fetch_one(connection, has_hashes, {})[0]:
        return
    addresses: dict[str, str] = dict(
        connection.execute(_SELECT_HASHED_ADDRESSES, {"start": start, "end": end}).fetchall()
    )
    deleted = connection.execute(_DELETE_HASHES, {"hashes": list(addresses)}).fetchall() if addresses else []
    if deleted:
        hashes, reasons, times, sources = map(list, zip(*deleted, strict=True))
        emails = [addresses[key] for key in hashes]
        values = {"emails": emails, "reasons": reasons, "times": times, "sources": sources}
        connection.execute(_RESTORE_SUPPRESSIONS, values)


def list_staged_audience_names(connection: Connection, limit: int) -> list[str]:
    """Return the distinct audience names in the staged rows, at most `limit` of them."""
    statement = """
      select audience from staged where audience is not null
      union select audience from joining limit %(limit)s
    """
    return [name for (name,) in connection.execute(statement, {"limit": limit})]


def find_last_line(connection: Connection) -> int:
    """Return the largest line number of the staged rows, 0 without rows."""
    return int(fetch_one(connection, "select coalesce(max(line), 0) from staged", {})[0])


def merge_rows(connection: Connection, import_id: int, start: int, end: int, strategy: MergeStrategy) -> MergeCounts:
    """Merge the rows of the lines in `(start, end]`.

    :raises psycopg.errors.UniqueViolation: on a conflict that the strategy does not handle.
    """
    params: dict[str, Any] = {"start": start, "end": end, "import_id": import_id}
    if strategy is MergeStrategy.INSERT:
        return MergeCounts(connection.execute(_INSERT, params).rowcount, 0, 0, 0)
    rejected = 0
    if strategy is MergeStrategy.UPSERT_CHECKING_SOURCE_IDS:
        # Partitions take turns, so that each sees the source ids that the other one has merged.
        connection.execute("select pg_advisory_xact_lock(%(import_id)s)", params)
        rejected = _reject_taken_source_ids(connection, params)
    created, updated, staged = fetch_one(connection, _UPSERT, params)
    _record_activity(connection, params)
    return MergeCounts(created, updated, staged - created - updated, rejected)


def _reject_taken_source_ids(connection: Connection, params: dict[str, Any]) -> int:
    lines = [line for (line,) in connection.execute(_SELECT_TAKEN_SOURCE_IDS, params)]
    if lines:
        message = _("Another customer has this source ID. Correct the file, or edit that customer.")
        for statement in _REJECT_ROWS:
            connection.execute(statement, params | {"lines": lines, "source_id_taken": message})
    return len(lines)


def _record_activity(connection: Connection, params: dict[str, Any]) -> None:
    params = params | {"precision": ACTIVITY_PRECISION}
    ids = [customer_id for (customer_id,) in connection.execute(_SELECT_STALE_CUSTOMERS, params)]
    if ids:
        connection.execute(_RECORD_ACTIVITY, params | {"ids": ids})


def add_to_named_audiences(connection: Connection, start: int, end: int) -> None:
    """Add the customers in `(start, end]` to the audiences named in the file."""
    connection.execute(_ADD_TO_NAMED_AUDIENCES, {"start": start, "end": end})


def add_to_audience(connection: Connection, start: int, end: int, audience_id: int) -> None:
    """Add the customers of the lines in `(start, end]` to one audience."""
    connection.execute(_ADD_TO_AUDIENCE, {"start": start, "end": end, "audience_id": audience_id})


def fetch_one(connection: Connection, statement: LiteralString, params: dict[str, Any]) -> tuple[Any, ...]:
    """Return the only row of an aggregate query."""
    row = connection.execute(statement, params).fetchone()
    assert row is not None  # noqa: S101 (an aggregate query always returns a row)
    return row
