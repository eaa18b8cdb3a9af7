"""Exports as CSV: complete, in chunks, and without formulas."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from flask import Flask
from sqlalchemy import text

from webapp.core import csv_export, database_timeouts
from webapp.core.database_connections import DeadlineConnection
from webapp.core.extensions import db


@pytest.mark.parametrize("rows", [0, 1, 200])
def test_every_row_is_in_one_chunk(app: Flask, rows: int) -> None:
    query = f"select n, repeat('x', 998) as text from generate_series(1, {rows}) n"

    chunks = list(csv_export.stream_csv(query, {}))

    expected = ["n,text", *(f"{n + 1},{'x' * 998}" for n in range(rows)), ""]
    assert b"".join(chunks).decode() == "\r\n".join(expected)
    assert [len(chunk) >= 64 * 1024 for chunk in chunks[:-1]] == [True] * (rows // 65)


def parse_column(query: str, cells: list[Any]) -> list[str]:
    """Export a query over the parameter `cells`; return the cells of its only column."""
    file = b"".join(csv_export.stream_csv(query, {"cells": cells})).decode()
    return ["".join(row) for row in csv.reader(io.StringIO(file, newline=""))][1:]


def test_sql_and_python_format_csv_cells_alike(app: Flask) -> None:
    """A query and a cell are written by different parts; a spreadsheet must not see a difference."""
    texts = [*(f"{sign}1" for sign in "-=+@－＝＋＠\t\r\n"), "a=1", "", "two\r\nlines", 'say "hi", =1']
    column = csv_export.FORMULA_SAFE_COLUMN.format("cell", "cell")
    order = "with ordinality as given(cell, n) order by n"
    assert parse_column(f"select {column} from unnest(%(cells)s::text[]) {order}", texts) == [
        csv_export.escape_formula(cell) for cell in texts
    ]

    times = [datetime(2026, 5, 1, 14, 30, 0, 999999, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), None]
    db.session.execute(text("set local timezone = 'Asia/Tokyo'"))
    column = csv_export.TIME_COLUMN.format("cell", "at")
    assert parse_column(f"select {column} from unnest(%(cells)s::timestamptz[]) {order}", times) == [
        csv_export.format_time(at) for at in times
    ]


def test_only_the_statements_of_an_export_may_take_long(app: Flask) -> None:
    driver = cast("DeadlineConnection", db.session.connection().connection.driver_connection)
    chunks = csv_export.stream_csv("select repeat('x', 1000) from generate_series(1, 200)", {})

    next(chunks)
    during = driver.statement_seconds
    chunks.close()  # type: ignore[attr-defined]

    assert (during, driver.statement_seconds) == (database_timeouts.LONG_STATEMENT_SECONDS, None)


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
