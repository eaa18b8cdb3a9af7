"""While the database does not respond, a request waits once to connect, not at each use."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.frozen_server import Relay, frozen_process, relay_to
from tests.support.ports import free_port
from webapp.core import database_connections, database_timeouts, database_urls
from webapp.core.database_connections import StatementTimeout
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.redemptions import personal_links

DEADLINE = 0.3


@pytest.fixture
def relay(app: Flask, test_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay over which all new connections of the program lead."""
    with relay_to(test_settings.libpq_url) as relay:
        server = psycopg.conninfo.conninfo_to_dict(relay.url)
        address = {"host": str(server["host"]), "port": str(server["port"]), "connect_timeout": "2"}
        build = database_urls.build_connection_parameters
        with monkeypatch.context() as patch:
            patch.setattr(database_connections, "build_connection_parameters", lambda url: build(url) | address)
            end_connections()
            yield relay
        end_connections()


def end_connections() -> None:
    db.session.remove()
    db.engine.dispose()
    huey.storage.close()


def in_thread(action: Callable[[], Any]) -> Any:
    """Run an action as the web server does: in a thread without an app context."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(action).result()


@pytest.mark.parametrize(
    ("path", "has_connection"), [("form", True), ("form", False), ("link", False), ("api", False), ("staff", False)]
)
def test_a_request_connects_once_to_a_frozen_server(
    relay: Relay,
    staff: FlaskClient,
    api: FlaskClient,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    has_connection: bool,
) -> None:
    offer, ada = make_offer(), make_customer()
    link = personal_links.build_personal_url(offer.id, ada.id)
    values = {"code": "SUMMER25", "email": "ada@example.com"}
    requests: dict[str, Callable[[], Any]] = {
        "form": lambda: staff.post("/redeem", data=values),
        "link": lambda: staff.get(f"/r/{link.rpartition('/')[2]}"),
        "api": lambda: api.post("/api/v1/redemptions", json=values),
        "staff": lambda: staff.get("/customers"),
    }
    monkeypatch.setattr(database_timeouts, "PING_SECONDS", DEADLINE)
    db.session.remove()
    if not has_connection:
        end_connections()
    relay.freeze()
    before = relay.connection_count

    response = in_thread(requests[path])
    response.close()

    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    # The test of the pooled connection has been cancelled over a connection of its own.
    assert relay.connection_count - before == (2 if has_connection else 1)


@pytest.fixture
def silent_url() -> Iterator[str]:
    """The address of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"host=127.0.0.1 port={server.getsockname()[1]} connect_timeout=2"


@pytest.fixture
def small_app() -> Flask:
    app = Flask(__name__)
    database_timeouts.init_app(app)
    return app


def connect(url: str, **parameters: Any) -> str:
    """Connect and execute a statement; return the error if that fails."""
    try:
        with closing(database_connections.connect(url, **parameters)) as connection:
            return str(connection.execute("select 'connected'").fetchone())
    except psycopg.OperationalError as error:
        return f"{type(error).__name__}: {error}"


EARLIER_TIMEOUT = "StatementTimeout: an earlier connection attempt in this request has failed"


def test_a_request_does_not_try_again_to_connect(small_app: Flask, test_settings: Settings, silent_url: str) -> None:
    @small_app.get("/")
    def use_database() -> list[str]:
        return [
            connect(silent_url),
            connect(silent_url),
            # Only the check of a long statement, or of commits, asks again.
            connect(silent_url, ignore_earlier_timeout=True),
            # The queue may have another server than the pool.
            connect(test_settings.libpq_url),
        ]

    def send_requests() -> None:
        client = small_app.test_client()
        for _ in range(2):
            first, second, check, other_server = client.get("/").json or []
            assert "timeout expired" in first
            assert second == EARLIER_TIMEOUT
            assert "timeout expired" in check
            assert other_server == "('connected',)"

    in_thread(send_requests)


def test_a_request_does_not_resolve_a_name_again_after_that_has_failed(
    small_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def resolve(host: str, *_: Any, **__: Any) -> None:
        names.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    @small_app.get("/")
    def use_database() -> list[str]:
        return [connect(f"host=db1,db2 user=u dbname={name}") for name in ("onecode", "onecode", "other")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    first, second, other_database = in_thread(lambda: small_app.test_client().get("/").json)

    assert "failed to resolve host" in first
    assert second == EARLIER_TIMEOUT
    assert "failed to resolve host" in other_database
    assert names == ["db1", "db2"] * 2


@pytest.mark.parametrize(("slow_seconds", "is_noted"), [(0, True), (60, False)])
def test_a_request_does_not_connect_again_after_a_slow_failure(
    small_app: Flask, monkeypatch: pytest.MonkeyPatch, slow_seconds: float, is_noted: bool
) -> None:
    """A fast one is not noted: the server may be about to accept connections."""
    url = f"host=127.0.0.1 port={free_port()} user=u dbname=x"
    monkeypatch.setattr(database_timeouts, "SLOW_CONNECT_SECONDS", slow_seconds)

    @small_app.get("/")
    def use_database() -> list[str]:
        return [connect(url), connect(url)]

    first, second = in_thread(lambda: small_app.test_client().get("/").json)

    assert "Connection refused" in first
    assert second == EARLIER_TIMEOUT if is_noted else "Connection refused" in second


def test_open_connections_can_be_used_after_a_timeout(
    small_app: Flask, test_settings: Settings, silent_url: str
) -> None:
    """Also those to the same server: a rollback at the end of the request must not fail."""

    @small_app.get("/")
    def use_database() -> str:
        with database_connections.connect(test_settings.libpq_url) as connection:
            connection.execute("select 1")
            database_timeouts.note_connect_timeout(test_settings.libpq_url)
            assert connect(test_settings.libpq_url) == EARLIER_TIMEOUT
            connection.rollback()
            return str(connection.execute("select 'still open'").fetchone())

    assert in_thread(lambda: small_app.test_client().get("/").text) == "('still open',)"


def test_a_timeout_of_the_queue_does_not_fail_the_request(
    app: Flask,
    client: FlaskClient,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    monkeypatch: pytest.MonkeyPatch,
    silent_url: str,
) -> None:
    """A customer who redeems again is told so, although the receipt cannot be emailed."""
    make_offer(), make_customer()
    values = {"code": "SUMMER25", "email": "ada@example.com"}
    assert client.post("/redeem", data=values).status_code == 200
    db.session.remove()
    huey.storage.close()
    monkeypatch.setattr(huey.storage, "dsn", silent_url)

    response = in_thread(lambda: client.post("/redeem", data=values))

    assert response.status_code == 409


def test_a_statement_that_gets_no_response_does_not_prevent_a_new_connection(
    small_app: Flask, test_settings: Settings
) -> None:
    """The statement may be slow, and the new connection may lead to another server."""

    @small_app.get("/")
    def use_database() -> str:
        with (
            closing(database_connections.connect(test_settings.libpq_url, statement_seconds=DEADLINE)) as connection,
            frozen_process(connection.info.backend_pid),
            pytest.raises(StatementTimeout),
        ):
            connection.execute("select 1")
        return connect(test_settings.libpq_url)

    assert in_thread(lambda: small_app.test_client().get("/").text) == "('connected',)"


def test_outside_of_requests_each_attempt_waits(silent_url: str) -> None:
    first, second = in_thread(lambda: [connect(silent_url), connect(silent_url)])

    assert "timeout expired" in first
    assert "timeout expired" in second
