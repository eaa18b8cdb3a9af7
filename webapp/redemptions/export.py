"""Redemptions as CSV, made row by row as they come from the database."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from webapp.core.formatting import time
from webapp.redemptions.queries import Redeemed

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


def lines(redemptions: Iterable[Redeemed]) -> Iterator[str]:
    """The headings and a line for each redemption."""
    yield _line(HEADINGS)
    for done in redemptions:
        use = done.use
        yield _line(
            (
                done.public_id,
                done.offer_name,
                done.code,
                done.email,
                done.customer_name,
                time(use.redeemed_at),
                use.channel,
                use.order_id,
                use.order_amount,
                use.order_currency,
                use.discount_amount,
            )
        )


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([_harmless(value) for value in values])
    return text.getvalue()


def _harmless(value: object) -> object:
    # A spreadsheet would run what begins like a formula; somebody else chose these names and ids.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
