"""The API documentation: the OpenAPI 3.1 document and the reference page."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import lru_cache
from typing import Any

from flask import Response, current_app, jsonify, make_response, render_template
from flask_openapi import APIBlueprint, OpenAPI

from webapp.views.api.blueprint import API_PREFIX, api_key_exempt

blueprint = APIBlueprint("docs", __name__, doc_ui=False)

ERROR_DESCRIPTIONS = {
    400: "The body is not valid JSON or incomplete, or the query string is malformed.",
    401: "The API key is missing or invalid.",
    403: "The API key lacks the required scope.",
    404: "The object does not exist.",
    409: "The current state does not allow this; `code` contains the reason.",
    411: "The `Content-Length` header is missing.",
    412: "The object was changed since the version in `If-Match`; fetch it again.",
    413: "The body is too large, or has too many values.",
    415: "The media type of the body is not supported, or the body is compressed.",
    422: "Some fields are invalid; `errors` lists the first 20.",
    429: "Too many requests; wait `Retry-After` seconds.",
    503: "The database is currently unavailable; try again after `Retry-After` seconds.",
}
API_DESCRIPTION = """\
Offers with one shared voucher code each: import customers, create offers and launch
campaigns, validate and redeem codes.

- **Authentication**: send `Authorization: Bearer …` with every request. Create API keys under Settings, or with
  `flask --app wsgi api-key create`; their scopes are `read`, `redeem` and `manage`.
- **Errors** are problem details (RFC 9457): `code` is stable, `detail` is human-readable,
  `errors` has a JSON pointer to each invalid field, `request_id` identifies the request for support.
- **Money** is in minor units (cents) with a currency, **percentages** are decimal strings,
  **times** are UTC (RFC 3339).
- **Pagination**: send the `next_cursor` of a page as `cursor` to get the next page.
- **Idempotency**: `POST /redemptions` with the same `Idempotency-Key`, or for the same order, returns the first result.
"""
RETRY_AFTER_HEADER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


@blueprint.get("/openapi.json")
@api_key_exempt
def openapi() -> Response:
    """Return the OpenAPI document."""
    return jsonify(_build_document(current_app._get_current_object()))  # type: ignore[attr-defined]


@blueprint.get("/docs")
@api_key_exempt
def docs() -> Response:
    """Show the documentation page."""
    return make_response(render_template("docs.html"))


@lru_cache
def _build_document(app: OpenAPI) -> dict[str, Any]:
    """Build the OpenAPI document.

    Authentication, scopes and error responses are added to the document of flask-openapi.
    """
    document: dict[str, Any] = deepcopy(app.api_doc)
    document["info"]["description"] = API_DESCRIPTION
    document["security"] = [{"key": []}]
    document["paths"] = {
        path: operations for path, operations in document["paths"].items() if path.startswith(API_PREFIX)
    }
    document.pop("tags", None)
    views = _views_by_operation(app)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["tags"] = [path.removeprefix(API_PREFIX).split("/")[1]]
            _add_view_requirements(operation, views[path, method])
            _add_error_responses(operation, "{" in path, method)
    return document


def _views_by_operation(app: OpenAPI) -> dict[tuple[str, str], Any]:
    """Return the views by path (as written in the document) and method."""
    return {
        (re.sub(r"<(?:[^<>:]+:)?(\w+)>", r"{\1}", rule.rule), method.lower()): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }


def _add_view_requirements(operation: dict[str, Any], view: Any) -> None:
    """Document the scope, headers and media types that the decorators of a view set."""
    scope = f"Requires the scope `{getattr(view, 'required_scope', None)}`."
    # flask-openapi replaces the line breaks of a docstring by <br/>.
    description = operation.get("description", "").replace("<br/>", "\n").strip()
    operation["description"] = f"{description}\n\n{scope}".strip()
    for name, (header_description, schema) in getattr(view, "documented_headers", {}).items():
        header = {"name": name, "in": "header", "required": False, "description": header_description, "schema": schema}
        operation.setdefault("parameters", []).append(header)
    media_types = getattr(view, "accepted_media_types", None)
    if media_types:
        content: dict[str, Any] = {media_type: {"schema": {"type": "string"}} for media_type in media_types}
        if view.accepted_json_model is not None:
            schema = view.accepted_json_model.model_json_schema()
            content["application/json"] = {"schema": _inline_references(schema, schema.pop("$defs", {}))}
        operation["requestBody"] = {"required": True, "content": content}


def _inline_references(schema: Any, definitions: dict[str, Any]) -> Any:
    """Inline the references of a pydantic schema.

    They are relative to the schema and would not resolve inside the document.
    """
    if isinstance(schema, list):
        return [_inline_references(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline_references(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline_references(value, definitions) for name, value in schema.items()}


def _add_error_responses(operation: dict[str, Any], has_path_parameters: bool, method: str) -> None:
    """Document the error responses that follow from the shape of an operation.

    Views declare further ones themselves: `responses={412: None}`.
    """
    statuses = {401, 403, 503}
    if has_path_parameters:
        statuses.add(404)
    if operation.get("parameters"):
        statuses |= {400, 422}
    if method != "get":
        statuses.add(409)
    if operation.get("requestBody"):
        statuses |= {400, 413, 415, 422}
    declared = operation["responses"]
    # flask-openapi adds its own 422 response to each operation; it is replaced by one with problem details.
    declared.pop("422", None)
    declared_statuses = {status for status in ERROR_DESCRIPTIONS if str(status) in declared}
    for status in sorted(statuses | declared_statuses):
        declared[str(status)] = _problem_response(status)


def _problem_response(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": ERROR_DESCRIPTIONS[status],
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status == 503:
        response["headers"] = RETRY_AFTER_HEADER
    return response
