"""The origin of the current request: client address, staff session and API key."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from flask import g, has_request_context, request


class RequestOrigin(NamedTuple):
    """Where a request came from; all values are None outside of requests, as in commands and workers."""

    address: str | None = None
    staff_session_id: int | None = None
    api_key_id: int | None = None


def get_request_origin() -> RequestOrigin:
    """Return the origin of the current request.

    The views of the interface store the session (`g.staff_session_id`) and the API key (`g.api_key`).
    """
    if not has_request_context():
        return RequestOrigin()
    return RequestOrigin(_client_ip(), g.get("staff_session_id"), getattr(g.get("api_key"), "id", None))


def _client_ip() -> str | None:
    """Return the IP address of the client; an IPv4 address that is mapped to IPv6 (RFC 4291) as IPv4."""
    try:
        address = ipaddress.ip_address(request.remote_addr or "")
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)
