"""The clients of the HTTP benchmarks: what they send, and what they make of the answers."""

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
class Shop:
    """A server that notes who asks and answers with `status`."""

    status: int = 201
    emails: Counter[str] = field(default_factory=Counter)
    heads: set[tuple[str, ...]] = field(default_factory=set)
    port: int = 0


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            shop.emails[body["customer"]["email"]] += 1
            names = ("Authorization", "Content-Type", "Host")
            shop.heads.add((self.path, body["code"], *(self.headers[name] for name in names)))
            self.send_response(shop.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shop.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield shop
        server.shutdown()
        thread.join()


@pytest.fixture(params=["light", "wrk"])
def client(request: pytest.FixtureRequest) -> str | None:
    """Each of the two in turn; None is the light one."""
    if request.param == "wrk" and load.WRK is None:
        pytest.skip("wrk is not installed")
    return load.WRK if request.param == "wrk" else None


def test_every_request_is_by_another_customer(shop: Shop, client: str | None) -> None:
    target = Target(shop.port, 201, "the-key", "SUMMER", 100_000)
    answers = load.load(target, clients=4, seconds=1, wrk=client)
    assert (answers.refused, answers.broken) == (0, 0)
    assert set(shop.emails.values()) == {1}
    # wrk does not wait for its last answers.
    assert 0 <= len(shop.emails) - answers.answers <= 4
    assert shop.heads == {
        ("/api/v1/redemptions", "SUMMER", "Bearer the-key", "application/json", f"127.0.0.1:{shop.port}")
    }


def test_another_answer_than_the_wanted_one_is_told(shop: Shop, client: str | None) -> None:
    shop.status = 409
    answers = load.load(Target(shop.port, 201, "key", "SUMMER", 100_000), clients=2, seconds=1, wrk=client)
    assert answers.refused == answers.answers > 0


def test_the_light_client_tells_a_repeat_from_a_redemption(shop: Shop) -> None:
    shop.status = 200
    answers = load.load(Target(shop.port, 201, "key", "SUMMER", 100_000), clients=2, seconds=1, wrk=None)
    assert answers.refused == answers.answers > 0


@pytest.mark.parametrize("customers", [1, 2, 10, 999, 100_000])
def test_the_customers_come_round_once_before_one_comes_again(customers: int) -> None:
    target = Target(1, 201, customers=customers)
    assert len({n * target.stride % customers for n in range(customers)}) == customers


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 201 CREATED\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 201 CREATED\r\ncontent-length: 3\r\nX: y\r\n\r\n{}", False),
        (b"HTTP/1.1 201 CREATED\r\nContent-Length: 2\r\n", False),
    ],
)
def test_an_answer_is_whole_when_its_body_is(answer: bytes, whole: bool) -> None:
    assert load.whole(answer) is whole
