"""Parse an uploaded file from the body of a request."""

from __future__ import annotations

import io

import pytest
from flask import Flask
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from webapp.core.errors import DomainError
from webapp.customers.imports import upload

LIMIT = 3 * upload.CHUNK_SIZE


class OneByteReads(io.BytesIO):
    """A body of which each read returns one byte."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1)


class SplitBody(io.BytesIO):
    """A body whose first read ends at a given byte."""

    def __init__(self, body: bytes, end: int) -> None:
        super().__init__(body)
        self.end = end

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.end - self.tell() if self.tell() < self.end else size)


def parse_form(file: bytes, end: bytes = b"\r\n--x--\r\n") -> upload.Upload:
    head = (
        b'--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nVIP\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    )
    return upload.parse_multipart_form(io.BytesIO(head + file + end), "multipart/form-data; boundary=x", LIMIT)


def test_the_fields_before_the_file_are_parsed_first() -> None:
    parsed = parse_form(b"email\n")

    assert (parsed.fields, parsed.filename) == ({"audience": "VIP"}, "a.csv")


@pytest.mark.parametrize("body_type", [io.BytesIO, OneByteReads])
def test_fields_are_decoded_as_utf_8(body_type: type[io.BytesIO]) -> None:
    body = (
        '--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nMüller & Söhne 🎁\r\n'
        '--x\r\nContent-Disposition: form-data; name="note"\r\n\r\n\r\n'
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nemail\r\n--x--\r\n'
    )

    parsed = upload.parse_multipart_form(body_type(body.encode()), "multipart/form-data; boundary=x", LIMIT)

    assert parsed.fields == {"audience": "Müller & Söhne 🎁", "note": ""}
    assert b"".join(parsed.chunks) == b"email"


@pytest.mark.parametrize("size", [0, 1, upload.CHUNK_SIZE - 1, upload.CHUNK_SIZE, upload.CHUNK_SIZE + 1, LIMIT])
def test_a_file_is_read_completely_in_equal_chunks(size: int) -> None:
    file = (b"ada@example.com\r\n--x-\r\n" * (size // 20 + 1))[:size]

    chunks = list(parse_form(file).chunks)

    assert b"".join(chunks) == file
    assert all(len(chunk) == upload.CHUNK_SIZE for chunk in chunks[:-1])
    assert all(len(chunk) <= upload.CHUNK_SIZE for chunk in chunks)


@pytest.mark.parametrize("file", [b"email\n", b"email\r\n", b"email\r", b"email", b"--x-", b"email\r\n--x-\r\n--"])
def test_a_file_is_the_same_wherever_reads_end(file: bytes) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    body = head + file + b"\r\n--x--\r\n"

    for end in range(1, len(body)):
        stream = SplitBody(body, end)
        parsed = upload.parse_multipart_form(stream, "multipart/form-data; boundary=x", LIMIT)
        assert b"".join(parsed.chunks) == file


def test_a_file_above_the_limit_is_rejected() -> None:
    file = b"x" * (LIMIT + 1)

    for chunks in (parse_form(file).chunks, upload.read_raw_body(io.BytesIO(file), len(file), LIMIT)):
        with pytest.raises(DomainError) as raised:
            list(chunks)
        assert (raised.value.status, raised.value.errors[0].field) == (413, "file")


@pytest.mark.parametrize("end", [b"", b"\r\n--x", b"\r\n--y--\r\n"])
def test_a_form_without_its_end_is_reported_as_interrupted(end: bytes) -> None:
    with pytest.raises(DomainError, match="upload was interrupted"):
        list(parse_form(b"email\n", end).chunks)


@pytest.mark.parametrize("length", [5, 7])
def test_a_body_of_the_wrong_length_is_reported_as_interrupted(length: int) -> None:
    with pytest.raises(DomainError, match="upload was interrupted"):
        list(upload.read_raw_body(io.BytesIO(b"email\n"), length, LIMIT))


def make_fields(*values: bytes) -> io.BytesIO:
    """Return a form without a file; the fields have the names 0, 1, …"""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n%s\r\n' % (n, value) for n, value in enumerate(values)
    ]
    return io.BytesIO(b"".join(parts) + b"--x--\r\n")


def test_fields_that_are_too_long_together_are_rejected() -> None:
    half = b"x" * 32 * 1024

    parsed = upload.parse_multipart_form(make_fields(half, half), "multipart/form-data; boundary=x", LIMIT)
    with pytest.raises(DomainError) as raised:
        upload.parse_multipart_form(make_fields(half, half + b"x"), "multipart/form-data; boundary=x", LIMIT)

    assert parsed.fields == {"0": half.decode(), "1": half.decode()}
    assert (parsed.filename, list(parsed.chunks)) == ("", [])
    assert raised.value.key == "form_broken"


def test_too_many_parts_are_rejected_with_their_number() -> None:
    parsed = upload.parse_multipart_form(make_fields(*[b"VIP"] * 20), "multipart/form-data; boundary=x", LIMIT)
    with pytest.raises(DomainError, match="more than 20 fields") as raised:
        upload.parse_multipart_form(make_fields(*[b"VIP"] * 21), "multipart/form-data; boundary=x", LIMIT)

    assert parsed.fields == {str(n): "VIP" for n in range(20)}
    assert (raised.value.key, raised.value.status) == ("too_large", 413)


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/mixed; boundary=x", "text/csv", ""])
def test_a_body_of_another_type_is_no_form(content_type: str) -> None:
    with pytest.raises(DomainError) as raised:
        upload.parse_multipart_form(make_fields(b"VIP"), content_type, LIMIT)

    assert (raised.value.key, raised.value.status) == ("form_broken", 400)


def test_a_body_of_the_limit_is_read_completely() -> None:
    file = b"x" * LIMIT

    assert b"".join(upload.read_raw_body(io.BytesIO(file), LIMIT, LIMIT)) == file


@pytest.mark.parametrize(
    ("limit", "read"), [(0, 0), (1, 1), (upload.CHUNK_SIZE, 1), (upload.CHUNK_SIZE + 1, 2), (LIMIT, 3)]
)
def test_a_refused_body_is_read_up_to_the_limit(limit: int, read: int) -> None:
    body = io.BytesIO(b"x" * (LIMIT + 1))

    upload.drain_body(body, limit)

    assert body.tell() == read * upload.CHUNK_SIZE


@pytest.mark.parametrize("error", [ClientDisconnected(), OSError()])
def test_a_client_that_has_gone_ends_the_reading(error: Exception) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise error

    upload.drain_body(Broken(), LIMIT)
    with pytest.raises(DomainError) as raised:
        list(upload.read_raw_body(Broken(), 1, LIMIT))
    assert (raised.value.key, raised.value.status, raised.value.errors[0].field) == ("upload_broken", 400, "file")


def test_a_body_that_the_server_has_found_too_large_is_reported_as_such() -> None:
    class TooLarge(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise RequestEntityTooLarge

    with pytest.raises(RequestEntityTooLarge):
        list(upload.read_raw_body(TooLarge(), 1, LIMIT))


def test_errors_about_the_file_name_its_field(app: Flask) -> None:
    errors = upload.file_too_large_error(5 * 1024 * 1024), upload.length_required_error()

    assert [(error.key, error.status, error.errors[0].field) for error in errors] == [
        ("too_large", 413, "file"),
        ("length_required", 411, "file"),
    ]
    assert "larger than 5 MB" in errors[0].message


@pytest.mark.parametrize("start", [b"", b'--x\r\nContent-Disposition: form-data; name="audience"\r\n'])
def test_headers_that_do_not_end_are_not_collected(start: bytes) -> None:
    body = io.BytesIO(start + b"a: b\r\n" * upload.CHUNK_SIZE)

    with pytest.raises(DomainError) as raised:
        upload.parse_multipart_form(body, "multipart/form-data; boundary=x", LIMIT)

    assert raised.value.key == "form_broken"
    assert body.tell() <= 3 * upload.CHUNK_SIZE
