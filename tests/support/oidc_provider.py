"""An OpenID Connect provider on loopback, which can be told to lie, to be slow and to send too much."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from joserfc import jws, jwt
from joserfc.jwk import OctKey, RSAKey

from webapp.core.setting_parsers import OidcSettings

CLIENT_ID, CLIENT_SECRET, SUBJECT = "onecode", "only-for-tests", "248289761001"


@cache
def _first_key() -> RSAKey:
    """Return the key of every new provider; generating one takes a tenth of a second."""
    return RSAKey.generate_key(2048, {"kid": "first"})


@dataclass
class OidcProvider:
    """The provider. The attributes below `lies` are what a test changes.

    :ivar claims: claims of ID tokens, on top of valid ones; None removes a claim.
    :ivar metadata: values of the metadata, on top of valid ones.
    :ivar bodies: responses by path, sent instead of the normal ones.
    :ivar statuses: statuses by path.
    :ivar padding: number of spaces before a valid response, by path.
    :ivar algorithm: `RS256`, `HS256` (signed with the client secret) or `none`.
    :ivar requests: the paths that were requested.
    """

    url: str
    key: RSAKey = field(default_factory=_first_key)
    # lies
    claims: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=lambda: {"sub": SUBJECT})
    bodies: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)
    algorithm: str = "RS256"
    signing_key: RSAKey | None = None
    error: str = ""
    # What was asked.
    requests: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    hold: threading.Event | None = None
    # Set when a client has closed the connection before the end of a response.
    cut_off: threading.Event = field(default_factory=threading.Event)

    @property
    def settings(self) -> OidcSettings:
        """The settings of a program that uses this provider."""
        return OidcSettings(self.url, CLIENT_ID, CLIENT_SECRET, "Example SSO")

    def authorize(self, url: str) -> dict[str, str]:
        """Approve the request of an authorization URL; return the parameters of the redirect."""
        request = dict(parse_qsl(urlsplit(url).query))
        assert request["response_type"] == "code"
        assert request["client_id"] == CLIENT_ID
        assert request["code_challenge_method"] == "S256"
        assert "openid" in request["scope"].split()
        if self.error:
            return {"state": request["state"], "error": self.error}
        code = f"code-{len(self.codes)}"
        self.codes[code] = request
        return {"state": request["state"], "code": code}

    def respond(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of a response."""
        if path == "/.well-known/openid-configuration":
            return 200, self._metadata()
        if path == "/jwks":
            return 200, {"keys": [self.key.as_dict(private=False)]}
        if path == "/token":
            return self._exchange(form, authorization)
        if path == "/userinfo" and authorization == "Bearer access":
            return 200, self.userinfo
        return 404, {}

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "userinfo_endpoint": f"{self.url}/userinfo",
        } | self.metadata

    def _exchange(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if authorization != f"Basic {basic}" and form.get("client_secret") != CLIENT_SECRET:
            return 401, {"error": "invalid_client"}
        request = self.codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if request is None or request["code_challenge"] != challenge or request["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        return 200, {"access_token": "access", "token_type": "Bearer", "id_token": self._sign(request["nonce"])}

    def _sign(self, nonce: str) -> str:
        now = int(time.time())
        valid = {"iss": self.url, "sub": SUBJECT, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce}
        claims = {name: value for name, value in (valid | self.claims).items() if value is not None}
        if self.algorithm == "none":
            parts = [json.dumps({"alg": "none"}), json.dumps(claims), ""]
            return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)
        if self.algorithm == "HS256":
            secret = OctKey.import_key(CLIENT_SECRET)
            return jwt.encode({"alg": "HS256"}, claims, secret, registry=jws.JWSRegistry(algorithms=["HS256"]))
        key = self.signing_key or self.key
        return jwt.encode({"alg": self.algorithm, "kid": key.kid}, claims, key)


@contextmanager
def running() -> Iterator[OidcProvider]:
    """Run a provider on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            self._respond(dict(parse_qsl(body)))

        def _respond(self, form: dict[str, str]) -> None:
            path, _, query = self.path.partition("?")
            provider.requests.append(path)
            if provider.hold is not None:
                provider.hold.wait(30)
            if path == "/authorize":
                redirect_uri = parse_qs(query)["redirect_uri"][0]
                self.send_response(302)
                self.send_header("Location", f"{redirect_uri}?{urlencode(provider.authorize(self.path))}")
                self.end_headers()
                return
            status, body = provider.respond(path, form, self.headers["Authorization"] or "")
            content = provider.bodies.get(path, b" " * provider.padding.get(path, 0) + json.dumps(body).encode())
            self.send_response(provider.statuses.get(path, status))
            self.send_header("Content-Type", "application/json")
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            try:
                self.wfile.write(content)
            except ConnectionError:
                provider.cut_off.set()
                self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    provider = OidcProvider(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield provider
    finally:
        if provider.hold is not None:
            provider.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
