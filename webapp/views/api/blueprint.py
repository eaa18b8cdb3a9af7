"""The API blueprint: API keys with scopes, and errors as problem details."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import current_app, g, request
from flask_babel import gettext as _
from flask_openapi import APIBlueprint
from pydantic import BaseModel
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from webapp.accounts import api_key_actions
from webapp.core.errors import DomainError
from webapp.core.extensions import csrf

API_PREFIX = "/api/v1"
ApiView = TypeVar("ApiView", bound=Callable[..., Any])


def require_scope(scope: str) -> Callable[[ApiView], ApiView]:
    """Set the scope that a view requires: read, redeem or manage.

    A view without a scope is forbidden for every key.
    """

    def decorate(view: ApiView) -> ApiView:
        view.required_scope = scope  # type: ignore[attr-defined]
        return view

    return decorate


def accept_media_types(*media_types: str, json_model: type[BaseModel] | None = None) -> Callable[[ApiView], ApiView]:
    """Set the media types that a view accepts.

    :param json_model: the model of the JSON body, if the view accepts JSON as well.
    """

    def decorate(view: ApiView) -> ApiView:
        view.accepted_media_types, view.accepted_json_model = media_types, json_model  # type: ignore[attr-defined]
        return view

    return decorate


def document_header(header: str, description: str, **schema: Any) -> Callable[[ApiView], ApiView]:
    """Describe a request header of a view in the OpenAPI document.

    :param schema: keywords of the JSON schema of the value, which is a string.
    """

    def decorate(view: ApiView) -> ApiView:
        view.documented_headers = {header: (description, {"type": "string"} | schema)}  # type: ignore[attr-defined]
        return view

    return decorate


def api_key_exempt(view: ApiView) -> ApiView:
    """Mark a view as accessible without an API key."""
    view.is_api_key_exempt = True  # type: ignore[attr-defined]
    return view


def create_api_blueprint(*blueprints: APIBlueprint) -> APIBlueprint:
    """Create the API blueprint with other blueprints nested in it."""
    api = APIBlueprint(
        "api",
        __name__,
        url_prefix=API_PREFIX,
        abp_security=[{"key": []}],
    )
    for blueprint in blueprints:
        csrf.exempt(blueprint)
        api.register_api(blueprint)
    csrf.exempt(api)
    api.before_request(_authorize_request)
    return api


def _authorize_request() -> None:
    view = current_app.view_functions[request.endpoint or ""]
    if not getattr(view, "is_api_key_exempt", False):
        authenticate(getattr(view, "required_scope", None))
    if request.method in ("POST", "PUT", "PATCH"):
        _check_body(getattr(view, "accepted_media_types", ("application/json",)))


def authenticate(scope: str | None) -> None:
    """Authenticate the API key of the request; store it in `g.api_key`.

    :raises DomainError: `unauthorized` (401) without a valid key, `forbidden` (403) when it lacks the scope.
    """
    g.api_key = api_key_actions.authenticate_api_key(request.headers.get("Authorization", ""))
    if scope is None or not has_scope(scope):
        raise DomainError("forbidden", _("This API key lacks the scope “%(scope)s”.", scope=scope), 403)


def has_scope(scope: str) -> bool:
    """Return whether the API key of the request has a scope."""
    return scope in g.api_key.scopes


def get_actor() -> str:
    """Return the API key of the request as the actor of an audit entry."""
    return f"API key {g.api_key.name}"  # no translation


def _check_body(media_types: tuple[str, ...]) -> None:
    """Check the media type and the JSON syntax of the body.

    :raises DomainError: `unsupported_media_type` (415) or `broken_json` (400).
    """
    if media_types != ("application/json",):
        if request.mimetype not in media_types:
            message = _("Send one of these media types: %(types)s.", types=", ".join(media_types))
            raise DomainError("unsupported_media_type", message, 415)
        return
    if not request.content_length and "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return
    if not request.is_json:
        raise DomainError("unsupported_media_type", _("Send the body as application/json."), 415)
    try:
        request.get_json()
    except (HTTPException, RecursionError) as error:
        if isinstance(error, RequestEntityTooLarge | ClientDisconnected):
            raise
        raise DomainError("broken_json", _("The body is not valid JSON."), 400) from error
