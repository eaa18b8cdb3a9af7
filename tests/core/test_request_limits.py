"""Limits that apply before a form, JSON or query string is parsed."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import unquote_plus

import pytest
import werkzeug.formparser
import werkzeug.sansio.request
from flask import Flask, request
from hypothesis import given
from hypothesis.strategies import lists, sampled_from
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from webapp.core import request_limits
from webapp.core.errors import DomainError

MAX_FIELDS, MAX_JSON_VALUES, MAX_JSON_DEPTH = 1_000, 10_000, 64
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=limit"


def error_of(body: bytes) -> tuple[str, int] | None:
    """The error of a JSON body; None if it may be parsed."""
    try:
        request_limits.check_json_size(body)
    except DomainError as error:
        return error.key, error.status
    return None


def part(headers: bytes = b'Content-Disposition: form-data; name="a"', value: bytes = b"b") -> bytes:
    return b"--limit\r\n" + headers + b"\r\n\r\n" + value + b"\r\n"


def parse_form(app: Flask, body: bytes, content_type: str) -> Any:
    """The parsed form, or key and status of the error."""
    with app.test_request_context(method="POST", input_stream=io.BytesIO(body), content_length=len(body),
                                  content_type=content_type):  # fmt: skip
        try:
            return request.form.to_dict()
        except DomainError as error:
            return error.key, error.status


# --- JSON -----------------------------------------------------------------------------------------


TOO_LARGE, TOO_DEEP = ("too_large", 413), ("broken_json", 400)
BODIES: dict[str, tuple[bytes, tuple[str, int] | None]] = {
    "values at the limit": (json.dumps(list(range(MAX_JSON_VALUES - 1))).encode(), None),
    "a value too many": (json.dumps(list(range(MAX_JSON_VALUES))).encode(), TOO_LARGE),
    "members at the limit": (json.dumps({str(n): "x" for n in range(MAX_JSON_VALUES - 1)}).encode(), None),
    "a member too many": (json.dumps({str(n): "x" for n in range(MAX_JSON_VALUES)}).encode(), TOO_LARGE),
    "empty strings": (b"[" + b'"",' * MAX_JSON_VALUES + b'""]', TOO_LARGE),
    "only strings": (b"[" * 65 + b'""' * 2 * MAX_JSON_VALUES + b'"', TOO_LARGE),
    "only commas": (b"," * MAX_JSON_VALUES, TOO_LARGE),
    "levels at the limit": (b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH, None),
    "a level too many": (b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1), TOO_DEEP),
    "objects in arrays": (b'[{"a":' * MAX_JSON_DEPTH, TOO_DEEP),
    "many levels": (b"[" * 2**20, TOO_DEEP),
    "many brackets side by side": (b"[" + b"[]," * 100 + b"[]]", None),
    "more closing than opening brackets": (b"[" * 65 + b"]" * 2**20, TOO_DEEP),
    "closing brackets first": (b"]" + b"[" * 65, None),
    "commas in a string": (json.dumps({"html": "a, b, " * MAX_JSON_VALUES}).encode(), None),
    "brackets in a string": (json.dumps({"html": "[{" * MAX_JSON_VALUES}).encode(), None),
    "quotes in a string": (json.dumps({"html": '",' * MAX_JSON_VALUES}).encode(), None),
    "backslashes before the end of a string": (b'["\\\\\\\\",' + b"[" * 65, TOO_DEEP),
    "an escaped quote after backslashes": (b'["\\\\\\",' + b"[" * 65 + b'"]', None),
}


@pytest.mark.parametrize(("body", "error"), BODIES.values(), ids=BODIES.keys())
def test_the_values_and_levels_of_json_are_limited(app: Flask, body: bytes, error: tuple[str, int] | None) -> None:
    assert error_of(body) == error


def test_the_largest_documented_body_is_accepted(app: Flask) -> None:
    bounce = {"kind": "bounce", "email": "a, b", "return_path": "", "message_id": "", "status": "5.1.1", "detail": "[,"}

    assert error_of(json.dumps({"bounces": [bounce] * 1000}, indent=2).encode()) is None


def test_json_beyond_the_limit_is_not_parsed(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    monkeypatch.setattr(app.json, "loads", lambda text, **_options: parsed.append(text))
    with app.test_request_context(method="POST", data=b"[1]", content_type="application/json"):
        request.get_json()
    with (
        app.test_request_context(method="POST", data=b"[" * 2**20, content_type="application/json"),
        pytest.raises(DomainError),
    ):
        request.get_json()

    assert parsed == [b"[1]"]


def test_json_needs_its_content_type_and_is_parsed_once(app: Flask) -> None:
    with app.test_request_context(method="POST", data=b'{"a": 1}', content_type="application/json"):
        assert request.get_json() is request.get_json() == {"a": 1}
    with app.test_request_context(method="POST", data=b"{}", content_type="text/plain"):
        with pytest.raises(UnsupportedMediaType):
            request.get_json()
        assert request.get_json(force=True) == {}
    with app.test_request_context(method="POST", data=b"{", content_type="application/json"):
        with pytest.raises(BadRequest):
            request.get_json()
        assert request.get_json(silent=True) is None


# --- forms ----------------------------------------------------------------------------------------


def test_a_form_may_have_the_maximum_number_of_fields(app: Flask) -> None:
    fields = {f"f{n}": "x" for n in range(MAX_FIELDS)}
    parts = b"".join(part(b'Content-Disposition: form-data; name="%s"' % name.encode(), b"x") for name in fields)

    assert parse_form(app, "&".join(f"{name}=x" for name in fields).encode(), URLENCODED) == fields
    assert parse_form(app, parts + b"--limit--\r\n", MULTIPART) == fields


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"a=b&" * MAX_FIELDS, URLENCODED),
        (b"&" * 2**20, URLENCODED),
        (part() * (MAX_FIELDS + 1) + b"--limit--", MULTIPART),
    ],
)
def test_a_form_with_more_fields_is_rejected_before_it_is_parsed(
    app: Flask, monkeypatch: pytest.MonkeyPatch, body: bytes, content_type: str
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise AssertionError("the form was parsed")

    monkeypatch.setattr(request_limits, "decode_percent_encoding", fail)
    monkeypatch.setattr(werkzeug.formparser, "MultiPartParser", fail)

    assert parse_form(app, body, content_type) == ("too_large", 413)


BROKEN_FORMS = {
    "invalid UTF-8": (b"email=\xff", URLENCODED),
    "no boundary": (part() + b"--limit--", "multipart/form-data"),
    "a boundary that is not ASCII": (part() + b"--limit--", "multipart/form-data; boundary=ü"),
    "no last boundary": (part(), MULTIPART),
    "no parts": (b"email=ada@example.com", MULTIPART),
    "a part without a name": (part(b"Content-Disposition: form-data") + b"--limit--", MULTIPART),
    "a file without a name": (part(b'Content-Disposition: form-data; filename="a"') + b"--limit--", MULTIPART),
    "a part without headers": (b"--limit\r\n\r\nb\r\n--limit--", MULTIPART),
    "headers that are not UTF-8": (part(b'Content-Disposition: form-data; name="\xff"') + b"--limit--", MULTIPART),
    "a long preamble": (b"x" * 2**17 + b"\r\n" + part() + b"--limit--", MULTIPART),
    "a hundred thousand headers": (
        part(b'Content-Disposition: form-data; name="a"\r\n' + b"a: b\r\n" * 100_000) + b"--limit--",
        MULTIPART,
    ),
    "many parts with many headers": (
        part(b'Content-Disposition: form-data; name="a"' + b"; a=b" * 500) * 100 + b"--limit--",
        MULTIPART,
    ),
}


@pytest.mark.parametrize(("body", "content_type"), BROKEN_FORMS.values(), ids=BROKEN_FORMS.keys())
def test_a_malformed_form_is_rejected_and_not_empty(app: Flask, body: bytes, content_type: str) -> None:
    assert parse_form(app, body, content_type) == ("form_broken", 400)


def test_a_value_may_contain_the_boundary(app: Flask) -> None:
    value = b"x--limit" * 10 + b"y" * 100_000

    assert parse_form(app, part(value=value) + b"--limit--", MULTIPART) == {"a": value.decode()}


@pytest.mark.parametrize(
    "text",
    ["a+b=c d", "%C3%A9é%F0%9F%8E%89", "100% %4 %zz%", "%3D=%26", "=\n=\r\n=3D =41 _ \t", "%00%0A%0D\r\n. \n", "%e9%"],
)
def test_escapes_are_decoded_as_by_the_standard_library(text: str) -> None:
    try:
        expected = unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="utf-8"):
            request_limits.decode_percent_encoding(text.encode())
    else:
        assert request_limits.decode_percent_encoding(text.encode()) == expected


@given(lists(sampled_from(["%", "4", "1", "=", "+", " ", "\r\n", "\n", "\t", "_", "é", "%C3%A9", "%0A", "."])))
def test_any_escapes_are_decoded_as_by_the_standard_library(pieces: list[str]) -> None:
    text = "".join(pieces)

    assert request_limits.decode_percent_encoding(text.encode()) == unquote_plus(text)


@pytest.mark.parametrize(("count", "is_accepted"), [(1000, True), (1001, False)])
def test_a_form_may_have_some_unencoded_percent_signs(app: Flask, count: int, is_accepted: bool) -> None:
    expected = {"a": "%" * count} if is_accepted else ("form_broken", 400)

    assert parse_form(app, b"a=" + b"%" * count, URLENCODED) == expected


def test_a_rejected_form_is_rejected_at_every_access(app: Flask) -> None:
    with app.test_request_context(method="POST", data=b"a&" * MAX_FIELDS, content_type=URLENCODED):
        for _attempt in range(2):
            with pytest.raises(DomainError) as raised:
                assert not request.form
            assert raised.value.key == "too_large"
        assert request_limits.get_form_or_empty() == {}


def test_a_form_is_returned_if_it_is_accepted(app: Flask) -> None:
    with app.test_request_context(method="POST", data={"a": "b"}):
        assert request_limits.get_form_or_empty().to_dict() == {"a": "b"}


@pytest.mark.parametrize("content_type", [URLENCODED, MULTIPART])
def test_a_form_of_unknown_length_is_rejected(app: Flask, content_type: str) -> None:
    headers = {"Transfer-Encoding": "chunked"}
    with app.test_request_context(method="POST", headers=headers, content_type=content_type):
        del request.environ["CONTENT_LENGTH"]
        with pytest.raises(DomainError) as raised:
            assert not request.form
        assert (raised.value.key, raised.value.status) == ("length_required", 411)


def test_a_form_without_a_body_is_empty(app: Flask) -> None:
    with app.test_request_context(method="POST", content_type=URLENCODED):
        del request.environ["CONTENT_LENGTH"]
        assert request.form.to_dict() == {}


# --- query strings and headers --------------------------------------------------------------------


def check_request(app: Flask, query_string: str = "", encoding: str | None = None) -> tuple[str, int] | None:
    environ = {"QUERY_STRING": query_string} | ({} if encoding is None else {"HTTP_CONTENT_ENCODING": encoding})
    with app.test_request_context(environ_overrides=environ):
        try:
            request_limits.check_request(request)
        except DomainError as error:
            return error.key, error.status
        return None


@pytest.mark.parametrize(
    ("query_string", "error"),
    [
        ("", None),
        ("&" * (MAX_FIELDS - 1), None),
        ("&" * MAX_FIELDS, ("invalid_payload", 400)),
        ("q=münze".encode().decode("latin-1"), None),
        ("q=\xff", ("invalid_payload", 400)),
    ],
)
def test_the_parameters_of_a_query_string_are_limited(
    app: Flask, query_string: str, error: tuple[str, int] | None
) -> None:
    assert check_request(app, query_string) == error


@pytest.mark.parametrize(
    ("encoding", "error"),
    [
        (None, None),
        ("", None),
        ("Identity", None),
        ("gzip", ("unsupported_media_type", 415)),
        ("identity, br", ("unsupported_media_type", 415)),
    ],
)
def test_a_compressed_body_is_rejected(app: Flask, encoding: str | None, error: tuple[str, int] | None) -> None:
    assert check_request(app, encoding=encoding) == error
