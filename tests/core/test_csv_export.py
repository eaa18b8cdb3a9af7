"""Exports as CSV: complete, in chunks, and without formulas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from flask import Flask

from webapp.core import csv_export


@pytest.mark.parametrize("rows", [0, 1, 200])
def test_every_row_is_in_one_chunk(app: Flask, rows: int) -> None:
    query = f"select n, repeat('x', 998) as text from generate_series(1, {rows}) n"

    chunks = list(csv_export.stream_csv(query, {}))

    expected = ["n,text", *(f"{n + 1},{'x' * 998}" for n in range(rows)), ""]
    assert b"".join(chunks).decode() == "\r\n".join(expected)
    assert [len(chunk) >= 64 * 1024 for chunk in chunks[:-1]] == [True] * (rows // 65)


@pytest.mark.parametrize("sign", "-=+@－＝＋＠\t\r\n")
def test_a_formula_is_escaped(sign: str) -> None:
    cells = (f"{sign}1", f"a{sign}", "", -1, None)

    assert [csv_export.escape_formula(cell) for cell in cells] == [f"'{sign}1", *cells[1:]]


def test_times_are_in_utc_and_have_seconds() -> None:
    at = datetime(2026, 5, 1, 14, 30, 0, 999999, tzinfo=timezone(timedelta(hours=2)))

    assert [csv_export.format_time(value) for value in (at, at.astimezone(UTC), None)] == [
        "2026-05-01T12:30:00Z",
        "2026-05-01T12:30:00Z",
        "",
    ]
