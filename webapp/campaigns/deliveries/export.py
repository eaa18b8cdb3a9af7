"""The recipients of a campaign as CSV, made row by row as they come from the database."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC

from webapp.campaigns.deliveries.queries import DeliveryStatus

RECIPIENT_CSV_COLUMNS = ("email", "name", "source_id", "state", "at", "code", "words")
ROWS_PER_CHUNK = 500


def iter_recipient_csv(fates: Iterable[DeliveryStatus]) -> Iterator[str]:
    """The headings and a line for each recipient, some hundred at a time."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\r\n").writerow
    write(RECIPIENT_CSV_COLUMNS)
    for n, fate in enumerate(fates, 1):
        at = "" if fate.at is None else fate.at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        who = [_escape_formula(value) for value in (fate.email, fate.name, fate.source_id)]
        write((*who, fate.state, at, fate.code, _escape_formula(fate.text or fate.note)))
        if n % ROWS_PER_CHUNK == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def _escape_formula(value: str) -> str:
    # A spreadsheet would run what begins like a formula; somebody else chose these words.
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
