"""After a failover, new connections first try the server that the last one led to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.frozen_server import Relay, relay_to
from webapp.core import database_connections, database_hosts, database_urls
from webapp.core.settings import Settings


@pytest.fixture(autouse=True)
def no_last_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_hosts, "_last_servers", {})


@pytest.fixture
def relays(test_settings: Settings) -> Iterator[tuple[Relay, Relay]]:
    with relay_to(test_settings.libpq_url) as first, relay_to(test_settings.libpq_url) as second:
        yield first, second


def url_of(*relays: Relay) -> str:
    ports = ",".join(str(conninfo_to_dict(relay.url)["port"]) for relay in relays)
    hosts = ",".join(["127.0.0.1"] * len(relays))
    return make_conninfo(relays[0].url, host=hosts, port=ports, connect_timeout=2, target_session_attrs="read-write")


def test_the_first_host_is_tried_first(relays: tuple[Relay, Relay]) -> None:
    first, second = relays
    before = first.count_connections(), second.count_connections()

    database_connections.connect(url_of(first, second)).close()

    assert (first.count_connections(), second.count_connections()) == (before[0] + 1, before[1])


def test_only_one_connection_waits_for_a_frozen_first_host(relays: tuple[Relay, Relay]) -> None:
    first, second = relays
    first.freeze()
    before = first.count_connections(), second.count_connections()

    for _ in range(3):
        database_connections.connect(url_of(first, second)).close()

    assert (first.count_connections(), second.count_connections()) == (before[0] + 1, before[1] + 3)


def test_the_other_hosts_are_tried_when_the_last_one_fails(relays: tuple[Relay, Relay]) -> None:
    first, second = relays
    database_connections.connect(url_of(second, first)).close()
    second.close()
    before = first.count_connections()

    database_connections.connect(url_of(second, first)).close()

    assert first.count_connections() == before + 1


def test_a_connection_to_a_given_host_does_not_change_the_order(relays: tuple[Relay, Relay]) -> None:
    first, second = relays
    database_connections.connect(
        url_of(first, second), host="127.0.0.1", port=str(conninfo_to_dict(second.url)["port"])
    ).close()
    before = first.count_connections()

    database_connections.connect(url_of(first, second)).close()

    assert first.count_connections() == before + 1


def test_addresses_with_one_name_are_distinguished(relays: tuple[Relay, Relay]) -> None:
    url = make_conninfo(relays[0].url, host="db.shop,db.shop", hostaddr="127.0.0.2,127.0.0.1")

    database_connections.connect(url).close()

    parameters = database_urls.build_connection_parameters(url)
    assert database_hosts.order_hosts(url, parameters)["hostaddr"] == "127.0.0.1,127.0.0.2"


@pytest.mark.parametrize(
    ("parameters", "last", "expected"),
    [
        ({"host": "a,b,c"}, ("b", "10.9.9.9", "5432"), {"host": "b,a,c"}),
        ({"host": "a,b", "port": ","}, ("b", "10.9.9.9", "5432"), {"host": "b,a", "port": ","}),
        ({"host": "a,b", "port": "6432,"}, ("b", "10.9.9.9", "5432"), {"host": "b,a", "port": ",6432"}),
        ({"host": "a,b", "port": "6432"}, ("b", "10.9.9.9", "6432"), {"host": "b,a", "port": "6432,6432"}),
        ({"host": "a,a", "port": "1,2"}, ("a", "10.9.9.9", "2"), {"host": "a,a", "port": "2,1"}),
        ({"hostaddr": "10.0.0.1,10.0.0.2"}, ("10.0.0.2", "10.0.0.2", "5432"), {"hostaddr": "10.0.0.2,10.0.0.1"}),
        (
            {"host": "a,b", "hostaddr": "10.0.0.1,10.0.0.2", "port": "1,2"},
            ("b", "10.0.0.2", "2"),
            {"host": "b,a", "hostaddr": "10.0.0.2,10.0.0.1", "port": "2,1"},
        ),
        # Servers that share a certificate.
        (
            {"host": "a,a,a", "hostaddr": "10.0.0.1,10.0.0.2,10.0.0.3"},
            ("a", "10.0.0.3", "5432"),
            {"host": "a,a,a", "hostaddr": "10.0.0.3,10.0.0.1,10.0.0.2"},
        ),
        ({"host": "a,b", "hostaddr": "10.0.0.1,"}, ("b", "10.0.0.2", "5432"), {"host": "b,a", "hostaddr": ",10.0.0.1"}),
        # The last connection may have led to a standby.
        (
            {"host": "a,b", "target_session_attrs": "any"},
            ("b", "10.9.9.9", "5432"),
            {"host": "a,b", "target_session_attrs": "any"},
        ),
        # A file with the service may have changed since.
        ({"host": "a,b"}, ("c", "10.9.9.9", "5432"), {"host": "a,b"}),
        ({"host": "a"}, ("a", "10.9.9.9", "5432"), {"host": "a"}),
        ({}, ("", "", "5432"), {}),
    ],
)
def test_the_values_of_a_host_move_together(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], last: tuple[str, str, str], expected: dict[str, str]
) -> None:
    monkeypatch.setitem(database_hosts._last_servers, "url", last)

    assert database_hosts.order_hosts("url", {**parameters, "dbname": "x"}) == {**expected, "dbname": "x"}


def test_each_connection_string_has_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(database_hosts._last_servers, "one", ("b", "", "5432"))

    assert database_hosts.order_hosts("two", {"host": "a,b"}) == {"host": "a,b"}
