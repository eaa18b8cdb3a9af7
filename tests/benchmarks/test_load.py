"""The clients of the HTTP benchmarks: their requests and their counts."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import load
from benchmarks.load import Target


@dataclass
class ShopServer:
    """A server that records requests and responds with `status`."""

    status: int = 201
    emails: Counter[str] = field(default_factory=Counter)
    headers: set[tuple[str, ...]] = field(default_factory=set)
    port: int = 0


@pytest.fixture
def shop() -> Iterator[ShopServer]:
    shop = ShopServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            shop.emails[body["customer"]["email"]] += 1
            names = ("Authorization", "Content-Type", "Host")
            shop.headers.add((self.path, body["code"], *(self.headers[name] for name in names)))
            self.send_response(shop.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shop.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield shop
        server.shutdown()
        thread.join()


@pytest.fixture(params=["simple", "wrk"])
def client(request: pytest.FixtureRequest) -> str | None:
    """The path of wrk, or None for the simple client."""
    if request.param == "wrk" and load.WRK is None:
        pytest.skip("wrk is not installed")
    return load.WRK if request.param == "wrk" else None


def test_every_request_is_for_another_customer(shop: ShopServer, client: str | None) -> None:
    target = Target(shop.port, 201, "the-key", "SUMMER", 100_000)
    result = load.load(target, clients=4, seconds=1, wrk=client)
    assert (result.refused, result.broken) == (0, 0)
    assert set(shop.emails.values()) == {1}
    # wrk does not wait for its last responses.
    assert 0 <= len(shop.emails) - result.responses <= 4
    assert shop.headers == {
        ("/api/v1/redemptions", "SUMMER", "Bearer the-key", "application/json", f"127.0.0.1:{shop.port}")
    }


def test_unexpected_statuses_are_counted(shop: ShopServer, client: str | None) -> None:
    shop.status = 409
    result = load.load(Target(shop.port, 201, "key", "SUMMER", 100_000), clients=2, seconds=1, wrk=client)
    assert result.refused == result.responses > 0


def test_the_simple_client_distinguishes_200_from_201(shop: ShopServer) -> None:
    shop.status = 200
    result = load.load(Target(shop.port, 201, "key", "SUMMER", 100_000), clients=2, seconds=1, wrk=None)
    assert result.refused == result.responses > 0


@pytest.mark.parametrize("customers", [1, 2, 10, 999, 100_000])
def test_every_customer_is_used_once_before_any_repeats(customers: int) -> None:
    target = Target(1, 201, customers=customers)
    assert len({n * target.stride % customers for n in range(customers)}) == customers


@pytest.mark.parametrize(
    ("response", "complete"),
    [
        (b"HTTP/1.1 201 CREATED\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 201 CREATED\r\ncontent-length: 3\r\nX: y\r\n\r\n{}", False),
        (b"HTTP/1.1 201 CREATED\r\nContent-Length: 2\r\n", False),
    ],
)
def test_a_response_is_complete_when_its_body_is(response: bytes, complete: bool) -> None:
    assert load.is_complete(response) is complete
