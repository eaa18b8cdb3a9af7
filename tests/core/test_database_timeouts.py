"""On a frozen server a request waits for one timeout, not for one at each use of the database."""

from __future__ import annotations

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

    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    # The test of the pooled connection has been cancelled over a connection of its own.
    assert relay.connection_count - before == (2 if has_connection else 1)


def wait_for_frozen_server(settings: Settings) -> None:
    """Execute a statement on a server process that is frozen, until its deadline."""
    with (
        closing(database_connections.connect(settings.libpq_url, statement_seconds=DEADLINE)) as connection,
        frozen_process(connection.info.backend_pid),
        pytest.raises(StatementTimeout),
    ):
        connection.execute("select 1")


@pytest.fixture
def small_app() -> Flask:
    app = Flask(__name__)
    database_timeouts.init_app(app)
    return app


def test_after_a_statement_without_a_response_all_others_of_the_request_fail_at_once(
    small_app: Flask, test_settings: Settings
) -> None:
    @small_app.get("/")
    def use_database() -> list[str]:
        with closing(database_connections.connect(test_settings.libpq_url)) as other:
            wait_for_frozen_server(test_settings)
            with pytest.raises(StatementTimeout, match="earlier use") as statement:
                other.execute("select 1")
            assert other.closed
        with pytest.raises(StatementTimeout, match="earlier use") as connecting:
            database_connections.connect(test_settings.libpq_url)
        return [str(statement.value), str(connecting.value)]

    @small_app.get("/next")
    def use_database_again() -> str:
        with database_connections.connect(test_settings.libpq_url) as connection:
            return str(connection.execute("select 1").fetchone())

    def send_requests() -> None:
        client = small_app.test_client()
        assert len(client.get("/").json or []) == 2
        assert client.get("/next").text == "(1,)"

    in_thread(send_requests)


def test_after_a_request_the_thread_may_wait_again(small_app: Flask) -> None:
    @small_app.get("/")
    def fail() -> str:
        database_timeouts.note_timeout()
        return str(database_timeouts.has_request_timed_out())

    def send_request() -> bool:
        assert small_app.test_client().get("/").text == "True"
        return database_timeouts.has_request_timed_out()

    assert in_thread(send_request) is False


def test_outside_of_requests_each_use_waits(test_settings: Settings) -> None:
    def use_database() -> Any:
        wait_for_frozen_server(test_settings)
        with database_connections.connect(test_settings.libpq_url) as other:
            return other.execute("select 1").fetchone()

    assert in_thread(use_database) == (1,)


def test_the_test_of_a_pooled_connection_does_not_end_the_request(small_app: Flask, test_settings: Settings) -> None:
    """The pool connects anew then, which may lead to another server."""

    @small_app.get("/")
    def use_database() -> str:
        with database_timeouts.ping_deadline():
            wait_for_frozen_server(test_settings)
        with database_connections.connect(test_settings.libpq_url) as other:
            return str(other.execute("select 1").fetchone())

    assert in_thread(lambda: small_app.test_client().get("/").text) == "(1,)"
