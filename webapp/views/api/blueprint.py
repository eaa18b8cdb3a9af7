"""The API door: a bearer key with the scope that a call needs; every error as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import current_app, g, request
from flask_openapi import APIBlueprint
from pydantic import BaseModel
from werkzeug.exceptions import HTTPException

from webapp.accounts import actions as account_actions
from webapp.core.errors import DomainError
from webapp.core.extensions import csrf

API_PREFIX = "/api/v1"
View = TypeVar("View", bound=Callable[..., Any])


def require_scope(scope: str) -> Callable[[View], View]:
    """Mark the scope (read, redeem, manage) that a call needs. A call without a mark is refused to everybody."""

    def mark(view: View) -> View:
        view.needs_scope = scope  # type: ignore[attr-defined]
        return view

    return mark


def accept_media_types(*media_types: str, model: type[BaseModel] | None = None) -> Callable[[View], View]:
    """Mark a call whose body is something else than JSON; `model` describes its JSON if it takes that as well."""

    def mark(view: View) -> View:
        view.takes, view.takes_model = media_types, model  # type: ignore[attr-defined]
        return view

    return mark


def documents_header(header: str, why: str, **schema: Any) -> Callable[[View], View]:
    """Mark a header that a call goes by, for the document: what it is for, and the JSON schema of its value."""

    def mark(view: View) -> View:
        view.heeds = {header: (why, {"type": "string"} | schema)}  # type: ignore[attr-defined]
        return view

    return mark


def api_key_exempt(view: View) -> View:
    """Mark a call that needs no key."""
    view.open_to_all = True  # type: ignore[attr-defined]
    return view


def create_api_blueprint(*rooms: APIBlueprint) -> APIBlueprint:
    """A fresh API door with the given rooms behind it."""
    door = APIBlueprint(
        "api",
        __name__,
        url_prefix=API_PREFIX,
        abp_security=[{"key": []}],
    )
    for room in rooms:
        csrf.exempt(room)
        door.register_api(room)
    csrf.exempt(door)
    door.before_request(_authorize_request)
    return door


def _authorize_request() -> None:
    view = current_app.view_functions[request.endpoint or ""]
    if not getattr(view, "open_to_all", False):
        authenticate(getattr(view, "needs_scope", None))
    if request.method in ("POST", "PUT", "PATCH"):
        _check_body(getattr(view, "takes", ("application/json",)))


def authenticate(scope: str | None) -> None:
    """Who calls, by the key of the request; kept in `g.api_key`.

    :raises DomainError: `unauthorized` (401) without a valid key, `forbidden` (403) when it lacks the scope.
    """
    g.api_key = account_actions.authenticate_api_key(request.headers.get("Authorization", ""))
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
