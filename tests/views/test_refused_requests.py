"""Requests that are refused before they are parsed: the response of each interface, and what is logged."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support import live_server
from tests.support.factories import MakeCustomer, MakeOffer
from webapp.core.errors import FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.core.request_limits import MAX_FIELDS
from webapp.redemptions.models import Redemption
from webapp.views.rendering import add_form_errors
from webapp.views.staff.forms.redemptions import StaffRedeemForm

# Part of every refused body, to find it in the log.
SECRET = "ada-the-secret"
URLENCODED = "application/x-www-form-urlencoded"
FORMS = {
    "too many fields": (f"email={SECRET}&" * (MAX_FIELDS + 1), URLENCODED, 413, "The form has more than 1,000 fields."),
    "invalid UTF-8": (f"email={SECRET}%FF", URLENCODED, 400, "The form could not be read."),
    "no last boundary": (
        f'--x\r\nContent-Disposition: form-data; name="email"\r\n\r\n{SECRET}',
        "multipart/form-data; boundary=x",
        400,
        "The form could not be read.",
    ),
    "too large": (SECRET + "x" * 2**21, URLENCODED, 413, "This is larger than the limit of 2 MB."),
}
JSON = {
    "too many values": (json.dumps([SECRET] * 10_000), 413, "too_large", "The body has more than 10,000 values."),
    "too deep": ("[" * 65 + SECRET, 400, "broken_json", "The body is nested more than 64 levels deep."),
    "a name twice": (f'{{"{SECRET}": 1, "{SECRET}": 2}}', 400, "broken_json", "The body is not valid JSON."),
    "NaN": (f'{{"{SECRET}": NaN}}', 400, "broken_json", "The body is not valid JSON."),
    "too large": (f'"{SECRET}{"x" * 2**21}"', 413, "too_large", "The request is larger than the limit of 2 MB."),
}


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback, no part of the body, and at most one line for each request."""
    yield
    records = caplog.get_records("call")
    assert [record.getMessage() for record in records if record.exc_info or SECRET in record.getMessage()] == []
    assert len(records) <= 1


@pytest.mark.parametrize(("body", "content_type", "status", "message"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("path", ["/redeem", "/sign-in", "/offers/new"])
def test_a_refused_form_gets_a_page_with_the_reason(
    staff: FlaskClient, path: str, body: str, content_type: str, status: int, message: str
) -> None:
    response = staff.post(path, data=body, content_type=content_type)

    assert (response.status_code, response.mimetype) == (status, "text/html")
    assert message in response.text
    assert SECRET not in response.text


@pytest.mark.parametrize("path", ["/sign-in", "/offers/new"])
def test_a_refused_form_is_not_reported_as_a_lost_session(csrf_client: FlaskClient, path: str) -> None:
    response = csrf_client.post(path, data="&" * MAX_FIELDS, content_type=URLENCODED)

    assert response.status_code == 413
    assert response.headers["X-Request-Id"] in response.text


@pytest.mark.parametrize(("body", "status", "code", "detail"), JSON.values(), ids=JSON.keys())
@pytest.mark.parametrize("path", ["redemptions", "bounces", "offers"])
def test_refused_json_gets_a_problem_document_with_the_reason(
    api: Any, path: str, body: str, status: int, code: str, detail: str
) -> None:
    response = api.post(f"/api/v1/{path}", data=body, content_type="application/json")

    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert response.json["code"] == code
    assert response.json["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("query_string", "message"),
    [("&" * MAX_FIELDS, "more than 1,000 parameters"), ("q=\xff", "characters that are not valid UTF-8")],
)
@pytest.mark.parametrize("path", ["/redeem", "/sign-in", "/customers", "/api/v1/offers", "/nothing", "/healthz"])
def test_a_refused_query_string_is_explained(staff: FlaskClient, path: str, query_string: str, message: str) -> None:
    response = staff.get(path, environ_overrides={"QUERY_STRING": query_string})

    assert (response.status_code, message in response.text) == (400, True)
    assert (response.mimetype == "application/problem+json") == path.startswith("/api/")


@pytest.mark.parametrize(
    "path", ["/redeem", "/offers/new", "/customers/import", "/api/v1/offers", "/api/v1/customers/import"]
)
def test_a_compressed_body_is_refused(staff: FlaskClient, path: str) -> None:
    response = staff.post(path, data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    assert response.status_code == 415
    assert "without compression" in response.text
    assert (response.mimetype == "application/problem+json") == path.startswith("/api/")


@pytest.mark.parametrize("path", ["/redeem", "/sign-in", "/customers", "/api/v1/offers"])
def test_a_host_that_is_no_name_is_refused(staff: FlaskClient, path: str) -> None:
    response = staff.get(path, headers={"Host": "a" * 300})

    assert response.status_code == 400


def test_a_refused_form_counts_as_an_attempt(client: FlaskClient) -> None:
    statuses = {
        client.post("/redeem", data="&" * MAX_FIELDS, content_type=URLENCODED).status_code for _attempt in range(61)
    }

    assert statuses == {413, 429}


# --- number of errors -----------------------------------------------------------------------------


def test_a_problem_document_lists_twenty_errors_and_their_number(api: Any) -> None:
    body: dict[str, Any] = {"name": "Summer", "discount": {"type": "percent", "percent": "25"}}

    responses = [api.post("/api/v1/offers", json=body | {f"x{n}": n for n in range(count)}) for count in (20, 21)]

    assert [len(response.json["errors"]) for response in responses] == [20, 20]
    assert responses[0].json["detail"] == "Some fields are invalid."
    assert responses[1].json["detail"] == "Some fields are invalid. The first 20 of 21 errors are listed."


def test_a_form_shows_twenty_errors_and_their_number(app: Flask) -> None:
    with app.test_request_context():
        form = StaffRedeemForm(meta={"csrf": False})
        add_form_errors(form, InvalidInput(*(FieldError("code", "code_invalid", f"Error {n}.") for n in range(30))))

    assert len(form.code.errors) == 20
    assert form.form_errors == ["The first 20 of 30 errors are listed."]


# --- the web server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def netloc(session_app: Flask) -> Iterator[str]:
    """Host and port of the real web server."""
    with live_server.web_server(session_app.config["SETTINGS"]) as web:
        yield urlsplit(web.url).netloc


@pytest.fixture
def send(netloc: str) -> Callable[..., int]:
    """Send a request to the real web server; return the status of the response."""

    def request(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> int:
        with closing(http.client.HTTPConnection(netloc, timeout=60)) as connection:
            # The server may refuse a body and close the connection before all of it was sent.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {}, encode_chunked=body is not None)
            return connection.getresponse().status

    return request


@pytest.mark.parametrize(
    ("headers", "body", "statuses"),
    [
        # The body is one chunk, of which a server that obeys Content-Length takes all but four bytes for a request. The
        # connection is closed.
        (
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            "29\r\nGET /smuggled HTTP/1.1\r\nHost: example\r\n\r\n\r\n0\r\n\r\n",
            [411],
        ),
        ("Content-Length: 4\r\nContent-Length: 5", "a=b&c", [400]),
        ("Content-Length: +4", "a=b&", [400]),
        ("Transfer-Encoding: xchunked", "0\r\n\r\n", [400]),
        ("Transfer-Encoding: chunked, identity", "0\r\n\r\n", [400]),
    ],
    ids=["both", "two lengths", "a sign", "unknown", "not chunked last"],
)
def test_a_request_ends_where_its_encoding_says(netloc: str, headers: str, body: str, statuses: list[int]) -> None:
    host, port = netloc.split(":")
    first = f"POST /redeem HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: {URLENCODED}\r\n{headers}\r\n\r\n{body}"
    last = f"GET /healthz HTTP/1.1\r\nHost: {netloc}\r\nConnection: close\r\n\r\n"

    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall((first + last).encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)] == statuses


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Cookie": "a=b; " * 8_000}, 200),
        ({"Cookie": "a=b; " * 60_000}, 431),
        ({f"X-{n}": "a" for n in range(90)}, 200),
        ({f"X-{n}": "a" for n in range(10_000)}, 431),
    ],
)
def test_the_server_refuses_large_headers(send: Callable[..., int], headers: dict[str, str], status: int) -> None:
    assert send("GET", "/redeem", headers=headers) == status


@pytest.mark.parametrize(("megabytes", "status"), [(1, 422), (3, 413)])
def test_a_body_without_a_length_is_not_cut_off(
    send: Callable[..., int], api: FlaskClient, megabytes: int, status: int
) -> None:
    chunks = iter([b'{"code": "', *[b"x" * 2**20] * megabytes, b'"}'])
    headers = {"Authorization": api.environ_base["HTTP_AUTHORIZATION"], "Content-Type": "application/json"}

    assert send("POST", "/api/v1/redemptions", chunks, headers | {"Transfer-Encoding": "chunked"}) == status


@pytest.mark.parametrize("media_type", [URLENCODED, "multipart/form-data; boundary=x"])
def test_a_form_without_a_length_is_refused_unread(send: Callable[..., int], media_type: str) -> None:
    chunks = iter([b"code=SUMMER25&email=ada@example.co"])

    assert send("POST", "/redeem", chunks, {"Transfer-Encoding": "chunked", "Content-Type": media_type}) == 411


@pytest.mark.parametrize(
    ("path", "media_type", "body"),
    [
        ("/redeem", URLENCODED, b"code=SUMMER25&email=ada@example.com"),
        ("/api/v1/redemptions", "application/json", b'{"code": "SUMMER25", "customer": {"email": "ada@example.com"}}'),
    ],
)
def test_a_request_whose_body_stops_half_way_redeems_nothing(
    netloc: str, api: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer,
    path: str, media_type: str, body: bytes,
) -> None:  # fmt: skip
    make_offer()
    make_customer("ada@example.com")
    headers = {"Authorization": api.environ_base["HTTP_AUTHORIZATION"], "Content-Type": media_type}
    with closing(http.client.HTTPConnection(netloc, timeout=60)) as connection:
        connection.request("POST", path, body, headers | {"Content-Length": str(len(body) + 4)})
        connection.sock.shutdown(socket.SHUT_WR)
        response = connection.getresponse()

        assert (response.status, "before all of it had arrived" in response.read().decode()) == (400, True)
    assert db.session.query(Redemption).count() == 0
