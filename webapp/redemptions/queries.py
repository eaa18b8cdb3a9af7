"""Every SELECT about redemptions. Plain rows: a redemption is never loaded as an object of the ORM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import Row, text

from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.redemptions import public_ids
from webapp.redemptions.facts import REDEMPTION_COLUMNS, ROLLBACK_COLUMNS, ROW_FIELDS, build_discount
from webapp.redemptions.rules import RedemptionRow

# Redemptions that one stretch of a list looks at for those of a channel.
SCAN_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class RedemptionRecord:
    """A redemption with what it was of and whose. `use.rolled_back_at` tells whether it was undone."""

    offer_id: int
    customer_id: int
    code: str
    offer_name: str
    discount: Discount
    time_zone: str
    email: str
    customer_name: str
    row: RedemptionRow
    is_replay: bool = False

    @property
    def public_id(self) -> str:
        return public_ids.encode_public_id(self.offer_id, self.customer_id, self.row.redeemed_at)


def _alias_columns(alias: str, columns: str, prefix: str) -> str:
    return ", ".join(f"{alias}.{name.strip()} as {prefix}{name.strip()}" for name in columns.split(","))


def _row_from_columns(row: Row[Any]) -> RedemptionRow:
    return RedemptionRow(**{name: row._mapping[f"x_{name}"] for name in ROW_FIELDS})


_NULL_ROLLBACK_COLUMNS = (
    "cast(null as timestamptz) as x_rolled_back_at, cast(null as text) as x_rolled_back_by, "
    "cast(null as text) as x_reason"
)
_OFFER_AND_CUSTOMER_COLUMNS = (
    "x.offer_id, x.customer_id, o.code_as_written, o.name, o.discount_type, o.percent, o.amount, o.currency, "
    "o.time_zone, c.email_as_given, c.name as customer_name"
)
_LIVE_COLUMNS = (
    f"{_alias_columns('x', REDEMPTION_COLUMNS, 'x_')}, {_NULL_ROLLBACK_COLUMNS}, {_OFFER_AND_CUSTOMER_COLUMNS}"
)
_ROLLED_BACK_COLUMNS = (
    f"{_alias_columns('x', f'{REDEMPTION_COLUMNS}, {ROLLBACK_COLUMNS}', 'x_')}, {_OFFER_AND_CUSTOMER_COLUMNS}"
)
_JOINS = "join offer o on o.id = x.offer_id join customer c on c.id = x.customer_id"


def _build_record(row: Row[Any]) -> RedemptionRecord:
    return RedemptionRecord(
        offer_id=row.offer_id,
        customer_id=row.customer_id,
        code=row.code_as_written,
        offer_name=row.name,
        discount=build_discount(row.discount_type, row.percent, row.amount, row.currency),
        time_zone=row.time_zone,
        email=row.email_as_given,
        customer_name=row.customer_name,
        row=_row_from_columns(row),
    )


_SELECT_BY_KEY = text(
    f"""
    select {_LIVE_COLUMNS} from redemption x {_JOINS}
    where x.offer_id = :offer_id and x.customer_id = :customer_id and x.redeemed_at = :redeemed_at
    union all
    select {_ROLLED_BACK_COLUMNS} from rollback x {_JOINS}
    where x.offer_id = :offer_id and x.customer_id = :customer_id and x.redeemed_at = :redeemed_at
    """  # noqa: S608
)


def find_redemption(public_id: str) -> RedemptionRecord | None:
    """The redemption of a public id, also after it was undone."""
    for triple in public_ids.decode_public_id(public_id):
        # A made-up id decrypts to any moment, also to one that no calendar has room for.
        if triple.offer_id < 1 << 31 and triple.redeemed_at.year < 2250:
            row = db.session.execute(_SELECT_BY_KEY, triple._asdict()).one_or_none()
            if row is not None:
                return _build_record(row)
    return None


_SELECT_LIVE = text(
    f"select {_LIVE_COLUMNS} from redemption x {_JOINS} where x.offer_id = :offer_id and x.customer_id = :customer_id"  # noqa: S608
)


def find_live_redemption(offer_id: int, customer_id: int) -> RedemptionRecord | None:
    """The live redemption of an offer by a customer."""
    row = db.session.execute(_SELECT_LIVE, {"offer_id": offer_id, "customer_id": customer_id}).one_or_none()
    return None if row is None else _build_record(row)


_SELECT_BY_CUSTOMER = text(
    f"""
    select * from (
      select {_LIVE_COLUMNS} from redemption x {_JOINS} where x.customer_id = :customer_id
      union all
      select {_ROLLED_BACK_COLUMNS} from rollback x {_JOINS} where x.customer_id = :customer_id
    ) every
    order by x_redeemed_at desc
    """  # noqa: S608
)


def list_customer_redemptions(customer_id: int) -> list[RedemptionRecord]:
    """All of a customer's redemptions, newest first, with those that were undone."""
    return [_build_record(row) for row in db.session.execute(_SELECT_BY_CUSTOMER, {"customer_id": customer_id})]


def find_redeemed_customer_ids(offer_id: int, customer_ids: Sequence[int]) -> set[int]:
    """Which of these customers have redeemed the offer."""
    found = db.session.execute(
        text("select customer_id from redemption where offer_id = :offer_id and customer_id = any(:ids)"),
        {"offer_id": offer_id, "ids": list(customer_ids)},
    )
    return set(found.scalars())


@dataclass(frozen=True, slots=True)
class RedemptionFilter:
    """What a list of redemptions is narrowed to; `since` and `until` are half-open."""

    offer_id: int | None = None
    customer_id: int | None = None
    channel: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def to_sql(self) -> tuple[str, dict[str, Any]]:
        conditions = {
            "customer_id": "x.customer_id = :customer_id",
            "channel": "x.channel = :channel",
            "since": "x.redeemed_at >= :since",
            "until": "x.redeemed_at < :until",
        }
        given = {name: getattr(self, name) for name in conditions if getattr(self, name) is not None}
        return "".join(f" and {conditions[name]}" for name in given), given


@dataclass(frozen=True, slots=True)
class KeysetCursor:
    """Where a page of redemptions ended."""

    redeemed_at: datetime
    customer_id: int
    offer_id: int

    @classmethod
    def from_record(cls, done: RedemptionRecord) -> KeysetCursor:
        return cls(done.row.redeemed_at, done.customer_id, done.offer_id)

    @classmethod
    def from_integers(cls, microseconds: int, customer_id: int, offer_id: int) -> KeysetCursor:
        """The place of `numbers`; one that no calendar has room for is the end of time."""
        return cls(public_ids.from_microseconds(microseconds), customer_id, offer_id)

    def to_integers(self) -> tuple[int, int, int]:
        return public_ids.to_microseconds(self.redeemed_at), self.customer_id, self.offer_id


def list_redemptions(
    narrowed: RedemptionFilter, limit: int, after: KeysetCursor | None = None
) -> list[RedemptionRecord]:
    """Live redemptions, newest first, beginning after a place; one more than `limit` if there are more.

    Each offer gives its newest from the index that it has anyway, so that none over all of them has to be kept.
    """
    where, values = narrowed.to_sql()
    if after is not None:
        where += (
            " and x.redeemed_at <= :after_at"
            " and (x.redeemed_at, x.customer_id, x.offer_id) < (:after_at, :after_customer, :after_offer)"
        )
        values |= {"after_at": after.redeemed_at, "after_customer": after.customer_id, "after_offer": after.offer_id}
    if narrowed.customer_id is not None:
        source = "redemption x where true" + (" and x.offer_id = :only" if narrowed.offer_id else "") + where
    else:
        source = _newest_per_offer_sql(where, only=narrowed.offer_id is not None)
    order = "order by x.redeemed_at desc, x.customer_id desc, x.offer_id desc"
    # Names are looked up for those on the page alone.
    statement = text(
        f"select {_LIVE_COLUMNS} from (select x.* from {source} {order} limit :limit) x {_JOINS} {order}"  # noqa: S608
    )
    if narrowed.offer_id:
        values["only"] = narrowed.offer_id
    return [_build_record(row) for row in db.session.execute(statement, values | {"limit": limit + 1})]


def _newest_per_offer_sql(where: str, only: bool) -> str:
    """The newest redemptions of those offers that have the newest: no other offer can be on the page."""
    of_one = (
        f"select * from redemption x where x.offer_id = {{}}.id{where} order by x.redeemed_at desc, x.customer_id desc"  # noqa: S608
    )
    return f"""(
      select o.id from offer o cross join lateral ({of_one.format("o")} limit 1) x
      {"where o.id = :only" if only else ""}
      order by x.redeemed_at desc, x.customer_id desc, o.id desc limit :limit
    ) each cross join lateral ({of_one.format("each")} limit :limit) x"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class ScanPage:
    """Part of a list, and the place from which it goes on; None at its end."""

    redemptions: list[RedemptionRecord]
    next_cursor: KeysetCursor | None


def scan_redemptions(narrowed: RedemptionFilter, limit: int, after: KeysetCursor | None = None) -> ScanPage:
    """The next live redemptions of a list, newest first, with the place where the look at them stopped.

    No index knows the channels, so for one that is hardly ever used it stops at the beginning of an hour, after so many
    redemptions: there may be few on a stretch, or none, with more behind it.
    """
    floor = _find_scan_floor(narrowed, after)
    found = list_redemptions(replace(narrowed, since=floor) if floor else narrowed, limit, after)
    shown = found[:limit]
    if len(found) > limit:
        return ScanPage(shown, KeysetCursor.from_record(shown[-1]))
    return ScanPage(shown, KeysetCursor(floor, 0, 0) if floor else None)


def _find_scan_floor(narrowed: RedemptionFilter, after: KeysetCursor | None) -> datetime | None:
    """The hour to which a look for a channel goes back; None where it goes to the end."""
    if narrowed.channel is None or narrowed.customer_id is not None:
        return None
    hours = "redemption_hour where offer_id = :offer_id and" if narrowed.offer_id else "hour_total where"
    row = db.session.execute(
        text(
            f"""
            select hour from (
              select hour, sum(n) over (order by hour desc) as passed from {hours}
              hour < least(cast(:until as timestamptz), cast(:after as timestamptz), 'infinity')
            ) hours
            where passed >= :looked_at order by hour desc limit 1
            """  # noqa: S608
        ),
        {
            "offer_id": narrowed.offer_id,
            "until": narrowed.until,
            "after": after.redeemed_at if after else None,
            "looked_at": SCAN_LIMIT,
        },
    ).one_or_none()
    if row is None or (narrowed.since is not None and row.hour <= narrowed.since):
        return None
    return row.hour  # type: ignore[no-any-return]


def list_latest_redemptions(offer_id: int | None, limit: int) -> list[RedemptionRecord]:
    """The newest live redemptions, of one offer or of all."""
    return list_redemptions(RedemptionFilter(offer_id=offer_id), limit)[:limit]


def stream_redemptions(narrowed: RedemptionFilter) -> Iterator[RedemptionRecord]:
    """Every redemption of a filter, offer by offer, newest first, a thousand at a time from the database's cursor."""
    where, values = narrowed.to_sql()
    if narrowed.offer_id:
        where += " and x.offer_id = :only"
        values["only"] = narrowed.offer_id
    statement = text(
        f"select {_LIVE_COLUMNS} from redemption x {_JOINS} where true{where} order by x.offer_id, x.redeemed_at desc"  # noqa: S608
    )
    # On a connection of its own, for it outlives the request.
    with db.engine.connect() as connection:
        for row in connection.execution_options(yield_per=1000).execute(statement, values):
            yield _build_record(row)


_SELECT_COUNTS = text(
    """
    select o.id,
      coalesce((select n from redemption_total h where h.offer_id = o.id), 0)
      + (select count(*) from redemption r, redemption_tally t
         where t.id = 1 and r.offer_id = o.id and r.redeemed_at >= t.counted_until) as n
    from unnest(cast(:ids as bigint[])) as o(id)
    """
)


def count_redemptions(offer_ids: Sequence[int]) -> dict[int, int]:
    """How many live redemptions each of these offers has: what is counted so far and the rest live."""
    return {offer_id: int(n) for offer_id, n in db.session.execute(_SELECT_COUNTS, {"ids": list(offer_ids)})}


def count_redemptions_per_day(offer_id: int | None, since: datetime, zone: str = "UTC") -> list[tuple[date, int]]:
    """Live redemptions by day of a zone, from the hours counted so far and the rest live; days without any left out.

    Hours are those of UTC: where a zone is half an hour off, so is the end of its days here.
    """
    hours = "redemption_hour h where h.offer_id = :offer_id and" if offer_id else "hour_total h where"
    # Lateral, so that the planner has nothing but the index, whatever it thinks of the sizes.
    rows = db.session.execute(
        text(
            f"""
            select cast(hour at time zone :zone as date) as day, sum(n) from (
              select h.hour, h.n from {hours} h.hour >= :since
              union all
              select rest.hour, rest.n from offer o, redemption_tally t, lateral (
                select date_trunc('hour', r.redeemed_at, 'UTC') as hour, count(*) as n from redemption r
                where r.offer_id = o.id and r.redeemed_at >= greatest(t.counted_until, :since)
                group by 1
              ) rest
              where t.id = 1 {"and o.id = :offer_id" if offer_id else ""}
            ) every
            group by 1 having sum(n) > 0 order by 1
            """  # noqa: S608
        ),
        {"since": since, "zone": zone} | ({"offer_id": offer_id} if offer_id else {}),
    )
    return [(day, int(n)) for day, n in rows]
