"""Security headers of every response, also of static files and of errors outside Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.headers import Headers

from flask import Flask

from webapp.core.settings import Settings
from webapp.views.rendering import CONTENT_SECURITY_POLICY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HeaderList = tuple[tuple[str, str], ...]

# Headers of every response, unless its view has set them.
SECURITY_HEADERS: HeaderList = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
)
# For a year, also for hosts below this one (RFC 6797). Browsers ignore it over http.
STRICT_TRANSPORT_SECURITY = ("Strict-Transport-Security", "max-age=31536000; includeSubDomains")


def init_app(app: Flask, settings: Settings) -> None:
    """Add the headers to all responses of the app that do not have them."""
    is_https = settings.public_url.startswith("https://")
    security_headers = (*SECURITY_HEADERS, STRICT_TRANSPORT_SECURITY) if is_https else SECURITY_HEADERS
    app.wsgi_app = _add_headers(app.wsgi_app, security_headers)  # type: ignore[method-assign,assignment]


def add_charset(headers: Headers, _path: str, _url: str) -> None:
    """Add the charset to the media type of an SVG file; WhiteNoise adds it only to text."""
    media_type = headers["Content-Type"] or ""
    if media_type.endswith("+xml"):
        headers["Content-Type"] = f"{media_type}; charset=utf-8"


def _add_headers(wsgi_app: WSGIApplication, security_headers: HeaderList) -> WSGIApplication:
    def respond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            names = {name.lower() for name, _ in headers}
            missing = [header for header in security_headers if header[0].lower() not in names]
            return start_response(status, [*headers, *missing], *exc_info)

        return wsgi_app(environ, start)

    return respond
