"""Problem details (RFC 9457) for errors of the API."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify
from flask_babel import gettext as _
from pydantic import BaseModel, ValidationError

from webapp.core.errors import MAX_LISTED_ERRORS, FieldError, format_error_count
from webapp.views.validation_messages import explain_validation_error

# The other titles are derived from the error code.
_TITLES = {"broken_json": "Malformed JSON"}  # no translation


def problem_response(status: int, key: str, detail: str, errors: list[FieldError] | None = None) -> Response:
    """Return an RFC 9457 response.

    `type` and `code` are stable; `errors[].pointer` is a JSON pointer (RFC 6901). At most `MAX_LISTED_ERRORS` are
    listed; if there are more, `detail` contains their number.
    """
    errors = errors or []
    if len(errors) > MAX_LISTED_ERRORS:
        detail += f" {format_error_count(len(errors))}"
    body: dict[str, Any] = {
        "type": f"urn:onecode:problem:{key}",
        "title": _TITLES.get(key) or key.replace("_", " ").capitalize(),
        "status": status,
        "code": key,
        "detail": detail,
        "request_id": g.get("request_id"),
    }
    if errors:
        body["errors"] = [
            _locate(error) | {"code": error.key, "detail": error.message} for error in errors[:MAX_LISTED_ERRORS]
        ]
    response = jsonify(body)
    response.status_code = status
    response.mimetype = "application/problem+json"
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="onecode"'  # no translation
    if status in (429, 503):
        response.headers["Retry-After"] = "5"
    return response


def _locate(error: FieldError) -> dict[str, str]:
    """Return the pointer of an error; the empty pointer refers to the whole body.

    A header is named as well: its pointer is a position in no body, but clients know it.
    """
    pointer = {"pointer": f"/{error.field.replace('.', '/')}" if error.field else ""}
    return pointer | {"header": error.field} if error.is_header else pointer


def validation_problem_response(error: ValidationError) -> Response:
    """Return the response to input that pydantic has rejected, with field errors."""
    errors = [
        FieldError(
            ".".join(str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"]),
            str(item["type"]),
            explain_validation_error(item),
        )
        for item in error.errors(include_url=False, include_input=False)
    ]
    return problem_response(422, "invalid_payload", _("Some fields are invalid."), errors)


class ProblemField(BaseModel):
    """An invalid field: a JSON pointer to it (RFC 6901), an error code and a message.

    The name of a query parameter is a pointer too. If a header is invalid, `header` is its name.
    """

    pointer: str
    header: str | None = None
    code: str
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457), the body of every error response."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None = None
    errors: list[ProblemField] = []
