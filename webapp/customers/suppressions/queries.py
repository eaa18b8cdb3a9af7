"""Every SELECT about addresses that must not be mailed. Whom of a window: `queries.suppressed_among`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from webapp.core.email_addresses import HASHED_EMAIL_PREFIX, hash_email
from webapp.core.extensions import db
from webapp.customers.models import SUPPRESSION_REASONS, Suppression
from webapp.customers.queries import PAGE_SIZE, stream_csv

# As it compares with other columns: the strongest reason is the last.
REASON_RANK: ColumnElement[int] = func.array_position(
    literal_column("array['bounced', 'unsubscribed', 'complained']"), Suppression.reason
)


def find_suppression_by_email(email: str) -> Suppression | None:
    """What stands on the list about a normalised e-mail, under it or under its hash; the stronger of two."""
    return db.session.scalar(
        select(Suppression)
        .where(Suppression.email.in_((email, hash_email(email))))
        .order_by(REASON_RANK.desc())
        .limit(1)
        .execution_options(populate_existing=True)
    )


def find_suppression_by_key(key: str) -> Suppression | None:
    """The row of an address or of a hash."""
    return db.session.get(Suppression, key)


def list_suppressions(q: str = "", reason: str = "", after: str = "", limit: int = PAGE_SIZE) -> list[Suppression]:
    """The list by address, behind `after`; one more than `limit` if there are more. Hashes stand where `s` does.

    :param q: the beginning of an address; a whole one is found by its hash, too.
    :param reason: one of `REASONS`, or nothing.
    """
    typed = q.replace("\0", "").strip().lower()
    statement = select(Suppression).order_by(Suppression.email).limit(limit + 1).where(Suppression.email > after)
    if typed:
        begins = (Suppression.email >= typed) & (Suppression.email < typed + chr(0x10FFFF))
        statement = statement.where(begins | (Suppression.email == hash_email(typed)))
    if reason in SUPPRESSION_REASONS:
        statement = statement.where(Suppression.reason == reason)
    return list(db.session.scalars(statement))


def count_suppressions_by_reason() -> dict[str, int]:
    """How many addresses are on the list, by reason."""
    rows = db.session.execute(select(Suppression.reason, func.count()).group_by(Suppression.reason))
    return {row.reason: row[1] for row in rows}


def any_hashed() -> bool:
    """Whether an erased customer left a wish behind."""
    return db.session.scalar(select(Suppression.email).where(*_hashed()).limit(1)) is not None


def _hashed() -> Sequence[ColumnElement[bool]]:
    return Suppression.email >= HASHED_EMAIL_PREFIX, Suppression.email < HASHED_EMAIL_PREFIX + chr(0x10FFFF)


def export_suppressions() -> Iterator[bytes]:
    """The whole list as the CSV file that its import takes, piece by piece; also the hashes, which it takes, too."""
    yield from stream_csv(
        """
        select case when email ~ '^[-=+@\t\r]' then '''' || email else email end as email, reason,
          to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as since, source
        from suppression order by email
        """,
        {},
    )
