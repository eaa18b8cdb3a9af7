"""The lines of the CSV export of a campaign's recipients."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta, timezone

from webapp.campaigns.deliveries.export import RECIPIENT_CSV_COLUMNS, iter_recipient_csv
from webapp.campaigns.deliveries.status import DeliveryStatus


def export(*deliveries: DeliveryStatus) -> list[list[str]]:
    return list(csv.reader(io.StringIO("".join(iter_recipient_csv(deliveries)))))


def test_a_line_has_the_state_its_time_in_utc_and_the_reply_or_the_note() -> None:
    at = datetime(2026, 5, 1, 23, 30, 5, 999, tzinfo=timezone(timedelta(hours=-2)))
    failed = DeliveryStatus(
        1, 2, "ada@example.com", "Ada", "failed", at, 550, "5.1.1 no", "resolve it", source_id="shop-7"
    )
    sent = DeliveryStatus(1, 3, "bob@example.com", "", "sent", note="before May")
    assert export(failed, sent) == [
        ["email", "name", "source_id", "state", "at", "code", "words"],
        ["ada@example.com", "Ada", "shop-7", "failed", "2026-05-02T01:30:05Z", "550", "5.1.1 no"],
        ["bob@example.com", "", "", "sent", "", "", "before May"],
    ]
    assert export() == [list(RECIPIENT_CSV_COLUMNS)]


def test_no_cell_is_a_formula() -> None:
    (_, row) = export(DeliveryStatus(1, 2, "=a@example.com", "+1", "sent", text="@x", source_id="-2"))
    assert row == ["'=a@example.com", "'+1", "'-2", "sent", "", "", "'@x"]
