"""Queries for customers and audiences, and their CSV export."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal_column, select, text, true, union
from sqlalchemy.orm import InstrumentedAttribute, aliased

from webapp.core.csv_export import FORMULA_SAFE_COLUMN, TIME_COLUMN, stream_csv
from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember, Customer, Suppression

PAGE_SIZE = 50
# Below this number of rows, an exact count is as cheap as an estimate.
EXACT_COUNT_LIMIT = 10_000
MAX_SEARCH_WORDS = 8
# With more matches for a name, a scan from the newest customer on finds a page fastest; with fewer, the full-text index
# does. The planner cannot estimate that: for a name without a match it would scan all customers.
MAX_NAME_INDEX_MATCHES = 5000


@dataclass(frozen=True)
class AudienceTotals:
    """Numbers of customers and of suppressed customers in an audience."""

    total: int
    suppressed: int


@dataclass(frozen=True)
class AudienceSummary:
    """An audience with its number of members, which is an estimate unless `is_exact`."""

    id: int
    name: str
    created_at: datetime
    member_count: int
    is_exact: bool


@dataclass(frozen=True)
class CustomerCount:
    """Number of customers, an estimate unless `is_exact`."""

    value: int
    is_exact: bool


# --- customers -----------------------------------------------------------------------------------


def find_customer(customer_id: int) -> Customer | None:
    """Return the customer with this id, erased or not."""
    return db.session.get(Customer, customer_id)


def find_customer_by_email(email: str) -> Customer | None:
    """Return the customer with this normalised email address."""
    return db.session.scalar(select(Customer).where(Customer.email == email))


def find_customer_by_source_id(source_id: str) -> Customer | None:
    """Return the customer with this source id."""
    return db.session.scalar(select(Customer).where(Customer.source_id == source_id))


def lock_customer(customer_id: int) -> Customer | None:
    """Return the customer, freshly read and locked until the transaction ends."""
    return db.session.scalar(
        select(Customer).where(Customer.id == customer_id).with_for_update().execution_options(populate_existing=True)
    )


def list_recently_erased_ids() -> list[int]:
    """Return the ids of customers erased within the last hour."""
    return list(
        db.session.scalars(
            select(Customer.id).where(Customer.erased_at > func.now() - timedelta(hours=1)).order_by(Customer.id)
        )
    )


def list_customer_ids_after(audience_id: int | None, after: int, limit: int) -> list[int]:
    """Return the next customer ids of an audience after an id, without erased ones.

    :param audience_id: None for all customers.
    """
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
    """Count the customers of an audience and the suppressed ones among them, exactly.

    :param audience_id: None for all customers.
    """
    total = select(func.count()).select_from(Customer).where(Customer.erased_at.is_(None))
    # Joined by plain address only: the suppression list is short, and hashes belong to erased customers.
    suppressed = total.join(Suppression, Suppression.email == Customer.email)
    if audience_id is not None:
        total, suppressed = (
            statement.join(AudienceMember, AudienceMember.customer_id == Customer.id).where(
                AudienceMember.audience_id == audience_id
            )
            for statement in (total, suppressed)
        )
    counts = db.session.execute(select(total.scalar_subquery(), suppressed.scalar_subquery())).one()
    return AudienceTotals(*counts)


def list_customers_by_ids(ids: Sequence[int]) -> list[Customer]:
    """Return these customers ordered by id, without erased ones."""
    return list(
        db.session.scalars(
            select(Customer).where(Customer.id.in_(ids), Customer.erased_at.is_(None)).order_by(Customer.id)
        )
    )


# It also matches the hash under which addresses of erased customers are suppressed.
_SUPPRESSION_REASONS = text(
    """
    select c.id, s.reason from customer c join suppression s
      on s.email in (c.email, 'sha256:' || encode(sha256(convert_to(c.email, 'UTF8')), 'hex'))
    where c.id = any(:ids)
    order by array_position(array['bounced', 'unsubscribed', 'complained'], s.reason)
    """
)


def find_suppression_reasons(ids: Sequence[int]) -> dict[int, str]:
    """Return the suppression reasons of these customers, by customer id.

    The reason is `bounced`, `unsubscribed` or `complained`; customers without a suppression are missing.
    """
    return {row.id: row.reason for row in db.session.execute(_SUPPRESSION_REASONS, {"ids": list(ids)})}


def count_customers() -> CustomerCount:
    """Count the customers, or return PostgreSQL's estimate when there are many."""
    estimate = db.session.execute(text("select reltuples from pg_class where oid = 'customer'::regclass")).scalar_one()
    if estimate < EXACT_COUNT_LIMIT:
        ids = select(Customer.id).where(Customer.erased_at.is_(None)).limit(EXACT_COUNT_LIMIT)
        count = db.session.execute(select(func.count()).select_from(ids.subquery())).scalar_one()
        if count < EXACT_COUNT_LIMIT:
            return CustomerCount(count, True)
    return CustomerCount(max(int(estimate), EXACT_COUNT_LIMIT), False)


def list_customers(
    search: str = "",
    audience_id: int | None = None,
    *,
    before: int | None = None,
    after: int | None = None,
    limit: int = PAGE_SIZE,
) -> list[Customer]:
    """Return a page of customers, newest first; `limit + 1` of them if there are more.

    :param search: the start of an email address or of a source id, or the starts of words of the name.
    :param before: return only customers with a smaller id.
    :param after: return only customers with a larger id, the nearest of them.
    """
    order = Customer.id if after is not None else Customer.id.desc()
    filters: list[ColumnElement[bool]] = [Customer.erased_at.is_(None)]
    if after is not None:
        filters.append(Customer.id > after)
    elif before is not None:
        filters.append(Customer.id < before)
    if audience_id is not None:
        member = aliased(AudienceMember)
        filters.append(exists().where(member.audience_id == audience_id, member.customer_id == Customer.id))
    # One SELECT for each condition uses its own index; an OR over all three would use none.
    searches: list[Select[Any]] = [
        select(Customer.id).where(condition, *filters).order_by(order).limit(limit + 1)
        for condition in _prefix_conditions(search)
    ]
    has_name = _name_condition(search)
    if has_name is not None:
        matches = (
            select(Customer.id.label("id")).where(has_name, *filters).limit(MAX_NAME_INDEX_MATCHES + 1).cte("matches")
        )
        match_count = select(func.count()).select_from(matches).scalar_subquery()
        has_few_matches = match_count <= MAX_NAME_INDEX_MATCHES
        match_order = matches.c.id if after is not None else matches.c.id.desc()
        searches.append(select(matches.c.id).where(has_few_matches).order_by(match_order).limit(limit + 1))
        searches.append(
            select(Customer.id).where(has_name, ~has_few_matches, *filters).order_by(order).limit(limit + 1)
        )
    ids = searches[0] if len(searches) == 1 else union(*(statement.subquery().select() for statement in searches))
    statement = select(Customer).where(Customer.id.in_(ids)).order_by(order).limit(limit + 1)
    rows = list(db.session.scalars(statement))
    return rows[::-1] if after is not None else rows


def _prefix_conditions(search: str) -> list[ColumnElement[bool]]:
    prefix = search.replace("\0", "").strip()
    if not prefix:
        return [true()]
    return [_starts_with(Customer.email, prefix.lower()), _starts_with(Customer.source_id, prefix)]


def _name_condition(search: str) -> ColumnElement[bool] | None:
    """Match names that have a word starting with each word of the search.

    Returns None when the search has no words or contains an @.
    """
    words = re.findall(r"\w+", search.replace("\0", ""))[:MAX_SEARCH_WORDS]
    if not words or "@" in search:
        return None
    query = " & ".join(f"'{word}':*" for word in words)
    return literal_column("to_tsvector('simple', customer.name)").op("@@")(func.to_tsquery("simple", query))


def _starts_with(column: InstrumentedAttribute[Any], prefix: str) -> ColumnElement[bool]:
    """Match a prefix as a range.

    The unique index always supports it, because the columns have the collation C.
    """
    return and_(column >= prefix, column < prefix + chr(0x10FFFF))


def list_customer_audiences(customer_id: int) -> list[Audience]:
    """Return the audiences of a customer, sorted by name."""
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
    """Return all audiences, sorted by name."""
    return list(db.session.scalars(select(Audience).order_by(Audience.name)))


def find_audience(audience_id: int) -> Audience | None:
    """Return the audience with this id."""
    return db.session.get(Audience, audience_id)


def find_audience_by_name(name: str) -> Audience | None:
    """Return the audience with exactly this name."""
    return db.session.scalar(select(Audience).where(Audience.name == name))


_AUDIENCE_SUMMARIES = text(
    """
    with large as (
      select share.audience_id, cast(share.fraction * c.reltuples as bigint) as members
      from pg_stats s
      join pg_class c on c.oid = 'audience_member'::regclass
      cross join lateral
        unnest(cast(cast(s.most_common_vals as text) as bigint[]), s.most_common_freqs) as share(audience_id, fraction)
      where s.schemaname = current_schema() and s.tablename = 'audience_member' and s.attname = 'audience_id'
        and share.fraction * c.reltuples >= :exact_count_limit
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
    """Return all audiences with their numbers of members.

    The numbers of large audiences are PostgreSQL's estimates.
    """
    rows = db.session.execute(_AUDIENCE_SUMMARIES, {"exact_count_limit": EXACT_COUNT_LIMIT})
    return [AudienceSummary(*row) for row in rows]


def export_customers(audience_id: int | None) -> Iterator[bytes]:
    """Stream all customers, or those of an audience, as CSV.

    The import accepts this format.
    """
    columns = ", ".join(
        FORMULA_SAFE_COLUMN.format(f"c.{column}", name)
        for column, name in (("email_as_given", "email"), ("name", "name"), ("source_id", "source_id"))
    )
    audience_join = "join audience_member m on m.customer_id = c.id and m.audience_id = %(audience_id)s"
    yield from stream_csv(
        f"""
        select {columns}, c.locale, {TIME_COLUMN.format("c.created_at", "created_at")}, s.reason as do_not_mail,
          {TIME_COLUMN.format("s.at", "do_not_mail_since")}
        from customer c left join suppression s on s.email = c.email {audience_join if audience_id is not None else ""}
        where c.erased_at is null order by c.id
        """,  # noqa: S608
        {"audience_id": audience_id},
    )
