"""Queries for redemptions. They return plain rows: redemptions are never loaded as ORM objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text

from webapp.core import database_connections
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.redemptions import public_ids
from webapp.redemptions.facts import REDEMPTION_COLUMNS, ROLLBACK_COLUMNS, ROW_FIELDS, build_discount
from webapp.redemptions.rules import RedemptionRow

# How many redemptions one page of a list by channel scans.
SCAN_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class RedemptionRecord:
    """A redemption with its offer and its customer; `row.rolled_back_at` is set after a rollback.

    :param public_id_secret: see `public_ids.load_secret`.
    :param customer_locale: the locale of the customer, if known.
    :param entered_by: the email address of the user who entered it, for the channel `staff`.
    :param is_replay: whether this result repeats the one of an earlier, identical request.
    """

    offer_id: int
    customer_id: int
    code: str
    offer_name: str
    discount: Discount
    time_zone: str
    email: str
    customer_name: str
    customer_locale: str | None
    row: RedemptionRow
    public_id_secret: bytes = field(repr=False)
    is_replay: bool = False
    entered_by: str | None = None

    @property
    def public_id(self) -> str:
        """The public id, also called the reference.

        It is computed when it is read, so that the thread that leads a group does not compute it for all requests.
        """
        return public_ids.encode_public_id(self.offer_id, self.customer_id, self.row.redeemed_at, self.public_id_secret)


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
    "o.time_zone, c.email_as_given, c.name as customer_name, c.locale as customer_locale, u.email as entered_by"
)
_CURRENT_COLUMNS = ", ".join(
    (_alias_columns("x", REDEMPTION_COLUMNS, "x_"), _NULL_ROLLBACK_COLUMNS, _OFFER_AND_CUSTOMER_COLUMNS)
)
_ROLLED_BACK_COLUMNS = ", ".join(
    (
        _alias_columns("x", REDEMPTION_COLUMNS, "x_"),
        _alias_columns("x", ROLLBACK_COLUMNS, "x_"),
        _OFFER_AND_CUSTOMER_COLUMNS,
    )
)
_JOINS = (
    "join offer o on o.id = x.offer_id join customer c on c.id = x.customer_id "
    "left join staff_user u on u.id = x.staff_user_id"
)


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
        customer_locale=row.customer_locale,
        row=_row_from_columns(row),
        public_id_secret=public_ids.load_secret(),
        entered_by=row.entered_by,
    )


_SELECT_BY_KEY = text(
    f"""
    select {_CURRENT_COLUMNS} from redemption x {_JOINS}
    where x.offer_id = :offer_id and x.customer_id = :customer_id and x.redeemed_at = :redeemed_at
    union all
    select {_ROLLED_BACK_COLUMNS} from rollback x {_JOINS}
    where x.offer_id = :offer_id and x.customer_id = :customer_id and x.redeemed_at = :redeemed_at
    """  # noqa: S608
)


def find_redemption(public_id: str) -> RedemptionRecord | None:
    """Return the redemption with a public id, current or rolled back."""
    for key in public_ids.decode_public_id(public_id):
        # An invalid id decrypts to arbitrary values, also to some that the columns cannot store.
        if key.offer_id < 1 << 31 and key.redeemed_at.year < 2250:
            row = db.session.execute(_SELECT_BY_KEY, key._asdict()).one_or_none()
            if row is not None:
                return _build_record(row)
    return None


_SELECT_CURRENT = text(
    f"select {_CURRENT_COLUMNS} from redemption x {_JOINS} "  # noqa: S608
    "where x.offer_id = :offer_id and x.customer_id = :customer_id"
)


def find_current_redemption(offer_id: int, customer_id: int) -> RedemptionRecord | None:
    """Return the current redemption of an offer by a customer, or None."""
    row = db.session.execute(_SELECT_CURRENT, {"offer_id": offer_id, "customer_id": customer_id}).one_or_none()
    return None if row is None else _build_record(row)


_SELECT_BY_CUSTOMER = text(
    f"""
    select * from (
      select {_CURRENT_COLUMNS} from redemption x {_JOINS} where x.customer_id = :customer_id
      union all
      select {_ROLLED_BACK_COLUMNS} from rollback x {_JOINS} where x.customer_id = :customer_id
    ) every
    order by x_redeemed_at desc
    """  # noqa: S608
)


def list_customer_redemptions(customer_id: int) -> list[RedemptionRecord]:
    """Return all redemptions of a customer, current or rolled back, newest first."""
    return [_build_record(row) for row in db.session.execute(_SELECT_BY_CUSTOMER, {"customer_id": customer_id})]


def iter_customer_redemptions(customer_id: int) -> Iterator[RedemptionRecord]:
    """Yield all redemptions of a customer, as `list_customer_redemptions`, a thousand fetched at a time.

    The transaction must stay open until the last one.
    """
    options = {"yield_per": 1000}
    for row in db.session.execute(_SELECT_BY_CUSTOMER, {"customer_id": customer_id}, execution_options=options):
        yield _build_record(row)


def find_redeemed_customer_ids(offer_id: int, customer_ids: Sequence[int]) -> set[int]:
    """Return the ids of the customers, among these, who have redeemed the offer."""
    rows = db.session.execute(
        text("select customer_id from redemption where offer_id = :offer_id and customer_id = any(:ids)"),
        {"offer_id": offer_id, "ids": list(customer_ids)},
    )
    return set(rows.scalars())


@dataclass(frozen=True, slots=True)
class RedemptionFilter:
    """The filter of a list of redemptions.

    The period from `since` to `until` excludes `until`.
    """

    offer_id: int | None = None
    customer_id: int | None = None
    channel: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def to_sql(self) -> tuple[str, dict[str, Any]]:
        """Return the conditions, each with a leading `and`, and their parameters.

        The condition on the offer is left to the caller.
        """
        conditions = {
            "customer_id": "x.customer_id = :customer_id",
            "channel": "x.channel = :channel",
            "since": "x.redeemed_at >= :since",
            "until": "x.redeemed_at < :until",
        }
        values = {name: getattr(self, name) for name in conditions if getattr(self, name) is not None}
        return "".join(f" and {conditions[name]}" for name in values), values


@dataclass(frozen=True, slots=True)
class KeysetCursor:
    """The position in a list of redemptions after which the next page starts."""

    redeemed_at: datetime
    customer_id: int
    offer_id: int

    @classmethod
    def from_record(cls, record: RedemptionRecord) -> KeysetCursor:
        """Return the cursor after a redemption."""
        return cls(record.row.redeemed_at, record.customer_id, record.offer_id)

    @classmethod
    def from_integers(cls, microseconds: int, customer_id: int, offer_id: int) -> KeysetCursor:
        """Return the cursor of the result of `to_integers`.

        A time out of range becomes the latest possible one.
        """
        return cls(public_ids.from_microseconds(microseconds), customer_id, offer_id)

    def to_integers(self) -> tuple[int, int, int]:
        """Return the time (microseconds since the Unix epoch), customer id and offer id."""
        return public_ids.to_microseconds(self.redeemed_at), self.customer_id, self.offer_id


def list_redemptions(
    redemption_filter: RedemptionFilter, limit: int, after: KeysetCursor | None = None
) -> list[RedemptionRecord]:
    """Return current redemptions, newest first, starting after a cursor.

    There is one more than `limit` if there are more. Without a filter by offer or customer, the newest of each offer
    are read from the index by offer, so that no index over all offers has to be maintained.
    """
    where, values = redemption_filter.to_sql()
    if after is not None:
        where += (
            " and x.redeemed_at <= :after_at"
            " and (x.redeemed_at, x.customer_id, x.offer_id) < (:after_at, :after_customer, :after_offer)"
        )
        values |= {"after_at": after.redeemed_at, "after_customer": after.customer_id, "after_offer": after.offer_id}
    if redemption_filter.offer_id:
        from_clause = f"redemption x where x.offer_id = :only{where}"
        values["only"] = redemption_filter.offer_id
    elif redemption_filter.customer_id is not None:
        from_clause = f"redemption x where true{where}"
    else:
        from_clause = _newest_per_offer_sql(where)
    order = "order by x.redeemed_at desc, x.customer_id desc, x.offer_id desc"
    # The names are joined after the limit, so that they are looked up only for the rows of the page.
    statement = text(
        f"select {_CURRENT_COLUMNS} from (select x.* from {from_clause} {order} limit :limit) x {_JOINS} {order}"  # noqa: S608
    )
    return [_build_record(row) for row in db.session.execute(statement, values | {"limit": limit + 1})]


def _newest_per_offer_sql(where: str) -> str:
    """Build the SQL for the newest redemptions of the offers that have them.

    No other offer can be on the page. The ids are an array, because a lateral subquery with a limit is distributed only
    if it refers to no other subquery.
    """
    newest_of_offer = (
        f"select * from redemption x where x.offer_id = {{}}.offer_id{where} "  # noqa: S608
        "order by x.redeemed_at desc, x.customer_id desc"
    )
    return f"""offer_counter each cross join lateral ({newest_of_offer.format("each")} limit :limit) x
    where each.offer_id = any(array(
      select o.offer_id from offer_counter o cross join lateral ({newest_of_offer.format("o")} limit 1) x
      order by x.redeemed_at desc, x.customer_id desc, o.offer_id desc limit :limit
    ))"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class ScanPage:
    """A page of a list of redemptions and the cursor of the next page, None at the end of the list."""

    redemptions: list[RedemptionRecord]
    next_cursor: KeysetCursor | None


def scan_redemptions(redemption_filter: RedemptionFilter, limit: int, after: KeysetCursor | None = None) -> ScanPage:
    """Return the next page of current redemptions, newest first, with the position where the scan stopped.

    Channels have no index. The scan for a rarely used one therefore
    stops at the start of an hour, after at least `SCAN_LIMIT` redemptions: a page may have few rows, or none, although
    more follow.
    """
    scan_floor = _find_scan_floor(redemption_filter, after)
    rows = list_redemptions(
        replace(redemption_filter, since=scan_floor) if scan_floor else redemption_filter, limit, after
    )
    page = rows[:limit]
    if len(rows) > limit:
        return ScanPage(page, KeysetCursor.from_record(page[-1]))
    return ScanPage(page, KeysetCursor(scan_floor, 0, 0) if scan_floor else None)


def _find_scan_floor(redemption_filter: RedemptionFilter, after: KeysetCursor | None) -> datetime | None:
    """Return the hour at which a scan by channel stops; None when it goes to the end of the list."""
    if redemption_filter.channel is None or redemption_filter.customer_id is not None:
        return None
    hours = "redemption_hour where offer_id = :offer_id and" if redemption_filter.offer_id else "hour_total where"
    row = db.session.execute(
        text(
            f"""
            select hour from (
              select hour, sum(n) over (order by hour desc) as passed from {hours}
              hour < least(cast(:until as timestamptz), cast(:after as timestamptz), 'infinity')
            ) hours
            where passed >= :scan_limit order by hour desc limit 1
            """  # noqa: S608
        ),
        {
            "offer_id": redemption_filter.offer_id,
            "until": redemption_filter.until,
            "after": after.redeemed_at if after else None,
            "scan_limit": SCAN_LIMIT,
        },
    ).one_or_none()
    if row is None or (redemption_filter.since is not None and row.hour <= redemption_filter.since):
        return None
    return row.hour  # type: ignore[no-any-return]


def list_latest_redemptions(offer_id: int | None, limit: int) -> list[RedemptionRecord]:
    """Return the newest current redemptions, of one offer or of all."""
    return list_redemptions(RedemptionFilter(offer_id=offer_id), limit)[:limit]


def stream_redemptions(redemption_filter: RedemptionFilter) -> Iterator[RedemptionRecord]:
    """Yield every current redemption that matches, offer by offer, newest first.

    A thousand rows are fetched at a time.
    """
    where, values = redemption_filter.to_sql()
    if redemption_filter.offer_id:
        where += " and x.offer_id = :only"
        values["only"] = redemption_filter.offer_id
    statement = text(
        f"select {_CURRENT_COLUMNS} from redemption x {_JOINS} "  # noqa: S608
        f"where true{where} order by x.offer_id, x.redeemed_at desc"
    )
    # Uses its own connection, because the iterator outlives the request.
    with db.engine.connect() as connection, database_connections.long_statements(connection):
        for row in connection.execution_options(yield_per=1000).execute(statement, values):
            yield _build_record(row)
