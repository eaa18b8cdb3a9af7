"""The public blueprint, for customers. It uses neither sessions nor cookies.

Cross-origin writes are rejected by their `Origin` and `Sec-Fetch-Site` headers, so no CSRF token is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, abort, current_app, g, request
from flask_babel import gettext as _

from webapp.core.extensions import csrf, login
from webapp.core.settings import Settings
from webapp.views.rendering import add_privacy_headers

PublicView = TypeVar("PublicView", bound=Callable[..., Any])


def allow_cross_origin(view: PublicView) -> PublicView:
    """Allow cross-origin writes to a view.

    Mail providers need them for one-click unsubscribe (RFC 8058).
    """
    view.allows_cross_origin = True  # type: ignore[attr-defined]
    return view


def create_public_blueprint(*blueprints: Blueprint) -> Blueprint:
    """Create the public blueprint with other blueprints nested in it."""
    public = Blueprint("public", __name__)
    for blueprint in blueprints:
        csrf.exempt(blueprint)
        public.register_blueprint(blueprint)
    csrf.exempt(public)
    public.before_request(_skip_user)
    public.before_request(_check_origin)
    public.after_request(add_privacy_headers)
    return public


def _skip_user() -> None:
    # flask-login would load the user of the browser's cookie for every template.
    g._login_user = login.anonymous_user()


def _check_origin() -> None:
    view = current_app.view_functions[request.endpoint or ""]
    if request.method in ("GET", "HEAD", "OPTIONS") or getattr(view, "allows_cross_origin", False):
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    is_cross_site = site is not None and site not in ("same-origin", "none")
    if is_cross_site or (origin is not None and origin not in _allowed_origins()):
        abort(403, _("This form was sent from another site. Please open our page and try again."))


def _allowed_origins() -> set[str]:
    settings: Settings = current_app.config["SETTINGS"]
    public_url = urlsplit(settings.public_url)
    return {f"{public_url.scheme}://{public_url.netloc}", request.host_url.rstrip("/")}
