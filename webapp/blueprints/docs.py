"""The description of the JSON calls, for programs (OpenAPI 3.1) and for people.

It belongs to the door and not to a room, because it tells of all of them.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

from flask import Response, current_app, jsonify, make_response, render_template
from flask_openapi import APIBlueprint, OpenAPI

from webapp.blueprints.api import PREFIX, open_to_all

room = APIBlueprint("docs", __name__, doc_ui=False)

REFUSALS = {
    400: "The body is not JSON that can be read.",
    401: "No valid key was sent.",
    403: "The key lacks the scope that this call needs.",
    404: "There is no such thing.",
    409: "A rule says no; `code` says which.",
    413: "The body is larger than we take.",
    415: "The body is of another content type than this call takes.",
    422: "Some fields can't be taken as they are; `errors` says which.",
    429: "Too many calls; `Retry-After` says for how many seconds to wait.",
    503: "The database can't be reached just now; nothing was saved.",
}
WAIT = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


@room.get("/openapi.json")
@open_to_all
def openapi() -> Response:
    return jsonify(_document(current_app._get_current_object()))  # type: ignore[attr-defined]


@room.get("/docs")
@open_to_all
def docs() -> Response:
    return make_response(render_template("docs.html"))


@lru_cache
def _document(app: OpenAPI) -> dict[str, Any]:
    """What flask-openapi collects, with the key that every call needs and the refusals that any may answer."""
    document: dict[str, Any] = deepcopy(app.api_doc)
    document["security"] = [{"key": []}]
    document["paths"] = {path: calls for path, calls in document["paths"].items() if path.startswith(PREFIX)}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _declare_refusals(operation, "{" in path, method)
    return document


def _declare_refusals(operation: dict[str, Any], names_something: bool, method: str) -> None:
    statuses = {401, 403, 429, 503}
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
    for status in sorted(statuses | {int(s) for s in declared if s in map(str, REFUSALS)}):
        declared[str(status)] = _problem(status, declared.get(str(status), {}).get("description"))


def _problem(status: int, said: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": said or REFUSALS[status],
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in (429, 503):
        answer["headers"] = WAIT
    return answer
