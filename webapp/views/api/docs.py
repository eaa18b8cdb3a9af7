"""The description of the JSON calls, for programs (OpenAPI 3.1) and for people.

It belongs to the door and not to a room, because it tells of all of them.
"""

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
    400: "The body is not JSON that can be read.",
    401: "No valid key was sent.",
    403: "The key lacks the scope that this call needs.",
    404: "There is no such thing.",
    409: "A rule says no; `code` says which.",
    411: "The body's `Content-Length` is missing.",
    412: "It has been changed since the version that `If-Match` names; read it again.",
    413: "The body is larger than we take.",
    415: "The body is of another content type than this call takes.",
    422: "Some fields can't be taken as they are; `errors` says which.",
    429: "Too many calls; `Retry-After` says for how many seconds to wait.",
    503: "The database can't be reached just now; try again after `Retry-After` seconds.",
}
API_DESCRIPTION = """\
Offers with one shared voucher code each: import customers, set up and launch offers, validate and redeem codes.

- **Key**: send `Authorization: Bearer …` with every call. Keys are made under Settings, or with
  `flask --app wsgi api-key create`; their scopes are `read`, `redeem` and `manage`.
- **Errors** are problem documents (RFC 9457): `code` is for programs and stays, `detail` is for people,
  `errors` has a JSON pointer for each field, `request_id` is what to tell us.
- **Money** is in minor units (cents) with a currency, **percent** a decimal string, **times** are UTC (RFC 3339).
- **Pages** end with a `next_cursor`: send it as `cursor` to get the next one.
- **Repeats**: `POST /redemptions` with the same `Idempotency-Key`, or for the same order, answers the first result.
"""
RETRY_AFTER_HEADER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


@blueprint.get("/openapi.json")
@api_key_exempt
def openapi() -> Response:
    return jsonify(_build_document(current_app._get_current_object()))  # type: ignore[attr-defined]


@blueprint.get("/docs")
@api_key_exempt
def docs() -> Response:
    return make_response(render_template("docs.html"))


@lru_cache
def _build_document(app: OpenAPI) -> dict[str, Any]:
    """What flask-openapi collects, with the key that every call needs and the refusals that any may answer."""
    document: dict[str, Any] = deepcopy(app.api_doc)
    document["info"]["description"] = API_DESCRIPTION
    document["security"] = [{"key": []}]
    document["paths"] = {path: calls for path, calls in document["paths"].items() if path.startswith(API_PREFIX)}
    document.pop("tags", None)
    views = _views_by_operation(app)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["tags"] = [path.removeprefix(API_PREFIX).split("/")[1]]
            _add_view_requirements(operation, views[path, method])
            _add_error_responses(operation, "{" in path, method)
    return document


def _views_by_operation(app: OpenAPI) -> dict[tuple[str, str], Any]:
    """The view of each path, as the document writes it, and method."""
    return {
        (re.sub(r"<(?:[^<>:]+:)?(\w+)>", r"{\1}", rule.rule), method.lower()): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }


def _add_view_requirements(operation: dict[str, Any], view: Any) -> None:
    """What a call needs and takes, scope, headers and body, from the marks that the door itself goes by."""
    scope = f"Needs the scope `{getattr(view, 'needs_scope', None)}`."
    # flask-openapi turns the line breaks of a docstring into breaks of the page.
    said = operation.get("description", "").replace("<br/>", "\n").strip()
    operation["description"] = f"{said}\n\n{scope}".strip()
    for name, (why, schema) in getattr(view, "heeds", {}).items():
        header = {"name": name, "in": "header", "required": False, "description": why, "schema": schema}
        operation.setdefault("parameters", []).append(header)
    streams = getattr(view, "takes", None)
    if streams:
        content: dict[str, Any] = {media_type: {"schema": {"type": "string"}} for media_type in streams}
        if view.takes_model is not None:
            schema = view.takes_model.model_json_schema()
            content["application/json"] = {"schema": _inline_references(schema, schema.pop("$defs", {}))}
        operation["requestBody"] = {"required": True, "content": content}


def _inline_references(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema of pydantic's that stands alone: a reference in it would point into the whole document."""
    if isinstance(schema, list):
        return [_inline_references(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline_references(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {name: _inline_references(value, parts) for name, value in schema.items()}


def _add_error_responses(operation: dict[str, Any], names_something: bool, method: str) -> None:
    """What follows from the shape of a call; a room declares what else it refuses with: `responses={412: None}`."""
    statuses = {401, 403, 503}
    if names_something:
        statuses.add(404)
    if operation.get("parameters"):
        statuses.add(422)
    if method != "get":
        statuses.add(409)
    if operation.get("requestBody"):
        statuses |= {400, 413, 415, 422}
    declared = operation["responses"]
    # flask-openapi adds one for 422 to each call, as a list and as plain JSON; ours is a problem as all are.
    declared.pop("422", None)
    for status in sorted(statuses | {int(given) for given in declared if given in map(str, ERROR_DESCRIPTIONS)}):
        declared[str(status)] = _problem_response_schema(status)


def _problem_response_schema(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": ERROR_DESCRIPTIONS[status],
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status == 503:
        answer["headers"] = RETRY_AFTER_HEADER
    return answer
