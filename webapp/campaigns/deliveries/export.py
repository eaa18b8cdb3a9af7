"""Export the recipients of a campaign as CSV, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from webapp.campaigns.deliveries.status import DeliveryStatus
from webapp.core.csv_export import escape_formula, format_time

RECIPIENT_CSV_COLUMNS = ("email", "name", "source_id", "state", "at", "code", "words")
ROWS_PER_CHUNK = 500


def iter_recipient_csv(deliveries: Iterable[DeliveryStatus]) -> Iterator[str]:
    """Yield the header and a line per recipient, in chunks of `ROWS_PER_CHUNK` lines."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\r\n").writerow
    write(RECIPIENT_CSV_COLUMNS)
    for count, delivery in enumerate(deliveries, 1):
        customer = [escape_formula(value) for value in (delivery.email, delivery.name, delivery.source_id)]
        write(
            (
                *customer,
                delivery.state,
                format_time(delivery.at),
                delivery.code,
                escape_formula(delivery.text or delivery.note),
            )
        )
        if count % ROWS_PER_CHUNK == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()
