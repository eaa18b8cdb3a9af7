"""HTTP requests to the OpenID Connect provider, with limits on time, size and number.

The module imports authlib and requests, which take a third of a second: import it when it is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from authlib.integrations.requests_client import OAuth2Session

from webapp.core.setting_parsers import OidcSettings

# Seconds to connect, between two reads, and for a whole response.
CONNECT_SECONDS, READ_SECONDS, RESPONSE_SECONDS = 3, 5, 10
MAX_RESPONSE_BYTES = 256 * 1024
# A slow provider must not occupy all threads of the web server.
MAX_CONCURRENT_REQUESTS = 4
_slots = threading.BoundedSemaphore(MAX_CONCURRENT_REQUESTS)


class ProviderError(Exception):
    """The provider did not respond as the standards require; the text is for the log."""


class ProviderSession(OAuth2Session):
    """A session for requests to the provider, whose responses are read within the limits."""

    def __init__(self, settings: OidcSettings, token_endpoint_auth_method: str | None = None, **options: Any) -> None:
        super().__init__(
            settings.client_id,
            settings.client_secret,
            token_endpoint_auth_method=token_endpoint_auth_method,
            code_challenge_method="S256",
            scope="openid email profile",
            **options,
        )
        # requests would send the password of a .netrc file instead.
        self.auth = lambda request: request
        self.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request and read the response, without following redirects.

        :raises ProviderError: when the response is too large, too slow, or a redirect.
        """
        deadline = time.monotonic() + RESPONSE_SECONDS
        options |= {"stream": True, "allow_redirects": False, "timeout": (CONNECT_SECONDS, READ_SECONDS)}
        response: requests.Response
        with super().send(request, **options) as response:
            if response.is_redirect:
                raise ProviderError(f"{request.url} redirects")  # no translation
            response._content = _read_body(response, deadline)
        return response


def fetch_json(session: ProviderSession, url: str, **options: Any) -> dict[str, Any]:
    """Return the JSON object at a URL.

    :raises ProviderError: when there is none.
    """
    with provider_errors():
        response = session.get(url, **options)
        if response.status_code != 200:
            raise ProviderError(f"{url} responded with {response.status_code}")  # no translation
        body = response.json()
        if not isinstance(body, dict):
            raise ProviderError(f"{url} is not a JSON object")  # no translation
        return body


@contextmanager
def provider_errors() -> Iterator[None]:
    """Turn errors of requests in the block into a `ProviderError`, and limit their number.

    :raises ProviderError: also when too many other requests to the provider are running.
    """
    if not _slots.acquire(blocking=False):
        raise ProviderError("too many requests to the provider are running")
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise ProviderError(f"{type(error).__name__}: {error}") from error
    finally:
        _slots.release()


def _read_body(response: requests.Response, deadline: float) -> bytes:
    body = bytearray()
    # read1 returns after each packet, so that the deadline also holds for a provider that sends single bytes.
    while chunk := response.raw.read1(16 * 1024, decode_content=False):
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise ProviderError(f"{response.url} is larger than {MAX_RESPONSE_BYTES} bytes")  # no translation
        if time.monotonic() > deadline:
            raise ProviderError(f"{response.url} took longer than {RESPONSE_SECONDS} seconds")  # no translation
    return bytes(body)
