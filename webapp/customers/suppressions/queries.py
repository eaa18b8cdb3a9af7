"""Queries for the suppression list.

For the customers of a batch see `customers.queries.find_suppression_reasons`.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from webapp.core.csv_export import FORMULA_SAFE_COLUMN, TIME_COLUMN, stream_csv
from webapp.core.email_addresses import hash_email
from webapp.core.extensions import db
from webapp.customers.models import SUPPRESSION_REASONS, Suppression
from webapp.customers.queries import PAGE_SIZE

# Sorts reasons by strength, the strongest last.
REASON_RANK: ColumnElement[int] = func.array_position(
    literal_column("array['bounced', 'unsubscribed', 'complained']"), Suppression.reason
)


def find_suppression_by_email(email: str) -> Suppression | None:
    """Return the entry of a normalised address or of its hash.

    If both exist, it returns the one with the stronger reason.
    """
    return db.session.scalar(
        select(Suppression)
        .where(Suppression.email.in_((email, hash_email(email))))
        .order_by(REASON_RANK.desc())
        .limit(1)
        .execution_options(populate_existing=True)
    )


def find_suppression_by_key(key: str) -> Suppression | None:
    """Return the entry whose key is exactly this address or hash."""
    return db.session.get(Suppression, key)


def list_suppressions(search: str = "", reason: str = "", after: str = "", limit: int = PAGE_SIZE) -> list[Suppression]:
    """Return entries after the address `after`, sorted by address.

    Returns `limit + 1` entries if there are more. Hashes start with `sha256:` and sort as text among the addresses.

    :param search: the start of an address; a complete address is also found by its hash.
    :param reason: one of `SUPPRESSION_REASONS`, or empty for all.
    """
    prefix = search.replace("\0", "").strip().lower()
    statement = select(Suppression).order_by(Suppression.email).limit(limit + 1).where(Suppression.email > after)
    if prefix:
        has_prefix = (Suppression.email >= prefix) & (Suppression.email < prefix + chr(0x10FFFF))
        statement = statement.where(has_prefix | (Suppression.email == hash_email(prefix)))
    if reason in SUPPRESSION_REASONS:
        statement = statement.where(Suppression.reason == reason)
    return list(db.session.scalars(statement))


def count_suppressions_by_reason() -> dict[str, int]:
    """Return the number of suppressed addresses by reason."""
    rows = db.session.execute(select(Suppression.reason, func.count()).group_by(Suppression.reason))
    return {row.reason: row[1] for row in rows}


def export_suppressions() -> Iterator[bytes]:
    """Stream the suppression list as CSV, hashes included.

    The import accepts this format.
    """
    yield from stream_csv(
        f"""
        select {FORMULA_SAFE_COLUMN.format("email", "email")}, reason, {TIME_COLUMN.format("at", "since")}, source
        from suppression order by email
        """,  # noqa: S608
        {},
    )
