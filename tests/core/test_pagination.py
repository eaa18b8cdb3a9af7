"""Cursors of pages."""

from __future__ import annotations

import pytest
from flask import Flask

from webapp.core import pagination
from webapp.core.errors import InvalidInput

MAX = 2**63 - 1


@pytest.mark.parametrize("values", [(0,), (7, 0), (MAX, MAX), (1, 2, 3)])
def test_a_cursor_contains_the_values_of_the_last_item(values: tuple[int, ...]) -> None:
    cursor = pagination.encode_cursor(*values)

    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert pagination.decode_cursor(cursor, len(values)) == values


@pytest.mark.parametrize("cursor", [None, ""])
def test_the_first_page_has_no_cursor(cursor: str | None) -> None:
    assert pagination.decode_cursor(cursor, 1) is None


@pytest.mark.parametrize(
    "cursor",
    [
        pagination.encode_cursor(1),
        pagination.encode_cursor(1, 2, 3),
        pagination.encode_cursor(-1, 2),
        pagination.encode_cursor(1, MAX + 1),
        "x",
        "é",
        "not a cursor",
    ],
)
def test_any_other_text_is_an_error(app: Flask, cursor: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        pagination.decode_cursor(cursor, 2)

    assert [(error.field, error.key) for error in raised.value.errors] == [("cursor", "cursor_invalid")]


@pytest.mark.parametrize("cursor", ["NQ", None])
def test_a_page_links_to_the_next_one(app: Flask, cursor: str | None) -> None:
    with app.test_request_context("/api/v1/offers?limit=2&cursor=OQ"):
        response = pagination.build_page_response("offers", [{"id": 1}], cursor)

    assert response.json == {"offers": [{"id": 1}], "next_cursor": cursor}
    link = '</api/v1/offers?limit=2&cursor=NQ>; rel="next"' if cursor else None
    assert response.headers.get("Link") == link
