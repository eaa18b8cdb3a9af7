"""API operations for customers and imports."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.factories import MakeCustomer
from webapp.accounts import api_key_actions
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.models import CustomerImport, Suppression
from webapp.views.api.schemas.customers import import_json

CSV = "text/csv"
NDJSON = "application/x-ndjson"


def test_a_file_is_imported_and_its_progress_reported(api: FlaskClient) -> None:
    response = api.post("/api/v1/customers/import", data="email,name\nada@example.com,Ada\nbad,B\n", content_type=CSV)

    import_id = response.get_json()["id"]
    assert response.status_code == 202
    assert response.headers["Location"] == f"/api/v1/imports/{import_id}"
    assert response.get_json() == {"id": import_id, "status": "queued"}

    import_processing.run_import(import_id)
    progress = api.get(response.headers["Location"]).get_json()
    names = ("id", "status", "rows", "created", "updated", "rejected", "error")
    assert {name: progress[name] for name in names} == {
        "id": import_id,
        "status": "done",
        "rows": 2,
        "created": 1,
        "updated": 0,
        "rejected": 1,
        "error": None,
    }
    assert [(error["line"], error["code"]) for error in progress["errors"]] == [(3, "email_invalid")]


def test_the_progress_has_every_number_and_time(api: FlaskClient) -> None:
    """All numbers differ, so that none can be that of another name."""
    numbers = {"size": 90, "read": 80, "rows": 70, "created": 10, "updated": 20, "unchanged": 3, "duplicates": 4}
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    row = CustomerImport(
        filename="a.csv", media_type=CSV, status="failed", error_code="disk_full", error="It is full.", by="tests"
    )
    for name, value in {**numbers, "rejected": 33, "created_at": at, "finished_at": at + timedelta(hours=1)}.items():
        setattr(row, name, value)
    db.session.add(row)
    db.session.commit()

    assert api.get(f"/api/v1/imports/{row.id}").get_json() == {
        "id": row.id,
        "status": "failed",
        "error": {"code": "disk_full", "detail": "It is full."},
        "filename": "a.csv",
        **numbers,
        "rejected": 33,
        "created_at": "2026-05-01T12:00:00Z",
        "finished_at": "2026-05-01T13:00:00Z",
        "errors": [],
        "next_cursor": None,
    }


def test_times_are_in_utc_with_any_time_zone_of_the_database() -> None:
    at = datetime(2026, 5, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert import_json(CustomerImport(created_at=at), [], None)["created_at"] == "2026-04-30T23:00:00Z"


@pytest.mark.parametrize(("content_type", "name"), [(CSV, "tests.csv"), (NDJSON, "tests.ndjson")])
def test_a_file_is_named_after_its_key(api: FlaskClient, content_type: str, name: str) -> None:
    file = "email\nada@example.com\n" if content_type == CSV else '{"email": "ada@example.com"}'

    api.post("/api/v1/customers/import", data=file, content_type=content_type)

    assert [(row.filename, row.by) for row in import_queries.list_imports()] == [(name, "API key tests")]


@pytest.mark.parametrize("reason", ["unsubscribed", "bounced"])
def test_a_suppressed_customer_says_why_and_since_when(
    api: FlaskClient, make_customer: MakeCustomer, reason: str
) -> None:
    make_customer("Ada@example.com", source_id="C1")
    since = datetime(2026, 5, 1, 12, tzinfo=UTC)
    suppression = Suppression(email="ada@example.com", reason=reason, at=since, source="relay", detail="5.1.1")
    db.session.add(suppression)
    db.session.commit()

    customer = api.get("/api/v1/customers/C1").get_json()

    assert customer["email"] == "Ada@example.com"
    assert customer["suppression"] == {
        "reason": reason,
        "since": "2026-05-01T12:00:00Z",
        "source": "relay",
        "detail": "5.1.1",
    }
    assert customer["unsubscribed_at"] == ("2026-05-01T12:00:00Z" if reason == "unsubscribed" else None)


def test_ndjson_with_a_charset_is_imported_into_the_audience(api: FlaskClient) -> None:
    response = api.post(
        "/api/v1/customers/import?audience=VIP",
        data='{"email":"ada@example.com"}\n',
        content_type=f"{NDJSON}; charset=utf-8",
    )

    import_processing.run_import(response.get_json()["id"])

    ada = customer_queries.find_customer_by_email("ada@example.com")
    assert ada is not None
    assert [audience.name for audience in customer_queries.list_customer_audiences(ada.id)] == ["VIP"]


def test_import_errors_are_paginated(api: FlaskClient) -> None:
    response = api.post("/api/v1/customers/import", data="email\n" + "bad\n" * 5, content_type=CSV)
    import_processing.run_import(response.get_json()["id"])

    lines: list[int] = []
    url = f"{response.headers['Location']}?limit=2"
    while url:
        page = api.get(url)
        lines += [error["line"] for error in page.get_json()["errors"]]
        url = page.headers.get("Link", "").partition(">")[0].removeprefix("<")

    assert lines == [2, 3, 4, 5, 6]

    full = api.get(f"{response.headers['Location']}?limit=5")
    assert (len(full.get_json()["errors"]), "Link" in full.headers) == (5, False)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", CSV, 422, "file_empty"),
        (b"\xff\xd8\xff\xe0", CSV, 422, "file_binary"),
        (b"name\nAda\n", CSV, 422, "email_column_missing"),
        (b"email\n", CSV, 422, "rows_missing"),
        (b"{}", "application/json", 415, None),
        (b"email\na@example.com\n", "text/plain", 415, None),
    ],
)
def test_an_invalid_file_is_rejected(
    api: FlaskClient, body: bytes, content_type: str, status: int, code: str | None
) -> None:
    response = api.post("/api/v1/customers/import", data=body, content_type=content_type)

    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    if code:
        assert response.get_json()["errors"][0]["code"] == code
    assert import_queries.list_imports() == []


def test_a_file_that_is_too_large_is_rejected(api: FlaskClient, with_settings: Callable[..., Settings]) -> None:
    with_settings(max_upload_bytes=1_500_000)

    response = api.post("/api/v1/customers/import", data=b"email\n" + b"a@example.com\n" * 150_000, content_type=CSV)

    assert (response.status_code, response.get_json()["code"]) == (413, "too_large")
    assert import_queries.list_imports() == []


def test_an_unknown_import_is_not_found(api: FlaskClient) -> None:
    assert api.get("/api/v1/imports/7").status_code == 404


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x"])
def test_invalid_page_limits_are_rejected(api: FlaskClient, query: str) -> None:
    assert api.get(f"/api/v1/imports/7?{query}").status_code == 422


def test_a_customer_is_created_updated_and_read(api: FlaskClient) -> None:
    body = {"email": "Ada@example.com", "name": "Ada", "locale": "en-gb", "audiences": ["VIP", "News"]}

    created = api.put("/api/v1/customers/C1", json=body)
    updated = api.put("/api/v1/customers/C1", json={"email": "countess@example.com"})

    assert (created.status_code, updated.status_code) == (201, 200)
    customer = api.get("/api/v1/customers/C1").get_json()
    assert customer.pop("created_at").endswith("Z")
    assert customer == {
        "source_id": "C1",
        "email": "countess@example.com",
        "name": "Ada",
        "locale": "en-GB",
        "audiences": ["News", "VIP"],
        "suppression": None,
        "unsubscribed_at": None,
    }


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/email"),
        ({"email": "nobody"}, "/email"),
        ({"email": 1}, "/email"),
        ({"email": "a@example.com", "name": "x" * 201}, "/name"),
        ({"email": "a@example.com", "name": "a\0b"}, "/name"),
        ({"email": "a@example.com", "locale": "german!"}, "/locale"),
        ({"email": "a@example.com", "nickname": "A"}, "/nickname"),
        ({"email": "a@example.com", "audiences": "VIP"}, "/audiences"),
    ],
)
def test_invalid_customer_data_is_reported_at_its_field(api: FlaskClient, body: object, pointer: str) -> None:
    response = api.put("/api/v1/customers/C1", json=body)

    assert response.status_code == 422
    assert [error["pointer"] for error in response.get_json()["errors"]] == [pointer]


def test_an_email_of_another_customer_is_rejected_with_409(api: FlaskClient, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", source_id="C1")

    response = api.put("/api/v1/customers/C2", json={"email": "ada@example.com"})

    assert (response.status_code, response.get_json()["code"]) == (409, "conflict")


def test_an_unknown_source_id_is_not_found(api: FlaskClient) -> None:
    assert api.get("/api/v1/customers/C9").status_code == 404


def test_a_source_id_with_a_null_character_is_rejected(api: FlaskClient) -> None:
    assert api.get("/api/v1/customers/%00").status_code == 422


@pytest.mark.parametrize("scope", ["read", "redeem"])
def test_writing_needs_the_scope_manage(app: Flask, scope: str) -> None:
    key = api_key_actions.create_api_key("shop", [scope], by="tests")
    headers = {"Authorization": f"Bearer {key}"}
    client = app.test_client()

    put_response = client.put("/api/v1/customers/C1", json={"email": "a@example.com"}, headers=headers)
    import_response = client.post(
        "/api/v1/customers/import", data="email\na@example.com\n", content_type=CSV, headers=headers
    )

    assert (put_response.status_code, import_response.status_code) == (403, 403)


@pytest.mark.parametrize("blank", ["%20", "%C2%A0"])
def test_a_blank_source_id_is_rejected(api: FlaskClient, blank: str) -> None:
    response = api.put(f"/api/v1/customers/{blank}", json={"email": "ada@example.com"})

    assert response.status_code == 422
    assert response.json is not None
    assert response.json["errors"][0]["pointer"] == "/source_id"
