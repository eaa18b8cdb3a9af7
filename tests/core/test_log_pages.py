"""Positions in a log."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from webapp.core.log_pages import LogPosition


@pytest.mark.parametrize(
    ("at", "microseconds"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(2026, 5, 1, 12, 30, 0, 1, tzinfo=UTC), 1_777_638_600_000_001),
        (datetime(9999, 1, 1, tzinfo=UTC), 253_370_764_800_000_000),
    ],
)
def test_a_position_is_two_integers(at: datetime, microseconds: int) -> None:
    position = LogPosition(at, 7)

    assert position.to_integers() == (microseconds, 7)
    assert LogPosition.from_integers(microseconds, 7) == position


def test_a_time_out_of_range_becomes_the_latest_one() -> None:
    assert LogPosition.from_integers(10**30, 7) == LogPosition(datetime(9999, 1, 1, tzinfo=UTC), 7)
