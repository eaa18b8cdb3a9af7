"""The sentences of validation errors, which people read; programs read `code`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.factories import MakeCustomer

REDEMPTION: dict[str, Any] = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
OFFER: dict[str, Any] = {"name": "Summer", "discount": {"type": "percent", "percent": "25"}}


@pytest.mark.parametrize(
    ("path", "body", "code", "detail"),
    [
        ("redemptions", {"code": "X"}, "missing", "This field is required."),
        (
            "redemptions",
            REDEMPTION | {"Idempotency-Key": "k"},
            "extra_forbidden",
            "There is no such field or parameter. Check its name, or leave it out.",
        ),
        ("redemptions", REDEMPTION | {"code": 5}, "string_type", "Send a string."),
        ("redemptions", REDEMPTION | {"code": "x" * 201}, "string_too_long", "Send at most 200 characters."),
        ("redemptions", REDEMPTION | {"order": {"id": ""}}, "string_too_short", "Send at least 1 character."),
        (
            "redemptions",
            REDEMPTION | {"order": {"id": "A", "currency": "eur"}},
            "string_pattern_mismatch",
            "Send a currency as three capital letters (ISO 4217), such as EUR.",
        ),
        (
            "offers",
            OFFER | {"discount": {"type": "percent", "percent": "many"}},
            "string_pattern_mismatch",
            "Send a percentage as a string with at most two decimals, such as 12.5.",
        ),
        (
            "offers",
            OFFER | {"discount": {"type": "none"}},
            "literal_error",
            "Send one of these values: 'percent' or 'amount'.",
        ),
        (
            "offers",
            OFFER | {"discount": {"type": "percent"}},
            "value_error",
            "Send percent, without amount and currency.",
        ),
        ("offers", OFFER | {"starts_at": "soon"}, "value_error", "Use an RFC 3339 time such as 2026-06-01T00:00:00Z."),
        ("redemptions", REDEMPTION | {"order": {"id": "A", "amount": "5"}}, "int_type", "Send a whole number."),
        (
            "redemptions",
            REDEMPTION | {"order": {"id": "A", "amount": -1}},
            "greater_than_equal",
            "Send a number of at least 0.",
        ),
        ("redemptions", REDEMPTION | {"metadata": []}, "dict_type", "Send a JSON object."),
        ("redemptions", REDEMPTION | {"customer": "ada"}, "model_type", "Send a JSON object."),
        ("redemptions", REDEMPTION | {"customer": {}}, "value_error", "Send either email or source_id."),
        ("bounces", {"bounces": []}, "too_short", "Send at least 1 element."),
        ("bounces", {"bounces": 5}, "list_type", "Send a list."),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_the_detail_of_an_invalid_field_says_what_to_send(
    api: Any, path: str, body: dict[str, Any], code: str, detail: str
) -> None:
    response = api.post(f"/api/v1/{path}", json=body)

    (error,) = response.json["errors"]
    assert (response.status_code, error["code"], error["detail"]) == (422, code, detail)
    assert "header" not in error


@pytest.mark.parametrize(
    ("query", "pointer", "detail"),
    [
        ("limit=0", "/limit", "Send a number of at least 1."),
        ("limit=many", "/limit", "Send a whole number."),
        ("limit=101", "/limit", "Send a number of at most 100."),
        ("state=gone", "/state", "Send one of these values: 'scheduled', 'live', 'paused', 'ended' or 'used_up'."),
        ("sort=name", "/sort", "There is no such field or parameter. Check its name, or leave it out."),
    ],
)
def test_the_detail_of_an_invalid_parameter_says_what_to_send(api: Any, query: str, pointer: str, detail: str) -> None:
    response = api.get(f"/api/v1/offers?{query}")

    (error,) = response.json["errors"]
    assert (response.status_code, error["pointer"], error["detail"]) == (422, pointer, detail)


def test_a_conflict_of_customers_is_worded_for_programs_too(api: Any, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", source_id="C-1")
    make_customer("bob@example.com", source_id="C-2")
    response = api.put("/api/v1/customers/C-2", json={"email": "ada@example.com"})

    assert response.status_code == 409
    assert response.json["detail"] == (
        "Another customer has this email address. Change that customer first, or use another address."
    )
