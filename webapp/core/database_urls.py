"""The connection string of the database, as libpq reads it.

A connection string is a URI with one or more hosts, or a list of `keyword=value` pairs
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING). It is parsed by libpq alone. Every
connection of the program is opened by `database_connections.connect` with the parameters that
`build_connection_parameters` returns, so that no part reads it in another way.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict

from webapp.core.setting_parsers import SettingsError

# libpq sends this variable with the start-up packet. Connection poolers accept it there, unlike `options`.
os.environ["PGTZ"] = "UTC"

# A value in the connection string has precedence.
DEFAULT_PARAMETERS = {
    # Seconds for each host, including the login.
    "connect_timeout": "5",
    # Milliseconds after which a server that does not acknowledge data counts as down (RFC 5482); TCP only.
    "tcp_user_timeout": "10000",
    # An idle connection to a machine that has vanished is found after 10 + 2 * 5 seconds.
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "2",
}
_URL_PREFIX, _OTHER_PREFIXES = "postgresql://", ("postgres://", "postgresql+psycopg://")
_WRITABLE_TARGETS = ("any", "read-write", "primary")
_environment_lock = threading.Lock()


def parse_database_url(text: str, name: str = "DATABASE_URL") -> str:
    """Return a connection string for libpq; a URI starts with `postgresql://`.

    :param name: the setting that an error names.
    :raises SettingsError: when libpq rejects it, when a password with unescaped characters would be read as something
        else, or when it cannot lead to a server that accepts writes. The message has no part of the value.
    """
    text = text.strip()
    if text.startswith(_OTHER_PREFIXES):
        text = _URL_PREFIX + text.partition("://")[2]
    is_url = text.startswith(_URL_PREFIX)
    if not is_url and ("=" not in text or "://" in text.partition("=")[0]):
        raise SettingsError(
            f"{name} must start with postgresql://, or be a list such as host=db.shop.example dbname=onecode"
        )
    try:
        if is_url:
            _check_unescaped_characters(text.partition("://")[2])
        parameters = _expand(text)
        _check_ports(parameters)
    except (ProgrammingError, ValueError) as error:
        # The original message is dropped: it could contain a part of the password.
        advice = (
            "in a password, write / as %2F, @ as %40, : as %3A, # as %23, ? as %3F and % as %25"
            if is_url
            else "write a value with spaces in single quotes, \\ before ' and \\, and no quotes around the whole list"
        )
        raise SettingsError(f"{name} cannot be parsed; {advice}") from error
    _check_values(parameters, name)
    return text


def build_connection_parameters(url: str) -> dict[str, str]:
    """Return the parameters of every connection, by keyword of libpq.

    With several hosts, a connection goes to the first that accepts writes, unless `target_session_attrs` is given.

    :param url: a connection string that `parse_database_url` has returned.
    """
    parameters = DEFAULT_PARAMETERS | _expand(url)
    if len(_hosts(parameters)) > 1:
        parameters.setdefault("target_session_attrs", "read-write")
    return parameters


def _check_unescaped_characters(rest: str) -> None:
    """Check the part of a URL after `://`.

    libpq reads the user and the password up to the first @ or /, so the rest of a password with one of these could
    appear in messages as the host or the database.

    :raises ValueError: when it has an @ in another place.
    """
    path_start = rest.find("/")
    authority = rest if path_start < 0 else rest[:path_start]
    path = rest[len(authority) :].partition("?")[0]
    user = authority.rpartition("@")[0].partition(":")[0]
    if authority.count("@") > 1 or "@" in path or "?" in user:
        raise ValueError("unescaped character")


def _expand(url: str) -> dict[str, str]:
    """Return the given parameters, completed by the service file and the PG… variables.

    psycopg tries the hosts one by one, each with its own timeout, only if it knows them. libpq alone would read them
    later, and a first host that does not answer would use up the time of all.

    :raises ProgrammingError: when libpq rejects the connection string.
    """
    given = {keyword: str(value) for keyword, value in conninfo_to_dict(url).items()}
    variables = {"PGSERVICE": given.get("service"), "PGSERVICEFILE": given.get("servicefile")}
    with _environment({name: value for name, value in variables.items() if value}):
        defaults = pq.Conninfo.get_defaults()
    found = {
        option.keyword.decode(): option.val.decode()
        for option in defaults
        if option.val is not None and option.val != option.compiled
    }
    return found | given


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    with _environment_lock:
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _hosts(parameters: Mapping[str, str]) -> list[str]:
    return (parameters.get("host") or parameters.get("hostaddr") or "").split(",")


def _check_ports(parameters: Mapping[str, str]) -> None:
    """Check hosts and ports, which libpq does not do before it connects.

    :raises ValueError: when one of them is not possible.
    """
    for port in filter(None, parameters.get("port", "").split(",")):
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError("port")
    # A host with a leading / is the folder of a Unix socket, one with a leading @ a socket in the abstract namespace.
    if any("@" in host.removeprefix("@") for host in _hosts(parameters) if not host.startswith("/")):
        raise ValueError("host")


def _check_values(parameters: Mapping[str, str], name: str) -> None:
    hosts, ports = len(_hosts(parameters)), len(parameters.get("port", "").split(","))
    if ports not in (1, hosts):
        raise SettingsError(f"{name} has {hosts} hosts and {ports} ports; give one port, or one for each host")
    if parameters.get("host") and parameters.get("hostaddr") and len(parameters["hostaddr"].split(",")) != hosts:
        raise SettingsError(f"{name} must have as many addresses in hostaddr as hosts")
    target = parameters.get("target_session_attrs", "any")
    if target not in _WRITABLE_TARGETS:
        raise SettingsError(
            f"target_session_attrs in {name} must be {', '.join(_WRITABLE_TARGETS[:-1])} or {_WRITABLE_TARGETS[-1]}, "
            "because Onecode writes to the database"
        )
    # psycopg reads 0 as 130 seconds.
    if not re.fullmatch("0*[1-9][0-9]*", parameters.get("connect_timeout", "5").strip()):
        raise SettingsError(f"connect_timeout in {name} must be a whole number of seconds, at least 1")
    if parameters.get("client_encoding", "utf8").lower() not in ("utf8", "utf-8", "unicode", "auto"):
        raise SettingsError(f"client_encoding in {name} must be UTF8, or be left out")
