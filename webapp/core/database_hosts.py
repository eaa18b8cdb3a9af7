"""The order in which the hosts of a connection string are tried.

A host that does not respond costs each new connection its timeout. So the host that the last connection led to is tried
first: after a failover only the first connection of a process waits for the former primary.
"""

from __future__ import annotations

from collections.abc import Mapping

# The keywords of libpq with one value for each host, or, for the port, one for all.
_HOST_KEYWORDS = ("host", "hostaddr", "port")
_DEFAULT_PORT = "5432"

# The host and port that the last connection led to, by connection string.
_last_servers: dict[str, tuple[str, str]] = {}


def order_hosts(url: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return connection parameters with the host first that the last connection led to.

    The others keep their order. With `load_balance_hosts=random`, psycopg ignores it.

    :param url: the connection string with these parameters.
    """
    lists = {keyword: parameters[keyword].split(",") for keyword in _HOST_KEYWORDS if parameters.get(keyword)}
    count = max((len(values) for values in lists.values()), default=1)
    if count == 1 or url not in _last_servers:
        return dict(parameters)
    lists = {keyword: values if len(values) == count else values * count for keyword, values in lists.items()}
    names, ports = lists.get("host", lists.get("hostaddr", [])), lists.get("port", [""] * count)
    servers = [(name, port or _DEFAULT_PORT) for name, port in zip(names, ports, strict=True)]
    if _last_servers[url] not in servers:
        return dict(parameters)
    index = servers.index(_last_servers[url])
    return dict(parameters) | {
        keyword: ",".join([values[index], *values[:index], *values[index + 1 :]]) for keyword, values in lists.items()
    }


def note_host(url: str, host: str, port: int) -> None:
    """Note which host a new connection with a connection string leads to."""
    _last_servers[url] = host, str(port)
