"""The order in which the hosts of a connection string are tried.

A host that does not respond costs each new connection its timeout. So the host that the last connection led to is tried
first: after a failover only the first connection of a process, and those that are opened at the same time, wait for the
former primary.
"""

from __future__ import annotations

from collections.abc import Mapping

# The keywords of libpq with one value for each host, or, for the port, one for all.
_HOST_KEYWORDS = ("host", "hostaddr", "port")
_DEFAULT_PORT = "5432"

# The host, its address and the port that the last connection led to, by connection string.
_last_servers: dict[str, tuple[str, str, str]] = {}


def order_hosts(url: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return connection parameters with the host first that the last connection led to.

    The others keep their order, and all do with `target_session_attrs=any`: the last connection may have led to a
    standby. With `load_balance_hosts=random`, psycopg ignores the order.

    :param url: the connection string with these parameters.
    """
    lists = {keyword: parameters[keyword].split(",") for keyword in _HOST_KEYWORDS if parameters.get(keyword)}
    count = max((len(values) for values in lists.values()), default=1)
    if count == 1 or url not in _last_servers or parameters.get("target_session_attrs") == "any":
        return dict(parameters)
    lists = {keyword: values if len(values) == count else values * count for keyword, values in lists.items()}
    last = _last_servers[url]
    values_by_host = zip(*(lists.get(keyword, [""] * count) for keyword in _HOST_KEYWORDS), strict=True)
    # Several addresses may have one name, that of their certificate. What the connection string lacks is not compared.
    servers = [(host or last[0], address or last[1], port or _DEFAULT_PORT) for host, address, port in values_by_host]
    if last not in servers:
        return dict(parameters)
    index = servers.index(last)
    return dict(parameters) | {
        keyword: ",".join([values[index], *values[:index], *values[index + 1 :]]) for keyword, values in lists.items()
    }


def note_host(url: str, host: str, address: str, port: int) -> None:
    """Note which host a new connection with a connection string leads to."""
    _last_servers[url] = host, address, str(port)
