"""The OpenAPI document of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from flask import Flask
from flask.testing import FlaskClient

from webapp import get_app_version

METHODS = {"get", "put", "post", "delete", "patch"}


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    response = client.get("/api/v1/openapi.json")
    assert response.status_code == 200
    parsed: dict[str, Any] = response.get_json()
    return parsed


def iter_operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def iter_schemas(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema of the operations and components."""
    if isinstance(value, dict):
        if isinstance(value.get("schema"), dict):
            yield value["schema"]
        for part in value.values():
            yield from iter_schemas(part)
    elif isinstance(value, list):
        for part in value:
            yield from iter_schemas(part)


def test_the_document_has_the_openapi_and_app_version(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "Onecode"
    assert document["info"]["version"] == get_app_version()


def test_the_document_lists_exactly_the_operations_that_need_a_key(app: Flask, document: dict[str, Any]) -> None:
    routes_with_key = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1/")
        and not getattr(app.view_functions[rule.endpoint], "is_api_key_exempt", False)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in iter_operations(document)} == routes_with_key


def test_every_operation_has_a_unique_id_and_a_summary(document: dict[str, Any]) -> None:
    all_operations = list(iter_operations(document))
    assert len({operation["operationId"] for _, _, operation in all_operations}) == len(all_operations)
    assert [path for path, _, operation in all_operations if not operation.get("summary")] == []


def test_every_operation_declares_its_path_parameters(document: dict[str, Any]) -> None:
    for path, _, operation in iter_operations(document):
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path


def test_every_error_response_is_a_problem_document(document: dict[str, Any]) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, _, operation in iter_operations(document):
        error_responses = {s: r for s, r in operation["responses"].items() if s.startswith(("4", "5"))}
        assert {"401", "403", "503"} <= error_responses.keys(), path
        assert all(response["content"] == problem for response in error_responses.values()), path


def test_every_operation_declares_a_success_response(document: dict[str, Any]) -> None:
    for path, method, operation in iter_operations(document):
        assert any(status.startswith("2") for status in operation["responses"]), (method, path)


def test_operations_with_a_body_declare_body_errors(document: dict[str, Any]) -> None:
    for path, _, operation in iter_operations(document):
        if operation.get("requestBody"):
            assert {"400", "413", "415", "422"} <= operation["responses"].keys(), path


def test_every_operation_names_its_scope(document: dict[str, Any]) -> None:
    for path, method, operation in iter_operations(document):
        assert re.search("Requires the scope `(read|redeem|manage)`.", operation["description"]), (method, path)


def test_uploads_declare_their_media_types(document: dict[str, Any]) -> None:
    upload = document["paths"]["/api/v1/customers/import"]["post"]
    assert {"text/csv", "application/x-ndjson"} == upload["requestBody"]["content"].keys()


def test_redeeming_declares_404_and_changing_an_offer_412(document: dict[str, Any]) -> None:
    assert "404" in document["paths"]["/api/v1/redemptions"]["post"]["responses"]
    assert "412" in document["paths"]["/api/v1/offers/{code}"]["patch"]["responses"]


def test_every_reference_can_be_resolved(document: dict[str, Any]) -> None:
    referenced = set(re.findall(r'"#/components/schemas/([^"]+)"', str(document).replace("'", '"')))
    assert "Problem" in referenced
    assert referenced <= document["components"]["schemas"].keys()


def test_every_schema_is_valid_json_schema(document: dict[str, Any]) -> None:
    for schema in [*document["components"]["schemas"].values(), *iter_schemas(document)]:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_an_error_response_conforms_to_the_document(app: Flask, document: dict[str, Any]) -> None:
    response = app.test_client().get("/api/v1/offers")
    schema = {**document["components"]["schemas"]["Problem"], "components": document["components"]}
    assert (response.status_code, response.mimetype) == (401, "application/problem+json")
    jsonschema_rs.validate(schema, response.get_json())


def test_the_docs_page_needs_no_key_and_loads_only_local_files(client: FlaskClient) -> None:
    response = client.get("/api/v1/docs")
    assert response.status_code == 200
    assert "script-src 'self'; style-src 'self'" in response.headers["Content-Security-Policy"]
    for url in re.findall(r'(?:src|href)="([^"]+)"', response.text):
        assert client.get(url).status_code == 200, url


def test_the_reason_of_a_passed_check_is_explained(document: dict[str, Any]) -> None:
    reason = document["components"]["schemas"]["CheckOut"]["properties"]["reason"]
    assert reason["description"] == "The refusal that this check guards against, also while it passes."
