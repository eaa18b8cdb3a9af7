"""The origin of the current request: client address, staff session and API key."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from flask import g, has_request_context, request

_ADDRESS_WITH_PORT = re.compile(r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9a-fA-F:.]+)\]):[0-9]{1,5}", re.ASCII)


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
    address = parse_client_address(request.remote_addr)
    client_ip = None if address is None else str(address)
    return RequestOrigin(client_ip, g.get("staff_session_id"), getattr(g.get("api_key"), "id", None))


def parse_client_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address of a client; None for anything else, such as `unix:`.

    :param text: the address that the server or the proxy reports. Some proxies add the port.
    :returns: an IPv4 address that is mapped to IPv6 (RFC 4291) as IPv4.
    """
    with_port = _ADDRESS_WITH_PORT.fullmatch(text or "")
    try:
        address = ipaddress.ip_address((with_port["v4"] or with_port["v6"]) if with_port else text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
