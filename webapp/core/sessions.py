"""Cookies of staff: the session, loaded and saved only when a request uses it, and the devices of a browser."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import Flask, Request, Response, after_this_request, current_app, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from itsdangerous import BadData, URLSafeSerializer

# How long a browser stays known after the last time that a user signed in with it.
DEVICE_DAYS = 365
# A browser in which more users sign in forgets the first ones.
MAX_DEVICE_TOKENS = 10


class LazySessionInterface(SecureCookieSessionInterface):
    """Skips requests that neither send a cookie nor use the session.

    API calls are such requests. Cookies are signed with HMAC-SHA256, not with the default of Flask, SHA-1.
    """

    digest_method = staticmethod(hashlib.sha256)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        if "HTTP_COOKIE" not in request.environ:
            return self.session_class()
        return super().open_session(app, request)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if session.accessed or session.modified:
            super().save_session(app, session, response)


def build_cookie_name(public_url: str) -> str:
    """Return the name of the session cookie.

    Cookies are not separated by port: two installations on one host would overwrite each other's cookies, so the name
    contains the port. It is that of the public URL, since behind a proxy the web processes of one installation have
    different ports. With https, the prefix `__Host-` keeps other hosts of the domain from setting the cookie
    (RFC 6265bis, section 4.1.3.2).
    """
    prefix = "__Host-" if public_url.startswith("https://") else ""
    return f"{prefix}onecode_{urlsplit(public_url).port or ''}".rstrip("_")


def load_device_tokens() -> list[str]:
    """Return the tokens of the users who have signed in with this browser; none for a forged cookie."""
    try:
        tokens = _device_serializer().loads(request.cookies.get(_device_cookie_name(), ""))
    except BadData:
        return []
    return [str(token) for token in tokens][:MAX_DEVICE_TOKENS] if isinstance(tokens, list) else []


def save_device_token(token: str) -> None:
    """Add a token to the cookie of this browser, for `DEVICE_DAYS` from now."""
    others = [other for other in load_device_tokens() if other != token]
    _set_device_cookie([*others, token][-MAX_DEVICE_TOKENS:])


def _set_device_cookie(tokens: Sequence[str]) -> None:
    value = _device_serializer().dumps(list(tokens))

    @after_this_request
    def set_cookie(response: Response) -> Response:
        response.set_cookie(
            _device_cookie_name(),
            str(value),
            max_age=DEVICE_DAYS * 86400,
            secure=current_app.config["SESSION_COOKIE_SECURE"],
            httponly=True,
            samesite="Strict",
        )
        return response


def _device_cookie_name() -> str:
    return f"{current_app.config['SESSION_COOKIE_NAME']}_device"


def _device_serializer() -> URLSafeSerializer:
    options = {"digest_method": hashlib.sha256}
    return URLSafeSerializer(current_app.secret_key or "", salt="staff device", signer_kwargs=options)
