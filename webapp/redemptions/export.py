"""Redemptions as CSV, made row by row as they come from the database."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from webapp.core.formatting import format_rfc3339
from webapp.redemptions.queries import RedemptionRecord

HEADINGS = (
    "reference",
    "offer",
    "code",
    "email",
    "name",
    "redeemed_at",
    "channel",
    "order_id",
    "order_amount",
    "order_currency",
    "discount_amount",
)


def generate_redemption_csv(redemptions: Iterable[RedemptionRecord]) -> Iterator[str]:
    """The headings and a line for each redemption."""
    yield _csv_line(HEADINGS)
    for done in redemptions:
        use = done.row
        yield _csv_line(
            (
                done.public_id,
                done.offer_name,
                done.code,
                done.email,
                done.customer_name,
                format_rfc3339(use.redeemed_at),
                use.channel,
                use.order_id,
                use.order_amount,
                use.order_currency,
                use.discount_amount,
            )
        )


def _csv_line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([_escape_formula(value) for value in values])
    return text.getvalue()


def _escape_formula(value: object) -> object:
    # A spreadsheet would run what begins like a formula; somebody else chose these names and ids.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
