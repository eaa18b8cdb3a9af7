"""The public door: customers. No session, no cookie; nothing is granted by who the browser is.

A write from a page of somebody else's is refused by its `Origin` and `Sec-Fetch-Site` headers, so no token is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, current_app, request

from webapp.core.extensions import csrf
from webapp.core.settings import Settings

View = TypeVar("View", bound=Callable[..., Any])


def allow_cross_origin(view: View) -> View:
    """Mark a write that other people's machines make: RFC 8058 one-click unsubscription by a mail provider."""
    view.from_anywhere = True  # type: ignore[attr-defined]
    return view


def create_public_blueprint(*rooms: Blueprint) -> Blueprint:
    """A fresh public door with the given rooms behind it."""
    door = Blueprint("public", __name__)
    for room in rooms:
        csrf.exempt(room)
        door.register_blueprint(room)
    csrf.exempt(door)
    door.before_request(_check_origin)
    door.after_request(_add_privacy_headers)
    return door


def _check_origin() -> None:
    view = current_app.view_functions[request.endpoint or ""]
    if request.method in ("GET", "HEAD", "OPTIONS") or getattr(view, "from_anywhere", False):
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        abort(403, "This form was sent from another site. Please open our page and try again.")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in _allowed_origins():
        abort(403, "This form was sent from another site. Please open our page and try again.")


def _allowed_origins() -> set[str]:
    settings: Settings = current_app.config["SETTINGS"]
    ours = urlsplit(settings.public_url)
    return {f"{ours.scheme}://{ours.netloc}", request.host_url.rstrip("/")}


def _add_privacy_headers(response: Response) -> Response:
    """Pages that carry a token or a person's answer are kept by nobody and name themselves to no other site.

    `no-referrer` would be stricter still, but then browsers without scripts send our own form with `Origin: null`.
    """
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Referrer-Policy"] = "same-origin"
    return response
