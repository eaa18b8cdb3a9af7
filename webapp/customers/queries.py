"""Every SELECT about customers, audiences and imports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal_column, select, text, true, union
from sqlalchemy.orm import InstrumentedAttribute, aliased

from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember, Customer, CustomerImport, RejectedRow, Suppression

PAGE_SIZE = 50
# Below this many rows, counting is as cheap as estimating.
EXACT_COUNT_LIMIT = 10_000
MAX_SEARCH_WORDS = 8
# More customers than that with a name: the newest of them are found soonest by looking from the newest on. Fewer: by
# the index of words. The planner can't tell, and for a name that nobody has it would look at everybody.
NAME_INDEX_MAX_MATCHES = 5000


@dataclass(frozen=True)
class AudienceTotals:
    """How many customers an audience has, and how many of them must not be mailed."""

    total: int
    suppressed: int


@dataclass(frozen=True)
class AudienceSummary:
    id: int
    name: str
    created_at: datetime
    member_count: int
    is_exact: bool


@dataclass(frozen=True)
class CustomerCount:
    """How many customers there are. A million rows are estimated, not counted."""

    value: int
    is_exact: bool


# --- customers -----------------------------------------------------------------------------------


def find_customer(customer_id: int) -> Customer | None:
    return db.session.get(Customer, customer_id)


def find_customer_by_email(email: str) -> Customer | None:
    """The customer of a normalised e-mail."""
    return db.session.scalar(select(Customer).where(Customer.email == email))


def find_customer_by_source_id(source_id: str) -> Customer | None:
    return db.session.scalar(select(Customer).where(Customer.source_id == source_id))


def lock_customer(customer_id: int) -> Customer | None:
    """The customer as it stands on disk, locked until the transaction ends."""
    return db.session.scalar(
        select(Customer).where(Customer.id == customer_id).with_for_update().execution_options(populate_existing=True)
    )


def list_recently_erased_ids() -> list[int]:
    """Who was erased within the last hour."""
    return list(
        db.session.scalars(
            select(Customer.id).where(Customer.erased_at > func.now() - timedelta(hours=1)).order_by(Customer.id)
        )
    )


def list_customer_ids_after(audience_id: int | None, after: int, limit: int) -> list[int]:
    """The next customers of an audience by id, erased ones left out; None is everyone."""
    if audience_id is None:
        statement = select(Customer.id).where(Customer.id > after, Customer.erased_at.is_(None)).order_by(Customer.id)
    else:
        statement = (
            select(AudienceMember.customer_id)
            .join(Customer, Customer.id == AudienceMember.customer_id)
            .where(
                AudienceMember.audience_id == audience_id,
                AudienceMember.customer_id > after,
                Customer.erased_at.is_(None),
            )
            .order_by(AudienceMember.customer_id)
        )
    return list(db.session.scalars(statement.limit(limit)))


def count_audience_members(audience_id: int | None) -> AudienceTotals:
    """How many would be mailed to, counted at this moment. Who must not be is counted from the short list's side."""
    known = select(func.count()).select_from(Customer).where(Customer.erased_at.is_(None))
    listed = known.join(Suppression, Suppression.email == Customer.email)
    if audience_id is not None:
        known, listed = (
            statement.join(AudienceMember, AudienceMember.customer_id == Customer.id).where(
                AudienceMember.audience_id == audience_id
            )
            for statement in (known, listed)
        )
    total, suppressed = db.session.execute(select(known.scalar_subquery(), listed.scalar_subquery())).one()
    return AudienceTotals(total, suppressed)


def list_customers_by_ids(ids: Sequence[int]) -> list[Customer]:
    """These customers, in the order of their ids; who has been erased meanwhile is missing."""
    return list(
        db.session.scalars(
            select(Customer).where(Customer.id.in_(ids), Customer.erased_at.is_(None)).order_by(Customer.id)
        )
    )


# By the hash as well, under which those stand who were erased.
_SUPPRESSION_REASONS = text(
    """
    select c.id, s.reason from customer c join suppression s
      on s.email in (c.email, 'sha256:' || encode(sha256(convert_to(c.email, 'UTF8')), 'hex'))
    where c.id = any(:ids)
    order by array_position(array['bounced', 'unsubscribed', 'complained'], s.reason)
    """
)


def find_suppression_reasons(ids: Sequence[int]) -> dict[int, str]:
    """Which of these customers must not be mailed, and why: `bounced`, `unsubscribed` or `complained`."""
    return {row.id: row.reason for row in db.session.execute(_SUPPRESSION_REASONS, {"ids": list(ids)})}


def count_customers() -> CustomerCount:
    """How many customers there are: counted when they are few, else as the database last estimated."""
    estimate = db.session.execute(text("select reltuples from pg_class where oid = 'customer'::regclass")).scalar_one()
    if estimate < EXACT_COUNT_LIMIT:
        known = select(Customer.id).where(Customer.erased_at.is_(None)).limit(EXACT_COUNT_LIMIT)
        counted = select(func.count()).select_from(known.subquery())
        number = db.session.execute(counted).scalar_one()
        if number < EXACT_COUNT_LIMIT:
            return CustomerCount(number, True)
    return CustomerCount(max(int(estimate), EXACT_COUNT_LIMIT), False)


def list_customers(
    q: str = "",
    audience_id: int | None = None,
    *,
    before: int | None = None,
    after: int | None = None,
    limit: int = PAGE_SIZE,
) -> list[Customer]:
    """Customers, newest first, older than `before` or newer than `after`; one more than `limit` if there are more.

    :param q: the beginning of an e-mail or of a source id, or the beginnings of words of the name.
    """
    order = Customer.id if after is not None else Customer.id.desc()
    bounds: list[ColumnElement[bool]] = [Customer.erased_at.is_(None)]
    if after is not None:
        bounds.append(Customer.id > after)
    elif before is not None:
        bounds.append(Customer.id < before)
    if audience_id is not None:
        member = aliased(AudienceMember)
        bounds.append(exists().where(member.audience_id == audience_id, member.customer_id == Customer.id))
    # Each way to be found keeps its own index; an OR over all three would use none.
    ways: list[Select[Any]] = [
        select(Customer.id).where(way, *bounds).order_by(order).limit(limit + 1) for way in _prefix_conditions(q)
    ]
    named = _name_condition(q)
    if named is not None:
        few = select(Customer.id.label("id")).where(named, *bounds).limit(NAME_INDEX_MAX_MATCHES + 1).cte("few")
        n = select(func.count()).select_from(few).scalar_subquery()
        rare = few.c.id if after is not None else few.c.id.desc()
        ways.append(select(few.c.id).where(n <= NAME_INDEX_MAX_MATCHES).order_by(rare).limit(limit + 1))
        ways.append(
            select(Customer.id).where(named, n > NAME_INDEX_MAX_MATCHES, *bounds).order_by(order).limit(limit + 1)
        )
    ids = ways[0] if len(ways) == 1 else union(*(way.subquery().select() for way in ways))
    found = select(Customer).where(Customer.id.in_(ids)).order_by(order).limit(limit + 1)
    rows = list(db.session.scalars(found))
    return rows[::-1] if after is not None else rows


def _prefix_conditions(q: str) -> list[ColumnElement[bool]]:
    typed = q.replace("\0", "").strip()
    if not typed:
        return [true()]
    return [_starts_with(Customer.email, typed.lower()), _starts_with(Customer.source_id, typed)]


def _name_condition(q: str) -> ColumnElement[bool] | None:
    """Whose name has words that begin so."""
    words = re.findall(r"\w+", q.replace("\0", ""))[:MAX_SEARCH_WORDS]
    if not words or "@" in q:
        return None
    query = " & ".join(f"'{word}':*" for word in words)
    return literal_column("to_tsvector('simple', customer.name)").op("@@")(func.to_tsquery("simple", query))


def _starts_with(column: InstrumentedAttribute[Any], start: str) -> ColumnElement[bool]:
    """As a range, which the unique index answers whatever the plan: the columns compare byte by byte (collation C)."""
    return and_(column >= start, column < start + chr(0x10FFFF))


def list_customer_audiences(customer_id: int) -> list[Audience]:
    return list(
        db.session.scalars(
            select(Audience)
            .join(AudienceMember, AudienceMember.audience_id == Audience.id)
            .where(AudienceMember.customer_id == customer_id)
            .order_by(Audience.name)
        )
    )


# --- audiences -----------------------------------------------------------------------------------


def list_audiences() -> list[Audience]:
    return list(db.session.scalars(select(Audience).order_by(Audience.name)))


def find_audience(audience_id: int) -> Audience | None:
    return db.session.get(Audience, audience_id)


def find_audience_by_name(name: str) -> Audience | None:
    return db.session.scalar(select(Audience).where(Audience.name == name))


_AUDIENCE_SUMMARIES = text(
    """
    with large as (
      select share.audience_id, cast(share.of_all * c.reltuples as bigint) as members
      from pg_stats s
      join pg_class c on c.oid = 'audience_member'::regclass
      cross join lateral
        unnest(cast(cast(s.most_common_vals as text) as bigint[]), s.most_common_freqs) as share(audience_id, of_all)
      where s.schemaname = current_schema() and s.tablename = 'audience_member' and s.attname = 'audience_id'
        and share.of_all * c.reltuples >= :counted_exactly
    )
    select a.id, a.name, a.created_at, coalesce(l.members, counted.n), l.members is null
    from audience a
    left join large l on l.audience_id = a.id
    cross join lateral (
      select count(*) as n from audience_member m where l.members is null and m.audience_id = a.id
    ) counted
    order by a.name
    """
)


def list_audience_summaries() -> list[AudienceSummary]:
    """Every audience with the number of its members: counted when they are few, else as the database last estimated."""
    return [
        AudienceSummary(*row) for row in db.session.execute(_AUDIENCE_SUMMARIES, {"counted_exactly": EXACT_COUNT_LIMIT})
    ]


# --- imports -------------------------------------------------------------------------------------


def find_import(import_id: int) -> CustomerImport | None:
    return db.session.get(CustomerImport, import_id, populate_existing=True)


def list_imports(before: int | None = None, limit: int = PAGE_SIZE) -> list[CustomerImport]:
    """Imports, newest first; one more than `limit` if there are more."""
    statement = select(CustomerImport).order_by(CustomerImport.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(CustomerImport.id < before)
    return list(db.session.scalars(statement))


def list_rejected_rows(
    import_id: int, after: tuple[int, ...] | None = None, limit: int = PAGE_SIZE
) -> list[RejectedRow]:
    """The rows of a file that could not be taken, by line, behind `(line, id)`; one more than `limit` if there are."""
    statement = select(RejectedRow).where(RejectedRow.import_id == import_id)
    if after is not None:
        line, row_id = after
        statement = statement.where(
            (RejectedRow.line > line) | ((RejectedRow.line == line) & (RejectedRow.id > row_id))
        )
    return list(db.session.scalars(statement.order_by(RejectedRow.line, RejectedRow.id).limit(limit + 1)))


def find_rejected_rows_containing(spelling: str) -> list[tuple[int, str]]:
    """The rows that no import could take and that hold these letters anywhere, with their ids."""
    rows = db.session.execute(
        select(RejectedRow.id, RejectedRow.row).where(func.strpos(func.lower(RejectedRow.row), spelling.lower()) > 0)
    )
    return [(row_id, row) for row_id, row in rows]


def list_stalled_upload_ids() -> list[int]:
    return list(
        db.session.scalars(
            select(CustomerImport.id).where(
                CustomerImport.status == "receiving", CustomerImport.lease_until < func.now()
            )
        )
    )


def list_claimable_import_ids() -> list[int]:
    """Imports that no worker has: whose bell was lost, or whose worker is gone."""
    return list(
        db.session.scalars(
            select(CustomerImport.id)
            .where(
                (CustomerImport.status == "queued")
                | ((CustomerImport.status == "running") & (CustomerImport.lease_until <= func.now()))
            )
            .order_by(CustomerImport.id)
        )
    )


# --- files ---------------------------------------------------------------------------------------

# What a spreadsheet would take for a formula gets an apostrophe before it; an import takes that off again.
_FORMULA_SAFE_COLUMN = "case when {0} ~ '^[-=+@\t\r]' then '''' || {0} else {0} end as {1}"
_CSV_CHUNK_SIZE = 64 * 1024


def export_customers(audience_id: int | None) -> Iterator[bytes]:
    """All customers, or those of an audience, as the CSV file that an import takes, piece by piece."""
    columns = ", ".join(
        _FORMULA_SAFE_COLUMN.format(f"c.{column}", name)
        for column, name in (("email_as_given", "email"), ("name", "name"), ("source_id", "source_id"))
    )
    joined = "join audience_member m on m.customer_id = c.id and m.audience_id = %(audience_id)s"
    yield from stream_csv(
        f"""
        select {columns}, c.locale, c.created_at, s.reason as do_not_mail, s.at as do_not_mail_since
        from customer c left join suppression s on s.email = c.email {joined if audience_id is not None else ""}
        where c.erased_at is null order by c.id
        """,  # noqa: S608
        {"audience_id": audience_id},
    )


def export_rejected_rows(import_id: int) -> Iterator[bytes]:
    """The rows of a file that could not be taken, as CSV, piece by piece."""
    yield from stream_csv(
        f"""
        select line, code, detail, {_FORMULA_SAFE_COLUMN.format("row", "row")}
        from import_rejection where import_id = %(import_id)s order by line, id
        """,  # noqa: S608
        {"import_id": import_id},
    )


def stream_csv(query: str, values: dict[str, Any]) -> Iterator[bytes]:
    """What a query finds as CSV, straight from the database. The request's context has to last as long."""
    driver: Any = db.session.connection().connection.driver_connection
    with driver.cursor().copy(f"copy ({query}) to stdout (format csv, header)", values) as copy:
        buffer = bytearray()
        for row in copy:
            buffer += row
            if len(buffer) >= _CSV_CHUNK_SIZE:
                yield bytes(buffer)
                buffer.clear()
    # The query is over before its last piece goes out: whoever reads no further holds nothing up.
    yield bytes(buffer)
