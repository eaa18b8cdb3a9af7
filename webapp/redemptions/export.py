"""Export redemptions as CSV, row by row as they come from the database."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from webapp.core.csv_export import escape_formula, format_time
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
    "entered_by",
)


def generate_redemption_csv(redemptions: Iterable[RedemptionRecord]) -> Iterator[str]:
    """Yield the header line, then one line for each redemption."""
    yield _csv_line(HEADINGS)
    for record in redemptions:
        row = record.row
        yield _csv_line(
            (
                record.public_id,
                record.offer_name,
                record.code,
                record.email,
                record.customer_name,
                format_time(row.redeemed_at),
                row.channel,
                row.order_id,
                row.order_amount,
                row.order_currency,
                row.discount_amount,
                record.entered_by,
            )
        )


def _csv_line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([escape_formula(value) for value in values])
    return text.getvalue()
