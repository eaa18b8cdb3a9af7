"""Values that PostgreSQL, UTF-8 or Python cannot handle, in every part of a request to every route.

No response is a server error, no traceback is logged, and no response may be read by other sites.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule
from wtforms import Form

from tests.support.factories import MakeCustomer, MakeOffer

# As they are sent: percent-encoded where that is necessary. `test_bad_input.py` has more values for pages.
VALUES = {"NUL": "a%00b@example.com", "invalid UTF-8": "%FF%FE", "surrogate": "%ED%A0%80", "many digits": "9" * 5000}
JSON_VALUES = ["a\0b@example.com", "\ud800", 10**4000, -1, None, [[]], {"\0": "\0"}, {"\ud800": 1}]
# As WSGI servers pass them on: bytes as Latin-1.
HEADER_VALUES = ["\0", "\xff\xfe\xed\xa0\x80", "9" * 5000, "http://[", ";=,\"'\\"]
HEADERS = [
    "ACCEPT", "ACCEPT_LANGUAGE", "AUTHORIZATION", "COOKIE", "HOST", "HX_REQUEST", "IDEMPOTENCY_KEY", "IF_MATCH",
    "IF_MODIFIED_SINCE", "IF_NONE_MATCH", "ORIGIN", "RANGE", "REFERER", "SEC_FETCH_SITE", "TRANSFER_ENCODING",
    "USER_AGENT", "X_CSRFTOKEN", "X_FORWARDED_FOR", "X_REQUEST_ID",
]  # fmt: skip
EXTRA_PARAMETERS = {"after", "audience", "before", "cursor", "limit", "next", "page", "q", "state", "zone"}


@pytest.fixture(autouse=True)
def rows(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    """An offer and a customer that valid parts of a request refer to."""
    make_offer()
    make_customer(source_id="C-1")


class Visitor:
    """Sends requests as an administrator with an API key, and collects failures."""

    def __init__(self, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
        self._client, self._caplog = client, caplog
        cookie = client.get_cookie(client.application.config["SESSION_COOKIE_NAME"])
        assert cookie is not None
        self._cookie = cookie
        self.failures: set[str] = set()
        self.count = 0

    def send(self, method: str, path: str, where: str = "", **request: Any) -> None:
        """Send a request; the session is that of the administrator again afterwards."""
        self._caplog.clear()
        response = self._client.open(path, method=method, **request)
        name = f"{method} {path[:60]} {where}: {response.status_code}"
        if response.status_code >= 500:
            self.failures.add(name)
        if any(record.exc_info for record in self._caplog.records):
            self.failures.add(f"{name} with a traceback")
        if "Access-Control-Allow-Origin" in response.headers:
            self.failures.add(f"{name} for other sites")
        response.close()
        self.count += 1
        if "Set-Cookie" in response.headers:
            self._client.set_cookie(self._cookie.key, self._cookie.value)


@pytest.fixture
def visitor(api: FlaskClient, sign_in: Callable[..., FlaskClient], caplog: pytest.LogCaptureFixture) -> Visitor:
    client = sign_in("admin")
    client.environ_base["HTTP_AUTHORIZATION"] = api.environ_base["HTTP_AUTHORIZATION"]
    return Visitor(client, caplog)


def rules(app: Flask) -> Iterator[tuple[Rule, str]]:
    """Every route with each of its methods."""
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield rule, method


def fill_path(rule: Rule, value: str | None = None) -> str:
    """The path of a route with a value, or valid ones, as parameters."""

    def replace(match: re.Match[str]) -> str:
        if value is not None:
            return value
        kind = match["kind"] or ""
        return "1" if kind == "int" else "ada@example.com" if kind == "email" else "SUMMER25"

    return re.sub(r"<(?:(?P<kind>\w+)(?:\([^)]*\))?:)?\w+>", replace, rule.rule)


def field_names(kind: type[Form] = Form) -> set[str]:
    """The names of all fields of all forms."""
    names = {name for name in vars(kind) if hasattr(getattr(kind, name), "field_class")}
    return names.union(*(field_names(subclass) for subclass in kind.__subclasses__()))


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_no_route_fails_on_a_hostile_url_or_form(app: Flask, visitor: Visitor, value: str) -> None:
    names = EXTRA_PARAMETERS | field_names()
    fields = "&".join(f"{name}={value}" for name in sorted(names))
    for rule, method in rules(app):
        path = fill_path(rule)
        if "<" in rule.rule:
            visitor.send(method, fill_path(rule, value))
        if method == "GET":
            visitor.send(method, f"{path}?{fields[:60_000]}", "query")
        elif not rule.rule.startswith("/api/"):
            visitor.send(method, path, "form", data=fields, content_type="application/x-www-form-urlencoded")

    assert visitor.failures == set()
    assert visitor.count > 150


def json_leaves(schema: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield path and example of every value of a body."""
    yield path, build_example(schema)
    for name, child in schema.get("properties", {}).items():
        yield from json_leaves(child, (*path, name))
    if "items" in schema:
        yield from json_leaves(schema["items"], (*path, 0))
    for option in schema.get("anyOf", ()):
        if option.get("properties") or option.get("items"):
            yield from json_leaves(option, path)


def build_example(schema: dict[str, Any]) -> Any:
    """A value that conforms to a schema; an object has all properties."""
    for keyword in ("examples", "enum"):
        if schema.get(keyword):
            return schema[keyword][0]
    if "const" in schema:
        return schema["const"]
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            return build_example(schema[keyword][0])
    if schema.get("type") == "object":
        return {name: build_example(child) for name, child in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [build_example(schema["items"])]
    return {"string": "a", "integer": 1, "boolean": True}.get(schema.get("type", ""))


def resolve(schema: Any, document: dict[str, Any]) -> Any:
    """A schema without references."""
    if isinstance(schema, list):
        return [resolve(item, document) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolve(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    return {name: resolve(value, document) for name, value in schema.items()}


def with_value(body: Any, path: tuple[str | int, ...], value: object) -> Any:
    """A copy of a body with another value at a path."""
    if not path:
        return value
    body = deepcopy(body)
    parent = body
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    return body


@pytest.mark.slow
def test_no_call_fails_on_a_hostile_value_in_json(app: Flask, api: FlaskClient, visitor: Visitor) -> None:
    document = api.get("/api/v1/openapi.json").get_json()
    for rule, method in rules(app):
        path = re.sub(r"<(?:[^<>:]+:)?(\w+)>", r"{\1}", rule.rule)
        operation = document["paths"].get(path, {}).get(method.lower(), {})
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        schema = resolve(content["schema"], document)
        valid = build_example(schema)
        for leaf, _example in json_leaves(schema):
            for value in JSON_VALUES:
                visitor.send(method, fill_path(rule), f"{leaf} {value!r:.20}", json=with_value(valid, leaf, value))

    assert visitor.failures == set()
    assert visitor.count > 300


@pytest.mark.slow
@pytest.mark.parametrize("value", HEADER_VALUES)
def test_no_interface_fails_on_a_hostile_header(visitor: Visitor, value: str) -> None:
    requests = [
        ("POST", "/offers/new"), ("GET", "/redeem"), ("POST", "/redeem"), ("POST", "/sign-in"),
        ("GET", "/static/app.js"), ("GET", "/metrics"), ("PATCH", "/api/v1/offers/SUMMER25"),
        ("POST", "/api/v1/redemptions"), ("POST", "/customers/import"),
    ]  # fmt: skip
    for method, path in requests:
        body = {"json": {}} if path.startswith("/api/") else {"data": {"email": "ada@example.com"}}
        for header in HEADERS:
            environ = {f"HTTP_{header}": value}
            visitor.send(method, path, header, environ_overrides=environ, **(body if method != "GET" else {}))

    assert visitor.failures == set()


@pytest.mark.parametrize("value", [*HEADER_VALUES, "multipart/form-data; boundary=" + "x" * 20_000])
def test_no_interface_fails_on_a_hostile_media_type(visitor: Visitor, value: str) -> None:
    for path in ("/sign-in", "/redeem", "/offers/new", "/customers/import", "/api/v1/redemptions", "/api/v1/bounces"):
        for length in ("5", "-1", "9" * 5000, "x"):
            environ = {"CONTENT_TYPE": value, "CONTENT_LENGTH": length}
            visitor.send("POST", path, f"{value!r:.20} {length:.5}", data=b"a=b&c", environ_overrides=environ)

    assert visitor.failures == set()


@pytest.mark.parametrize("path", ["/static/%00", "/static/..%2f..%2fwsgi.py", "/static/%FF", "/%00", "/api/v1/%00"])
def test_an_unknown_path_is_not_found(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404
