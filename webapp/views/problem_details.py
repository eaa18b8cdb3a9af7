"""Errors of the API as problem details (RFC 9457)."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify
from pydantic import BaseModel, ValidationError

from webapp.core.errors import FieldError


def problem_response(status: int, key: str, detail: str, errors: list[FieldError] | None = None) -> Response:
    """An RFC 9457 problem. `type` and `code` are stable; `errors[].pointer` is an RFC 6901 JSON pointer."""
    body: dict[str, Any] = {
        "type": f"urn:onecode:problem:{key}",
        "title": key.replace("_", " ").capitalize(),
        "status": status,
        "code": key,
        "detail": detail,
        "request_id": g.get("request_id"),
    }
    if errors:
        body["errors"] = [
            # The empty pointer is the body itself.
            {
                "pointer": f"/{error.field.replace('.', '/')}" if error.field else "",
                "code": error.key,
                "detail": error.message,
            }
            for error in errors
        ]
    response = jsonify(body)
    response.status_code = status
    response.mimetype = "application/problem+json"
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="onecode"'
    if status in (429, 503):
        response.headers["Retry-After"] = "5"
    return response


def validation_problem_response(error: ValidationError) -> Response:
    """What pydantic found, as one problem with a pointer for each field."""
    found = [
        FieldError(
            ".".join(str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"]),
            str(item["type"]),
            # The names of our own classes are nobody's business.
            "Input should be a JSON object"
            if item["type"] in ("model_type", "model_attributes_type")
            else str(item["msg"]).removeprefix("Value error, "),
        )
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return problem_response(422, "invalid_payload", "Some fields can't be taken as they are.", found)


class ProblemField(BaseModel):
    """One field that can't be taken: where (RFC 6901), why for programs, why for people."""

    pointer: str
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details, as every refusal is answered."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None = None
    errors: list[ProblemField] = []
