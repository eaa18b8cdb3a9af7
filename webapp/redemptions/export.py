"""Export redemptions as CSV, row by row as they come from the database, and record the export."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator
from datetime import datetime

from webapp.accounts.audit import record_audit_entry
from webapp.core.csv_export import escape_formula, format_time
from webapp.core.extensions import db
from webapp.redemptions.queries import RedemptionFilter, RedemptionRecord

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


def record_redemption_export(redemption_filter: RedemptionFilter | None, by: str) -> None:
    """Record an export of redemptions with its filter in the audit log. Commits.

    :param redemption_filter: the filter of the export; None when it can match nothing.
    """
    details = dataclasses.asdict(redemption_filter) if redemption_filter else {"found": "nothing"}
    for name, value in details.items():
        details[name] = value.isoformat() if isinstance(value, datetime) else value
    record_audit_entry(
        by, "redemptions.exported", **{name: value for name, value in details.items() if value is not None}
    )
    db.session.commit()


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
