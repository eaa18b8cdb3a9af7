"""The statements of an import: a staging table of the connection's own, and blocks of it merged into the customers.

A TEMP table needs no right to create tables, writes no WAL and is gone with its connection, also when that is killed.
Nothing here commits: `import_actions` does, together with the progress it writes down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, LiteralString

import psycopg

from webapp.customers.imports.parser import CUSTOMER_STAGING_FIELDS, Rejection

Connection = psycopg.Connection[tuple[Any, ...]]

TARGET_TABLE: LiteralString = "customer"
# Lines of the file in one transaction of the merge.
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

# Of several rows about one e-mail the last one counts; where it has an empty cell, the last before it that has not.
# What the others say about audiences is added to it.
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
  gone as (
    delete from staged s using repeated r where s.email = r.email and s.line < r.last
    returning r.last, s.audience
  ),
  kept as (insert into joining select distinct last, audience from gone where audience is not null)
  select count(*) from gone
"""

# A source id that another customer has, or that an earlier row of the block brings, keeps a row out.
_REJECT_TAKEN_SOURCE_IDS: LiteralString = """
  with candidate as (
    select s.line, s.source_id,
      exists (select from customer c where c.source_id = s.source_id and c.email <> s.email) as taken
    from staged s where s.line > %(start)s and s.line <= %(end)s and s.source_id is not null
  ),
  bad as (
    select line from candidate where taken
    union all
    select line from (
      select line, row_number() over (partition by source_id order by line) as n from candidate where not taken
    ) t where n > 1
  ),
  gone as (delete from staged s using bad where s.line = bad.line returning s.*),
  told as (
    insert into import_rejection (import_id, line, code, detail, row)
    select %(import_id)s, line, 'source_id_taken',
      'Another customer has this source id. Correct it here or there.',
      concat_ws(',', email_as_given, name, source_id, locale, audience)
    from gone
  )
  select count(*) from gone
"""

_INSERT: LiteralString = """
  insert into customer (email, email_as_given, name, locale, source_id)
  select email, email_as_given, coalesce(name, ''), locale, source_id
  from staged where line > %(start)s and line <= %(end)s order by email
"""

# An empty cell leaves what is known as it is; nothing here takes anybody off the list of those not to be mailed.
_UPSERT: LiteralString = """
  with merged as (
    insert into customer (email, email_as_given, name, locale, source_id)
    select email, email_as_given, coalesce(name, ''), locale, source_id
    from staged where line > %(start)s and line <= %(end)s order by email
    on conflict (email) do update set
      email_as_given = excluded.email_as_given,
      name = case when excluded.name = '' then customer.name else excluded.name end,
      locale = coalesce(excluded.locale, customer.locale),
      source_id = coalesce(excluded.source_id, customer.source_id)
    where (customer.email_as_given, customer.name, customer.locale, customer.source_id) is distinct from (
      excluded.email_as_given,
      case when excluded.name = '' then customer.name else excluded.name end,
      coalesce(excluded.locale, customer.locale),
      coalesce(excluded.source_id, customer.source_id)
    )
    returning (xmax = 0) as is_new
  )
  select count(*) filter (where is_new), count(*) filter (where not is_new),
    (select count(*) from staged where line > %(start)s and line <= %(end)s)
  from merged
"""

_ADD_TO_NAMED_AUDIENCES: LiteralString = """
  insert into audience_member (audience_id, customer_id)
  select a.id, c.id
  from (
    select line, email, audience from staged where audience is not null
    union all
    select s.line, s.email, j.audience from joining j join staged s on s.line = j.line
  ) wanted
  join audience a on a.name = wanted.audience
  join customer c on c.email = wanted.email
  where wanted.line > %(start)s and wanted.line <= %(end)s
  on conflict do nothing
"""

_ADD_TO_AUDIENCE: LiteralString = """
  insert into audience_member (audience_id, customer_id)
  select %(audience_id)s, c.id from staged s join customer c on c.email = s.email
  where s.line > %(start)s and s.line <= %(end)s
  on conflict do nothing
"""


class MergeStrategy(Enum):
    """What there is to reckon with among the rows of a block. Each costs a look-up per row more than the one before."""

    INSERT = 1  # only e-mails that nobody has yet
    UPSERT = 2  # e-mails of customers, too
    UPSERT_CHECKING_SOURCE_IDS = 3  # source ids of other customers, too


@dataclass(frozen=True)
class MergeCounts:
    """What became of the rows of one block."""

    created: int
    updated: int
    unchanged: int
    rejected: int


def create_staging_tables(connection: Connection) -> None:
    for statement in _CREATE_STAGING_TABLES:
        connection.execute(statement)


def copy_rows(connection: Connection, rows: Sequence[str]) -> None:
    """Rows as `intake` has them into the staging table."""
    if not rows:
        return
    text = "\n".join(rows).replace("\\", "\\\\")
    with connection.cursor().copy(f"copy staged ({', '.join(CUSTOMER_STAGING_FIELDS)}) from stdin (null '')") as copy:
        copy.write(text + "\n")


def copy_rejections(connection: Connection, import_id: int, rejections: Sequence[Rejection]) -> None:
    with connection.cursor().copy("copy import_rejection (import_id, line, code, detail, row) from stdin") as copy:
        for rejection in rejections:
            copy.write_row((import_id, *rejection))


def deduplicate_rows(connection: Connection) -> int:
    """Once the whole file is staged: drop the rows that a later one stands in for, and say how many there were."""
    duplicates = fetch_one(connection, _DELETE_DUPLICATES, {})[0]
    # The rows lie in the order of their lines, so the smallest of indexes finds a block of them.
    connection.execute("create index on staged using brin (line)")
    connection.execute("analyze staged (line, email)")
    connection.execute("analyze joining")
    return int(duplicates)


# Whoever was erased and asked not to be mailed is on the list by a hash; under the address again, so that the list says
# whom it is about, and can be counted.
_RESTORE_SUPPRESSIONS: LiteralString = """
  with back as (
    delete from suppression h using staged s
    where s.line > %(start)s and s.line <= %(end)s
      and h.email = 'sha256:' || encode(sha256(convert_to(s.email, 'UTF8')), 'hex')
    returning s.email, h.reason, h.at, h.source
  )
  insert into suppression as known (email, reason, at, source) select * from back
  on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source
  where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
    > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
"""


def restore_suppressions(connection: Connection, start: int, end: int) -> None:
    """What the customers of these lines asked for before they were erased counts again. Free where nobody was."""
    asked = "select exists (select from suppression where email >= 'sha256:' and email < 'sha256;')"
    if fetch_one(connection, asked, {})[0]:
        connection.execute(_RESTORE_SUPPRESSIONS, {"start": start, "end": end})


def list_staged_audience_names(connection: Connection, limit: int) -> list[str]:
    """The names of audiences in the file, at most `limit`."""
    statement = """
      select audience from staged where audience is not null
      union select audience from joining limit %(limit)s
    """
    return [name for (name,) in connection.execute(statement, {"limit": limit})]


def delete_already_rejected(connection: Connection, import_id: int) -> None:
    """Drop the rows that an earlier worker has refused already while it merged."""
    connection.execute(
        "delete from staged s using import_rejection r where r.import_id = %(id)s and r.line = s.line "
        "and r.code = 'source_id_taken'",
        {"id": import_id},
    )


def find_last_line(connection: Connection) -> int:
    return int(fetch_one(connection, "select coalesce(max(line), 0) from staged", {})[0])


def merge_rows(connection: Connection, import_id: int, start: int, end: int, expect: MergeStrategy) -> MergeCounts:
    """Merge the rows of the lines in `(start, end]`.

    :raises psycopg.errors.UniqueViolation: when there is more to reckon with than `expect` says.
    """
    place = {"start": start, "end": end, "import_id": import_id}
    if expect is MergeStrategy.INSERT:
        return MergeCounts(connection.execute(_INSERT, place).rowcount, 0, 0, 0)
    rejected = 0
    if expect is MergeStrategy.UPSERT_CHECKING_SOURCE_IDS:
        # One lane at a time: each has to see the source ids that the other brought.
        connection.execute("select pg_advisory_xact_lock(%(import_id)s)", place)
        rejected = fetch_one(connection, _REJECT_TAKEN_SOURCE_IDS, place)[0]
    created, updated, staged = fetch_one(connection, _UPSERT, place)
    return MergeCounts(created, updated, staged - created - updated, rejected)


def add_to_named_audiences(connection: Connection, start: int, end: int) -> None:
    """Put the customers of these lines into the audiences that the file names."""
    connection.execute(_ADD_TO_NAMED_AUDIENCES, {"start": start, "end": end})


def add_to_audience(connection: Connection, start: int, end: int, audience_id: int) -> None:
    """Put the customers of these lines into one audience."""
    connection.execute(_ADD_TO_AUDIENCE, {"start": start, "end": end, "audience_id": audience_id})


def fetch_one(connection: Connection, statement: LiteralString, values: dict[str, Any]) -> tuple[Any, ...]:
    row = connection.execute(statement, values).fetchone()
    assert row is not None  # noqa: S101 (an aggregate always answers)
    return row
