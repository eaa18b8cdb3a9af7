"""The API door: a bearer key with the scope that a call needs; every error as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Response, current_app, g, jsonify, request
from flask_openapi import APIBlueprint
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException

from webapp.accounts import actions as account_actions
from webapp.core.errors import DomainError, FieldError
from webapp.core.extensions import csrf

PREFIX = "/api/v1"
View = TypeVar("View", bound=Callable[..., Any])


def needs_scope(scope: str) -> Callable[[View], View]:
    """Mark the scope (read, redeem, manage) that a call needs. A call without a mark is refused to everybody."""

    def mark(view: View) -> View:
        view.needs_scope = scope  # type: ignore[attr-defined]
        return view

    return mark


def takes(*media_types: str, model: type[BaseModel] | None = None) -> Callable[[View], View]:
    """Mark a call whose body is something else than JSON; `model` describes its JSON if it takes that as well."""

    def mark(view: View) -> View:
        view.takes, view.takes_model = media_types, model  # type: ignore[attr-defined]
        return view

    return mark


def heeds(header: str, why: str, **schema: Any) -> Callable[[View], View]:
    """Mark a header that a call goes by, for the document: what it is for, and the JSON schema of its value."""

    def mark(view: View) -> View:
        view.heeds = {header: (why, {"type": "string"} | schema)}  # type: ignore[attr-defined]
        return view

    return mark


def open_to_all(view: View) -> View:
    """Mark a call that needs no key."""
    view.open_to_all = True  # type: ignore[attr-defined]
    return view


def api_door(*rooms: APIBlueprint) -> APIBlueprint:
    """A fresh API door with the given rooms behind it."""
    door = APIBlueprint(
        "api",
        __name__,
        url_prefix=PREFIX,
        abp_security=[{"key": []}],
    )
    for room in rooms:
        csrf.exempt(room)
        door.register_api(room)
    csrf.exempt(door)
    door.before_request(_guard)
    return door


def _guard() -> None:
    view = current_app.view_functions[request.endpoint or ""]
    if not getattr(view, "open_to_all", False):
        let_in(getattr(view, "needs_scope", None))
    if request.method in ("POST", "PUT", "PATCH"):
        _check_body(getattr(view, "takes", ("application/json",)))


def let_in(scope: str | None) -> None:
    """Who calls, by the key of the request; kept in `g.api_key`.

    :raises DomainError: `unauthorized` (401) without a valid key, `forbidden` (403) when it lacks the scope.
    """
    g.api_key = account_actions.authenticate_key(request.headers.get("Authorization", ""))
    if scope is None or scope not in g.api_key.scopes:
        raise DomainError("forbidden", f"This key lacks the scope {scope!r}.", 403)


def _check_body(media_types: tuple[str, ...]) -> None:
    """415 for another content type, 400 for broken JSON, before any field is looked at."""
    if media_types != ("application/json",):
        if request.mimetype not in media_types:
            raise DomainError("unsupported_media_type", f"Send {' or '.join(media_types)}.", 415)
        return
    if not request.content_length and "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return
    if not request.is_json:
        raise DomainError("unsupported_media_type", "Send application/json.", 415)
    try:
        request.get_json()
    except (HTTPException, RecursionError) as error:
        if isinstance(error, HTTPException) and error.code == 413:
            raise
        raise DomainError("broken_json", "The body is not JSON that can be read.", 400) from error


def problem(status: int, key: str, detail: str, errors: list[FieldError] | None = None) -> Response:
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


def validation_problem(error: ValidationError) -> Response:
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
    return problem(422, "invalid_payload", "Some fields can't be taken as they are.", found)


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
